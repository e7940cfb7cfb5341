"""Who may work in a run directory, and with which settings."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from evoray.errors import UserError
from evoray.run import directory
from evoray.run.directory import RunDirectory
from evoray.store import Location

HOLDER = """
import sys
from evoray.run.directory import RunDirectory
with RunDirectory(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A second process that works in the directory until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_another_driver_is_named_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with other_driver(tmp_path) as process:
        with pytest.raises(UserError, match=rf"is in use by process {process.pid} on \S+; stop it first, give"):
            RunDirectory(str(tmp_path)).__enter__()
        process.kill()
        process.wait()
        with RunDirectory(str(tmp_path)) as run:
            assert run.location.path == str(tmp_path)


def test_leaving_gives_the_directory_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunDirectory(str(tmp_path)):
        raise ZeroDivisionError
    with RunDirectory(str(tmp_path)), pytest.raises(UserError, match="in use"):
        RunDirectory(str(tmp_path)).__enter__()


def test_a_place_that_is_no_folder_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be used"):
        RunDirectory(str(tmp_path / "file")).__enter__()


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    with RunDirectory(str(tmp_path)) as run:
        run.settle({"seed": 1, "tokens": (1, 2), "start": None}, {"workers": 1})
        (tmp_path / "generations.parquet").touch()
        run.settle({"seed": 1, "tokens": (1, 2), "start": None}, {"workers": 2})
        assert yaml.safe_load((tmp_path / "settings.yaml").read_text()) == {"workers": 2}
        with pytest.raises(UserError) as caught:
            run.settle({"seed": 2, "tokens": (1, 3), "start": None, "new": "x"}, {"workers": 3})
        for part in ("seed: 1 there, 2 now", "tokens: [1, 2] there, [1, 3] now", 'new: null there, "x" now'):
            assert part in str(caught.value)
        assert "start" not in str(caught.value)
        assert yaml.safe_load((tmp_path / "settings.yaml").read_text()) == {"workers": 2}


def test_another_device_is_refused_unless_mixed_is_allowed(tmp_path: Path) -> None:
    with RunDirectory(str(tmp_path)) as run:
        run.settle_device({"device": "cpu", "torch": "2.8"}, False)
        (tmp_path / "generations.parquet").touch()
        run.settle_device({"device": "cpu", "torch": "2.8"}, False)
        with pytest.raises(UserError, match=r"\(device: cpu there, H200 now\)"):
            run.settle_device({"device": "H200", "torch": "2.8"}, False)
        run.settle_device({"device": "H200", "torch": "2.8"}, True)
        with pytest.raises(UserError, match=r"torch: 2\.8 there, 2\.9 now"):
            run.settle_device({"device": "cpu", "torch": "2.9"}, False)


def test_a_try_that_measured_nothing_binds_nobody(tmp_path: Path) -> None:
    with RunDirectory(str(tmp_path)) as run:
        for seed in (1, 2):
            run.settle({"seed": seed}, {})
            run.settle_device({"device": f"number {seed}"}, False)
            assert json.loads((tmp_path / "identity.json").read_text()) == {"seed": seed}
            assert json.loads((tmp_path / "device.json").read_text()) == {"device": f"number {seed}"}
        # The result of a run without generations, whose start was judged.
        (tmp_path / "best.json").write_text("{}")
        with pytest.raises(UserError, match="seed: 2 there, 3 now"):
            run.settle({"seed": 3}, {})
        with pytest.raises(UserError, match="device: number 2 there, number 3 now"):
            run.settle_device({"device": "number 3"}, False)


@pytest.mark.parametrize("name", ["identity.json", "device.json"])
@pytest.mark.parametrize("damage", [b"", b'{"a": ', b"[1]", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: bytes) -> None:
    with RunDirectory(str(tmp_path)) as run:
        (tmp_path / name).write_bytes(damage)
        reads = {
            "identity.json": lambda: run.settle({}, {}),
            "device.json": lambda: run.settle_device({}, False),
        }
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            reads[name]()


@pytest.mark.parametrize(
    ("name", "held"), [("manifest.json", "a store"), ("building.json", "a store"), ("sweep.json", "a sweep")]
)
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path, name: str, held: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"--run .* holds {held}, and a run needs a folder of its own"):
        RunDirectory(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_is_no_place_for_a_sweep_or_a_store(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.settle({"model": "m"}, {})
    for wanted in ("a sweep", "a store"):
        with pytest.raises(UserError, match=f"--place .* holds a run, and {wanted} needs"):
            directory.check_folder(Location.parse(tmp_path), wanted, "--place")
    # What is in use stays so.
    (tmp_path / "manifest.json").write_text("{}")
    with RunDirectory(tmp_path):
        directory.check_folder(Location.parse(tmp_path), "a store", "--place")
