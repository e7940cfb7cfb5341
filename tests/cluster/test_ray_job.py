"""Jobs on a real cluster that asks for a token: submitted, stopped, submitted again, and what is told of each."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest
import yaml
from object_storage import CREDENTIALS, S3Server
from searches import Material, bits_of

from evoray.cluster.metrics import METRICS
from evoray.run.journal import Journal
from evoray.run.search import search
from evoray.settings import SearchSettings
from evoray.store import Location

ROOT = Path(__file__).parents[2]
SUBMIT = ROOT / "deploy" / "ray-job-submit.sh"
LONG = 5000
"""Generations of a run that nobody lets end."""

PATIENCE = 600
"""Seconds for a test; usually they take a tenth of it."""

# Each starts a driver and workers, which import torch one after the other where cores are few.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(PATIENCE)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass(frozen=True)
class Head:
    """A cluster of one node.

    Attributes:
        address: where jobs are submitted.
        metrics: where Prometheus finds figures.
        environment: of who has the token.
    """

    address: str
    metrics: str
    environment: dict[str, str]

    def ray(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments, "--address", self.address]
        environment = self.environment | {"RAY_AUTH_MODE": "token"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def submitting(self, *command: object, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """`deploy/ray-job-submit.sh` at work."""
        process = subprocess.Popen(
            [SUBMIT, "--address", self.address, *map(str, command)],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the children that hold its pipes
            process.communicate()

    def submit(self, *command: object, **environment: str) -> tuple[int, list[str], str]:
        """Exit code, lines and errors of one that ends."""
        with self.submitting(*command, **environment) as process:
            out, err = process.communicate(timeout=PATIENCE)
            return process.returncode, out.splitlines(), err


@pytest.fixture(scope="module")
def head(ray_home: Path, s3_process: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Started as a person does it, in processes of its own: Ray settles once per process whether it wants tokens."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("a" * 64)
    gcs, dashboard, agent, client, metrics = free_ports(5)
    without_token = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    # A home of its own, because a person's own token may lie in theirs.
    without_token |= {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_process.url}
    without_token |= {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "HOME": str(token.parent)}
    environment = without_token | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment |= {"RAY_metrics_report_interval_ms": "500", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--num-cpus", "3", "--temp-dir", str(ray_home / "job"), "--port", str(gcs)),
            *("--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)),
            *("--ray-client-server-port", str(client), "--metrics-export-port", str(metrics)),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for port in (dashboard, agent):
            answers(port, process)
        with_token = without_token | {"RAY_AUTH_TOKEN_PATH": str(token)}
        yield Head(
            f"http://127.0.0.1:{dashboard}",
            f"http://127.0.0.1:{metrics}/metrics",
            with_token,
        )
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        for left in psutil.wait_procs(family, timeout=30)[1]:
            left.kill()
        process.wait()


def answers(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Waits until somebody listens."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, "Ray did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nobody listens at {port}")


def command_of(settings: SearchSettings, folder: Path) -> tuple[object, ...]:
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)))
    return ("--", sys.executable, "-m", "evoray", "search", "--config", config)


def test_a_stopped_job_is_submitted_again_and_ends_as_if_nothing_had_been(
    head: Head, s3: S3Server, material: Material, tmp_path: Path
) -> None:
    bucket = s3.make_bucket("jobs")
    store, run = Location.parse(f"{bucket}/store"), Location.parse(f"{bucket}/run")
    pafs.copy_files(material.store, store.path, destination_filesystem=store.filesystem)
    settings = material.settings(run, store=str(store), workers=2, variant_memory="100MB", generations=LONG)
    with head.submitting("--submission-id", "first", *command_of(settings, tmp_path)) as first:
        assert first.stdout is not None
        lines: list[str] = []
        for line in first.stdout:
            lines.append(line)
            if line.startswith("generation 1/"):
                break
        else:
            raise AssertionError("".join(lines))
        check_metrics(head, run)
        head.ray("job", "stop", "first")
        out, _ = first.communicate(timeout=PATIENCE)
        assert first.returncode == 143
    assert out.splitlines()[-1] == (
        f"stopped by SIGTERM; {run} keeps every finished generation: the same command goes on with it"
    )
    generations = Journal(run).rows[-1].generation + 2
    assert generations < LONG
    again = settings.model_copy(update={"generations": generations})
    code, said, err = head.submit("--submission-id", "second", *command_of(again, tmp_path))
    assert code == 0, "\n".join(said) + err
    assert said[-1].startswith("done: ")
    assert said[-1].endswith(f"the result is in {run}/best.json")
    search(again.model_copy(update={"run": str(tmp_path / "whole"), "workers": 0}))
    pafs.copy_files(run.path, str(tmp_path / "run"), source_filesystem=run.filesystem)
    assert bits_of(tmp_path / "run") == bits_of(tmp_path / "whole")


def check_metrics(head: Head, run: Location) -> None:
    """While it works, all its figures are where Prometheus looks for them, under the names that the dashboard has."""
    wanted = {f"ray_{name}" for name in METRICS} | {"ray_evoray_fetched_bytes_total"}
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with urllib.request.urlopen(head.metrics, timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if "evoray" in line and line[0] != "#"]
        found = {line.partition("{")[0] for line in lines}
        if found >= wanted:
            break
        time.sleep(0.2)
    assert found >= wanted
    shares = [float(line.split()[-1]) for line in lines if line.startswith("ray_evoray_worker_busy_share{")]
    assert all(f'run="{run}"' in line for line in lines if not line.partition("{")[0].endswith("_total"))
    assert len(shares) == 2
    assert all(0 < share <= 1 for share in shares)


LAST_WORDS = """
import sys, ray
from evoray.cluster.logs import _elsewhere, _here

class Speaker:
    def say(self):
        print("last words", file=sys.stderr, flush=True)
        return ray.get_runtime_context().get_node_id(), __import__("os").getpid()

ray.init(logging_level="error", log_to_driver=False)
speaker = ray.remote(Speaker).remote()
node, pid = ray.get(speaker.say.remote())
print(b"last words" in _here(node, pid), b"last words" in _elsewhere(node, pid))
"""


def test_logs_of_workers_are_found_here_and_by_the_dashboard(head: Head) -> None:
    code, said, err = head.submit("--", sys.executable, "-c", LAST_WORDS)
    assert (code, said[-1:]) == (0, ["True True"]), "\n".join(said) + err


def test_a_mistake_has_its_code_and_its_line(head: Head, material: Material, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "evoray", "inspect", tmp_path / "nothing")
    code, said, _ = head.submit("--", *command)
    assert code == 2
    assert said[-1].startswith("error: ")
    assert str(tmp_path / "nothing") in said[-1]


def test_a_driver_of_ones_own_is_a_job_too(head: Head, material: Material, tmp_path: Path) -> None:
    small = (
        "--generations",
        1,
        "--offspring",
        6,
        "--tokens",
        256,
        "--workers",
        2,
        "--target-bits",
        2.8,
        "--sequence-length",
        64,
    )
    command = ("--model", material.model, "--store", material.store, "--data", material.text, *small)
    code, said, err = head.submit("--working-dir", ROOT / "deploy", "--", sys.executable, "driver.py", *command)
    assert code == 0, "\n".join(said) + err
    assert said[-1].startswith("done: 2.")


def test_who_has_another_token_is_told_so(head: Head) -> None:
    code, said, err = head.submit("--", "true", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 64)
    assert (code, said) == (1, [])
    assert err.splitlines()[-1].startswith(f"error: {head.address} wants another token; ")
