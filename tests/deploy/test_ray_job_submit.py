"""The script that submits jobs, where no cluster is needed; the rest is in `test_ray_job`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SUBMIT = ROOT / "deploy" / "ray-job-submit.sh"


@pytest.mark.parametrize(
    ("arguments", "python", "said"),
    [
        ([], sys.executable, "no command; give it behind --"),
        (["--address", "http://h:8265", "--"], sys.executable, "no command; give it behind --"),
        (["--address"], sys.executable, "--address is empty"),
        (["--no-wait", "--", "true"], sys.executable, "--no-wait: this script is what waits"),
        (["--", "true"], "/bin/false", "/bin/false has no ray[default]"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], python: str, said: str) -> None:
    environment = os.environ | {"PYTHON": python}
    done = subprocess.run([SUBMIT, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {said}")


def test_help_shows_how_it_is_called_and_how_it_ends() -> None:
    done = subprocess.run([SUBMIT, "--help"], capture_output=True, text=True, check=True)
    assert "ray-job-submit.sh --address http://HEAD:8265 [options of ray job submit] -- evoray search" in done.stdout
    assert "Exit codes: the job's own; 143" in done.stdout


def test_ray_takes_the_runtime_environment(tmp_path: Path) -> None:
    from ray.runtime_env import RuntimeEnv

    wanted = yaml.safe_load((ROOT / "deploy" / "runtime-env.yaml").read_text("utf-8"))
    assert RuntimeEnv(**wanted, working_dir=str(tmp_path))["pip"]["packages"] == wanted["pip"]["packages"]
