"""Several drivers on one sweep: its folder has one, and who lost it writes to none of its run directories."""

import signal
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from drivers import LONG, await_line, driver
from searches import Material, Told, bits_of

from evoray.errors import UserError
from evoray.run.directory import RunDirectory
from evoray.run.fence import FencedError
from evoray.run.held import HeldFolder
from evoray.run.sweep import sweep
from evoray.settings import SweepSettings
from evoray.store import Location

BUDGETS = (3.5, 3.0, 2.5)
RUNS = [f"target-bits-{value:g}" for value in (3.0, 3.5, 2.5)]
"""In the order in which they are made: the middle one first."""


def settings(material: Material, run: Path, **changes: Any) -> SweepSettings:
    values = material.settings(run).model_dump() | {"target_bits": BUDGETS, "seeded_generations": 2} | changes
    return SweepSettings(**values)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_who_lost_the_outer_folder_writes_nothing_in_the_inner_one(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "sweep"
    place = {
        "local": lambda: Location.parse(folder),
        "remote": lambda: Location.inside(pafs.LocalFileSystem(), str(folder), "memory://sweep"),
    }[kind]
    with (
        HeldFolder(place(), "sweep's folder") as older,
        RunDirectory(older.location / "run") as run,
        HeldFolder(place(), "sweep's folder", take_over=True),
    ):
        before = everything(folder)
        calls = (
            lambda: (run / "best.json").write_bytes(b"late"),
            lambda: (run / "evaluations" / "0.arrow").write_bytes(b"late"),
            lambda: (older / "teacher" / "index.json").write_bytes(b"late"),
            run.check,
            older.check,
            RunDirectory(older.location / "next").__enter__,
        )
        for call in calls:
            with pytest.raises(
                FencedError, match=r"^sweep's folder \S+ was taken over by process \d+ on \S+; this dri"
            ):
                call()
        after = everything(folder)
        # Locally it is a file of this machine that tells whether a driver lives, and nobody reads what is in it.
        assert {name: data for name, data in after.items() if name != "next/.lock"} == before


def test_a_sweep_that_is_taken_over_in_its_second_budget_stops_there(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"
    write, taken = Location.write_bytes, list[dict[str, bytes]]()

    def meanwhile(self: Location, data: bytes) -> None:
        if not taken and self.path.endswith(f"{RUNS[1]}/generations.parquet"):
            with HeldFolder(str(folder), "sweep's folder", take_over=True):
                pass
            taken.append(everything(folder))
        write(self, data)

    monkeypatch.setattr(Location, "write_bytes", meanwhile)
    with pytest.raises(FencedError, match=f"^sweep's folder {folder} was taken over by process "):
        sweep(settings(material, folder))
    assert everything(folder) == taken[0]
    assert f"{RUNS[0]}/best.json" in taken[0]
    assert f"{RUNS[1]}/generations.parquet" not in taken[0]
    monkeypatch.undo()
    # Whoever took it left it by itself, so nobody is waited for, and the sweep ends as if nothing had been.
    told = Told()
    found, whole = sweep(settings(material, folder), told), sweep(settings(material, tmp_path / "whole"))
    assert not [note for note in told.notes if note.startswith("waiting")]
    for value in BUDGETS:
        assert bits_of(found.results[value].run) == bits_of(whole.results[value].run)


def test_budgets_that_another_driver_added_meanwhile_are_kept(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = HeldFolder.__enter__

    def late(self: HeldFolder) -> HeldFolder:
        """Between the look at the folder and its taking, another driver comes and goes."""
        monkeypatch.setattr(HeldFolder, "__enter__", enter)
        sweep(settings(material, tmp_path, target_bits=(3.5,), generations=1))
        return enter(self)

    monkeypatch.setattr(HeldFolder, "__enter__", late)
    found = sweep(settings(material, tmp_path, target_bits=(3.0,), generations=1))
    assert list(found.results) == [3.5, 3.0]
    # By itself it would have had no seed.
    assert found.results[3.0].best["command"]
    assert "[\n   3.0,\n   3.5\n  ]" in (tmp_path / "sweep.json").read_text()


@pytest.mark.cluster
def test_of_two_drivers_the_older_stops_and_the_sweep_is_whole(material: Material, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    with driver(settings(material, folder, generations=LONG), tmp_path) as older:
        await_line(older, "generation 1/")
        older.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match=f"^sweep's folder {folder} is in use by process {older.pid} on "):
            sweep(settings(material, folder))
        found = sweep(settings(material, folder, take_over=True))
        before = everything(folder)
        older.send_signal(signal.SIGCONT)
        _, lines = older.communicate(timeout=120)
        assert older.returncode == 1
        assert lines.strip().splitlines()[-1].startswith(f"error: sweep's folder {folder} was taken over by process ")
        assert everything(folder) == before
    # It had begun more generations than were asked for then.
    reached = found.results[BUDGETS[0]].best["generation"]
    whole = sweep(settings(material, tmp_path / "whole", generations=max(4, reached)))
    for value in BUDGETS:
        mine, theirs = bits_of(found.results[value].run), bits_of(whole.results[value].run)
        assert mine["generations"] == theirs["generations"]
