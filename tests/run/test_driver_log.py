"""The log of a run, on a disk and on object storage."""

import re
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from searches import Material, Told, searching_with

from evoray.cluster import LocalPool
from evoray.errors import EvorayError
from evoray.run.journal import GenerationRow
from evoray.run.log import LOG, DriverLog
from evoray.run.progress import Progress
from evoray.run.search import search
from evoray.store import Location

ROW = GenerationRow(
    3,
    (1, 0),
    ((1, 0),),
    0.25,
    0.5,
    True,
    0.01,
    0.05,
    2.5,
    2.75,
    1000,
    0.0,
    8,
    4096,
    1.5,
    1,
    (1.0,),
    ("(0, 0)",),
    "",
    "",
)


def said(text: str) -> list[str]:
    """The lines without their times."""
    lines = [line.split(" ", 1) for line in text.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", time) for time, _ in lines)
    return [re.sub(r"\d+\.\d+ s", "T", line) for _, line in lines]


def test_a_search_keeps_what_happened(material: Material, tmp_path: Path) -> None:
    with LocalPool(material.spec) as pool, searching_with(pool):
        search(material.settings(tmp_path, generations=1))
        first = (tmp_path / LOG).read_text()
        search(material.settings(tmp_path, generations=2))
    lines = said((tmp_path / LOG).read_text())
    assert (tmp_path / LOG).read_text().startswith(first)
    beginnings = ["teacher: T", "generation 0/1: ", "generation 1/1: ", "judging: T"]
    beginnings += [f"going on with {tmp_path} after generation 1", "teacher: T", "generation 2/2: ", "judging: T"]
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning)


def test_everything_is_passed_on() -> None:
    told = Told()
    log = DriverLog(Location.parse("/proc/nope/driver.log"), told)  # nothing can be written there
    with log:
        log.note("a note")
        log.stage("teacher")(1.0)
        log.step("a rung")(0.5)
        log.generation(ROW, 4)
    assert (told.notes, told.shares, told.steps, told.generations) == (
        ["a note"], {"teacher": [1.0]}, {"a rung": [0.5]}, [3],
    )  # fmt: skip


@pytest.mark.parametrize("remote", [False, True])
def test_a_workers_log_lies_beside_it(tmp_path: Path, remote: bool) -> None:
    place = (
        Location.inside(pafs.LocalFileSystem(), str(tmp_path), "memory://bucket")
        if remote
        else Location.parse(tmp_path)
    )
    told = Told()
    DriverLog(place / LOG, told).keep_log("worker-3-1234.log", b"last words")
    assert (tmp_path / "logs" / "worker-3-1234.log").read_bytes() == b"last words"
    DriverLog(Location.parse("/proc/nope/driver.log"), told).keep_log("worker-3-1234.log", b"last words")
    assert told.logs == ["worker-3-1234.log"] * 2  # passed on, whether it could be written or not


def test_object_storage_gets_it_at_the_end_of_each_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Location.inside(pafs.LocalFileSystem(), str(tmp_path), "memory://bucket")
    file = tmp_path / LOG
    generation = "generation 3/4: fitness 0.250000, accepted, bits 2.5000, 8 candidates, 4096 tokens, T, 1 workers lost"
    log = DriverLog(place / LOG, Progress())
    log.note("worker 1\nwas lost")
    assert not file.exists()
    log.generation(ROW, 4)
    assert said(file.read_text()) == ["worker 1 was lost", generation]
    with pytest.raises(ZeroDivisionError), log:
        raise ZeroDivisionError("nothing left")
    with DriverLog(place / LOG, Progress()) as log, monkeypatch.context() as patch:
        log.note("again")

        def away(*_: object) -> None:
            raise EvorayError("storage was away for a moment")

        patch.setattr(Location, "write_bytes", away)
        log.generation(ROW, 4)
    ended = ["worker 1 was lost", generation, "ended by ZeroDivisionError: nothing left"]
    assert said(file.read_text()) == [*ended, "again", generation]
