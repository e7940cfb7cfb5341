"""One thread per process: tests share few cores, and oversubscribed threads are many times slower."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from calls import Call
    from object_storage import S3Server
    from searches import Material

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# By itself Ray gives its workers so little priority that they starve beside whatever else the machine does.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# On cores that others share, no single example has a time it must be done in.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> "Material":
    """A tiny model, its store and a text."""
    import searches

    return searches.material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> "Material":
    """The same with a model of six blocks, for what is dropped."""
    import searches

    return searches.material(tmp_path_factory.mktemp("deep"), blocks=6)


@pytest.fixture(scope="module")
def same_products() -> Iterator[None]:
    """Plain passes multiply as an adapter does, so that tests of this module can compare bits with them."""
    import torch

    from evoray.model.products import fast_products

    with torch.no_grad(), fast_products():
        yield


@pytest.fixture(scope="session")
def ray_home() -> Iterator[Path]:
    """Where Ray keeps its sockets and logs: short, because a socket's path may have 107 bytes, and gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(home)
    yield home
    if before is None:
        del os.environ["RAY_TMPDIR"]
    else:
        os.environ["RAY_TMPDIR"] = before
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_here(ray_home: Path) -> Iterator[None]:
    """A Ray of this test module, which the pools of its tests join: starting one takes longer than most tests."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> "Call":
    """Runs the command line in this process, into pipes."""
    from calls import Outcome

    from evoray.cli import main

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        return Outcome(int(leaving.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def s3_process() -> Iterator["S3Server"]:
    """An S3 server as a process of its own."""
    from object_storage import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_process: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "S3Server":
    """The same with an environment that leads there, for this process and those that it starts."""
    from object_storage import CREDENTIALS

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_process.url}.items():
        monkeypatch.setenv(name, value)
    return s3_process


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Object storage is asked again at once."""
    monkeypatch.setattr("evoray.store.transfers.FIRST_WAIT", 0.0)
