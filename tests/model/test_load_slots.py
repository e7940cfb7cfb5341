"""Places to load in: never more holders than places, and a dead holder's place is free again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from evoray.model import slots
from evoray.model.slots import LoadSlots


def test_no_more_holders_than_places(tmp_path: Path) -> None:
    first, second, third = (LoadSlots(2, tmp_path) for _ in range(3))
    assert first.acquire()
    assert second.acquire()
    assert not third.acquire(blocking=False)
    first.release()
    assert third.acquire(blocking=False)
    third.release()
    second.release()


def test_a_place_is_given_back_when_loading_fails(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), LoadSlots(1, tmp_path):
        assert not LoadSlots(1, tmp_path).acquire(blocking=False)
        raise RuntimeError("loading failed")
    assert LoadSlots(1, tmp_path).acquire(blocking=False)


def test_waiting_ends_when_a_place_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = LoadSlots(1, tmp_path)
    holder.acquire()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            holder.release()

    monkeypatch.setattr(slots.time, "sleep", sleep)
    with LoadSlots(1, tmp_path):
        assert len(waits) == 3


def test_a_dead_process_holds_no_place(tmp_path: Path) -> None:
    # The file alone, so that the child need not import torch.
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, runpy, sys\n"
            "place = runpy.run_path(sys.argv[1])['LoadSlots'](1, sys.argv[2])\n"
            "other = runpy.run_path(sys.argv[1])['LoadSlots'](1, sys.argv[2])\n"
            "print(place.acquire(), other.acquire(blocking=False), flush=True)\n"
            "os._exit(9)\n",
            slots.__file__,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout.split() == ["True", "False"], child.stderr
    assert child.returncode == 9
    assert LoadSlots(1, tmp_path).acquire(blocking=False)


def test_zero_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slots 0"):
        LoadSlots(0, tmp_path)
