"""Several drivers on one run directory: who waits, who is refused, who takes it over, and who never writes again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from drivers import LONG, await_line, driver
from object_storage import S3Server
from searches import Material, Told, bits_of

from evoray.errors import EvorayError, UserError
from evoray.run import fence
from evoray.run.directory import RunDirectory
from evoray.run.fence import Fence, FencedError, Holder
from evoray.run.search import search
from evoray.store import Location


def remote(folder: Path) -> Location:
    return Location.inside(pafs.LocalFileSystem(), str(folder / "bucket"), "memory://bucket")


@pytest.fixture
def bucket(tmp_path: Path) -> Location:
    return remote(tmp_path)


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return remote(tmp_path) if request.param == "remote" else Location.parse(tmp_path / "run")


def files(place: Location) -> dict[str, bytes]:
    found = {name: (place / name).read_bytes() for name in place.list() if (place / name).size() is not None}
    fences = {f"fence/{name}": (place / "fence" / name).read_bytes() for name in (place / "fence").list()}
    return found | fences


def said(place: Location) -> Holder:
    holder = Fence(place).holder()
    assert holder is not None
    return holder


def write(place: Location, holder: Holder, name: str = "00000001-00000000.json") -> None:
    (place / "fence" / name).write_bytes(json.dumps(asdict(holder)).encode())


STRANGER = Holder("elsewhere", 1, "another system", False, 0.0)


def test_the_one_that_was_taken_over_never_writes_again(place: Location, tmp_path: Path) -> None:
    with RunDirectory(place) as older:
        (older / "best.json").write_bytes(b"older")
        with RunDirectory(place, take_over=True) as newer:
            before = files(place)
            assert len((place / "fence").list()) == 1
            calls = (
                lambda: (older / "best.json").write_bytes(b"late"),
                lambda: (older / "deep" / "new").write_bytes(b"late"),
                lambda: (older.location / "best.json").delete(),
                older.check,
            )
            for call in calls:
                with pytest.raises(FencedError, match=r"was taken over by process \d+ on \S+; this driver stops and"):
                    call()
            assert files(place) == before
            (newer / "best.json").write_bytes(b"newer")
        ended = files(place)
        assert said(place).ended
    # Leaving writes nothing either, and a number that was lost is not free again.
    assert files(place) == ended
    with pytest.raises(FencedError):
        (older / "best.json").write_bytes(b"late")
    with RunDirectory(place) as next_one:
        next_one.check()
        assert [name[:8] for name in (place / "fence").list()] == ["00000003"]
        assert (next_one / "best.json").read_bytes() == b"newer"


def test_two_that_begin_at_once_are_told_apart(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["aaaaaaaa", "bbbbbbbb"])
    monkeypatch.setattr(fence.secrets, "token_hex", lambda count: next(tokens) if count == 4 else os.urandom(8).hex())
    first, second = Fence(bucket), Fence(bucket)
    # The second looks before the first has written, and writes after the first has looked.
    seen = second._names()
    assert first.take(locked=False)
    names, looks = second._names, iter([seen])

    def late() -> list[str]:
        found = next(looks, None)
        return names() if found is None else found

    monkeypatch.setattr(second, "_names", late)
    assert second.take(locked=False)
    second.check()
    with pytest.raises(FencedError):
        first.check()
    first.release()
    second.release()


def test_a_lower_number_of_the_same_moment_steps_back(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence.secrets, "token_hex", lambda count: "0" * 8 if count == 4 else os.urandom(8).hex())
    mine = Fence(bucket)
    write_file = mine._write

    def meanwhile(ended: bool = False) -> None:
        write_file(ended)
        write(bucket, replace(STRANGER, time=time.time()), "00000001-ffffffff.json")

    monkeypatch.setattr(mine, "_write", meanwhile)
    assert not mine.take(locked=False)
    assert (bucket / "fence").list() == ["00000001-ffffffff.json"]


def test_one_that_shows_signs_of_life_keeps_others_out(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "BEAT", 0.01)
    monkeypatch.setattr(fence, "LOOK", 0.02)
    notes: list[str] = []
    with RunDirectory(bucket):
        with pytest.raises(UserError, match=r"is in use by process \d+ on \S+; stop it first, .* by --take-over"):
            RunDirectory(bucket, notes.append).__enter__()
        (note,) = notes
        assert note.startswith("waiting up to 60 s: process ")
    with RunDirectory(bucket, notes.append):
        assert len(notes) == 1, "who ended by itself is not waited for"


def test_one_without_signs_of_life_is_fenced_off(bucket: Location) -> None:
    write(bucket, replace(STRANGER, time=time.time() - fence.STALE - 1))
    with RunDirectory(bucket, pytest.fail):
        assert said(bucket).process == os.getpid()


@pytest.mark.parametrize("ends", [False, True])
def test_one_that_was_just_killed_or_just_ends_is_waited_for(
    bucket: Location, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(fence, "LOOK", 0.02)
    monkeypatch.setattr(fence, "STALE", 600.0 if ends else 0.2)
    looks, real, first = 0, time.sleep, replace(STRANGER, time=time.time())

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        assert seconds <= 0.02
        if ends and looks == 3:
            write(bucket, replace(first, ended=True))
        real(seconds)

    write(bucket, first)
    monkeypatch.setattr(fence.time, "sleep", sleep)
    with RunDirectory(bucket):
        assert said(bucket).process == os.getpid()
    assert looks == 3 if ends else looks > 3


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(bucket: Location) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    write(bucket, Holder("here", process.pid, fence.process_space(), False, time.time()))
    with RunDirectory(bucket, pytest.fail):
        pass


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"host": 1}'])
def test_a_damaged_file_is_no_driver(place: Location, damage: bytes) -> None:
    (place / "fence" / "00000007-00000000.json").write_bytes(damage)
    with RunDirectory(place):
        assert [name[:8] for name in (place / "fence").list()] == ["00000008"]


def test_signs_of_life_outlast_storage_that_was_away_and_end_with_the_run(
    bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "BEAT", 0.001)
    beats, ten = list[float](), threading.Event()
    write_file = Fence._write

    def counted(self: Fence, ended: bool = False) -> None:
        beats.append(0)
        if len(beats) == 5:
            raise EvorayError("storage was away for a moment")
        write_file(self, ended)
        if len(beats) >= 10:
            ten.set()

    monkeypatch.setattr(Fence, "_write", counted)
    with RunDirectory(bucket):
        assert ten.wait(60)
    after = len(beats)
    assert said(bucket).ended
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert len(beats) == after


@pytest.mark.cluster
@pytest.mark.parametrize("where", ["local", "s3"])
def test_of_two_drivers_the_older_stops_and_the_run_is_whole(
    s3: S3Server, material: Material, tmp_path: Path, where: str
) -> None:
    run = str(tmp_path / "run") if where == "local" else f"{s3.make_bucket('drivers')}/run"
    everything = {
        "local": lambda: {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()},
        "s3": lambda: s3.contents("drivers"),
    }[where]
    with driver(material.settings(run, generations=LONG), tmp_path) as older:
        await_line(older, "generation 1/")
        older.send_signal(signal.SIGSTOP)
        if where == "local":
            with pytest.raises(UserError, match=f"is in use by process {older.pid} on "):
                search(material.settings(run))
        search(material.settings(run, take_over=True))
        before = everything()
        older.send_signal(signal.SIGCONT)
        _, lines = older.communicate(timeout=120)
        assert older.returncode == 1
        assert lines.strip().splitlines()[-1].startswith(f"error: run directory {run} was taken over by process ")
        assert everything() == before
    # One that is killed is followed at once, and goes on where it was.
    with driver(material.settings(run, generations=LONG), tmp_path) as killed:
        await_line(killed, "generation 5/")
        killed.kill()
        killed.wait()
    told = Told()
    reached = search(material.settings(run, generations=LONG, max_tokens=1), told).best["generation"]
    assert reached >= 5
    assert not [note for note in told.notes if note.startswith("waiting")]
    search(material.settings(tmp_path / "whole", generations=reached))
    assert bits_of(run)["generations"] == bits_of(tmp_path / "whole")["generations"]
