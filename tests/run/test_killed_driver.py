"""A driver's process that is killed or interrupted, and the same command again."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from drivers import LONG, await_line, driver
from searches import Material, bits_of

from evoray.run.journal import Journal
from evoray.run.search import search
from evoray.store import Location


def journaled(run: Path) -> int:
    """The last generation."""
    return Journal(Location.parse(str(run))).rows[-1].generation


def check_same(material: Material, folder: Path, **again: Any) -> None:
    """The run ends as one that nothing disturbed, two generations after where it was stopped."""
    generations = journaled(folder / "run") + 2
    assert 3 <= generations < LONG
    search(material.settings(folder / "run", generations=generations, **again))
    search(material.settings(folder / "whole", generations=generations))
    assert bits_of(folder / "run") == bits_of(folder / "whole")


def test_a_killed_driver_without_ray(material: Material, tmp_path: Path) -> None:
    with driver(material.settings(tmp_path / "run", generations=LONG), tmp_path) as process:
        await_line(process, "generation 1/")
        process.kill()
    check_same(material, tmp_path)


@pytest.mark.parametrize(
    ("number", "code", "stopped"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_driver_without_ray_that_is_asked_to_stop(
    material: Material, tmp_path: Path, number: int, code: int, stopped: str
) -> None:
    with driver(material.settings(tmp_path / "run", generations=LONG), tmp_path) as process:
        await_line(process, "generation 1/")
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code
    run = tmp_path / "run"
    kept = f"{stopped}; {run} keeps every finished generation: the same command goes on with it"
    assert said.splitlines()[-1] == kept
    assert "Traceback" not in said
    check_same(material, tmp_path)


@pytest.mark.cluster
def test_a_killed_driver_leaves_no_ray_behind(ray_home: Path, material: Material, tmp_path: Path) -> None:
    with driver(material.settings(tmp_path / "run", generations=LONG, workers=2), tmp_path) as process:
        await_line(process, "generation 1/")
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [member for member in family if "WorkerActor" in " ".join(member.cmdline())]
        assert len(workers) == 2
        process.kill()
        process.wait()
        # Left alone, Ray's workers would outlive their driver by a minute, and hold their device's memory.
        assert psutil.wait_procs(workers, timeout=30)[1] == []
        # Its spare processes, which hold nothing, do so.
        for spare in psutil.wait_procs(family, timeout=5)[1]:
            spare.kill()
    check_same(material, tmp_path, workers=2)


@pytest.mark.cluster
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_driver_that_is_asked_to_stop_gives_its_workers_back(
    ray_home: Path, material: Material, tmp_path: Path, number: int, code: int
) -> None:
    with driver(material.settings(tmp_path / "run", generations=LONG, workers=2), tmp_path) as process:
        await_line(process, "generation 1/")
        family = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # Ctrl-C reaches every process of the terminal's group
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        assert psutil.wait_procs(family, timeout=120)[1] == []
    assert said.splitlines()[-1].endswith("the same command goes on with it")
    assert "Traceback" not in said
    check_same(material, tmp_path)


@pytest.mark.cluster
def test_a_worker_killed_under_the_command_line_is_told_in_a_line(
    ray_home: Path, material: Material, tmp_path: Path
) -> None:
    with driver(material.settings(tmp_path / "run", generations=LONG, workers=2), tmp_path) as process:
        await_line(process, "generation 1/")
        workers = [
            member
            for member in psutil.Process(process.pid).children(recursive=True)
            if "WorkerActor" in " ".join(member.cmdline())
        ]
        assert len(workers) == 2
        workers[0].kill()
        said = await_line(process, "worker ")
        assert f"(process {workers[0].pid}) was lost, its work is done again: " in said[-1]
        await_line(process, "generation ")
        process.kill()
    check_same(material, tmp_path)
