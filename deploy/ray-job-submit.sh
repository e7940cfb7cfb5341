#!/usr/bin/env bash
# Submits a job to a Ray cluster, shows its log, waits, and ends as the job does: its last line, its exit code.
#
#   deploy/ray-job-submit.sh --address http://HEAD:8265 [options of ray job submit] -- evoray search ...
#
# Needs a python3 (or $PYTHON) with ray[default] in the version of the cluster. A token, where the cluster asks for
# one, comes from $RAY_AUTH_TOKEN, the file $RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
# Exit codes: the job's own; 143 when it was stopped; 1 when it could not be submitted; 2 for a mistake in the call.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
id=evoray-$(date -u +%Y%m%d-%H%M%S)-$RANDOM
options=()
while (($#)); do
  case $1 in
    --) shift; break ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"; exit ;;
    --address) [ $# -ge 2 ] || fail "--address is empty; give http://HEAD:8265"; address=$2; shift 2 ;;
    --submission-id) [ $# -ge 2 ] || fail "--submission-id is empty"; id=$2; shift 2 ;;
    --no-wait) fail "--no-wait: this script is what waits; use ray job submit" ;;
    *) options+=("$1"); shift ;;
  esac
done
(($#)) || fail "no command; give it behind --, such as: -- evoray search --config search.yaml"

python=${PYTHON:-python3}
"$python" -c 'import ray.dashboard.modules.job.sdk' 2>/dev/null \
  || fail "$python has no ray[default]; install the cluster's version, or set PYTHON"

# Ray asks for a token by default where it made one; a client sends its own only when it is told to.
if [ -z "${RAY_AUTH_MODE:-}" ]; then
  if [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -n "${RAY_AUTH_TOKEN_PATH:-}" ] || [ -s "$HOME/.ray/auth_token" ]; then
    export RAY_AUTH_MODE=token
  fi
fi

job() { "$python" -m ray.scripts.scripts job "$@"; }

if ! said=$(job submit --address "$address" --submission-id "$id" --no-wait "${options[@]+"${options[@]}"}" -- "$@" 2>&1); then
  case $said in
    *[Aa]uthentication*) echo "error: $address wants another token; set RAY_AUTH_TOKEN, see deploy/README.md" >&2 ;;
    *) echo "error: $address did not take the job: $(grep -v '^[[:space:]]*$' <<<"$said" | tail -n 1)" >&2 ;;
  esac
  exit 1
fi
echo "job $id: ray job stop --address $address $id ends it, and the same command goes on" >&2
trap 'echo "job $id goes on; ray job logs --follow --address $address $id shows it" >&2; exit 130' INT

job logs --address "$address" --follow "$id" || true

# `ray job` tells success from failure; only Ray's Python tells the exit code.
exec "$python" - "$address" "$id" <<'PYTHON'
import sys
import time

from ray.job_submission import JobStatus, JobSubmissionClient

address, job = sys.argv[1:]
client = JobSubmissionClient(address)
while not (found := client.get_job_info(job)).status.is_terminal():
    time.sleep(1)  # the log was cut off, the job was not
lines = [line for line in client.get_job_logs(job).splitlines() if line.strip()]
code = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}.get(found.status, found.driver_exit_code or 1)
if code == 1 and found.driver_exit_code is None:
    lines.append(f"error: the job did not run to its end: {(found.message or 'no message').splitlines()[0]}")
print(lines[-1] if lines else f"{job}: {found.status.value}")
sys.exit(code)
PYTHON
