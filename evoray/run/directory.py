"""The folder of a run: who works in it, with which settings, and where its parts lie.

Holds: `RunDirectory`, `check_folder`, `read_object`, `differences`, `read_lessons`, `write_lessons`.
"""

import io
import json
import zipfile
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import numpy as np
import yaml

from evoray.errors import UserError
from evoray.evolve import Lessons
from evoray.run.held import HeldFolder
from evoray.run.journal import GENERATIONS
from evoray.space import Genotype
from evoray.store import Location
from evoray.store.manifest import BUILDING, MANIFEST

SETTINGS, IDENTITY, DEVICE, BEST = "settings.yaml", "identity.json", "device.json", "best.json"
START = "start.json"
TAUGHT, LEARNED = "taught.npz", "learned.npz"
"""What a search's proposals began with, and what they had learned when it ended."""
SWEEP = "sweep.json"
"""In the folder of a sweep, whose run directories lie under it."""

HOLDS = {MANIFEST: "a store", BUILDING: "a store", SWEEP: "a sweep", IDENTITY: "a run"}
"""What a folder is by a file in it."""


def check_folder(location: Location, wanted: str, option: str) -> None:
    """Sees that a folder is not taken by something else: whoever reads it could not tell what it is.

    Args:
        location: the folder.
        wanted: what it shall hold, one of `HOLDS`. Where it does already, all is well.
        option: that named it.

    Raises:
        UserError: it is something else.
    """
    held = {what for name, what in HOLDS.items() if (location / name).exists()}
    if held and wanted not in held:
        raise UserError(f"{option} {location} holds {min(held)}, and {wanted} needs a folder of its own; give another")


class RunDirectory(HeldFolder):
    """A run directory that this process works in; see `HeldFolder`.

    Args:
        place: folder or URI.
        note: told of a wait.
        take_over: take it from a driver that seems to be at work, and wait for none.

    Raises:
        UserError: another driver works in it, or it is a store or a sweep.
    """

    def __init__(
        self, place: str | Location, note: Callable[[str], None] = lambda text: None, take_over: bool = False
    ) -> None:
        super().__init__(place, "run directory", note, take_over, parts=("evaluations", "teacher"))

    def __enter__(self) -> Self:
        check_folder(self.location, "a run", "--run")
        return super().__enter__()

    @property
    def measured(self) -> bool:
        """Whether it holds a result. What a try left that ended before its first one binds nobody."""
        return (self / GENERATIONS).exists() or (self / BEST).exists()

    def settle(self, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Takes the directory for this run, or sees that it holds the same one.

        Args:
            identity: what decides the result; JSON values.
            settings: all settings as resolved, for people.

        Raises:
            UserError: it holds results of another run; the message names the keys that differ.
        """
        theirs = read_object(self / IDENTITY)
        mine = json.loads(json.dumps(identity))
        if theirs is not None and self.measured and (differing := differences(theirs, mine)):
            raise UserError(
                f"run directory {self.location} holds another run ({'; '.join(differing)}); "
                "give the same settings to go on with it, or another --run"
            )
        if theirs != mine:
            (self / IDENTITY).write_bytes(json.dumps(mine, indent=1).encode())
        (self / SETTINGS).write_bytes(yaml.safe_dump(dict(settings), sort_keys=False).encode())

    def settle_device(self, record: Mapping[str, Any], allow_mixed: bool) -> None:
        """Sees that resumed work runs on the same kind of device, so that its losses are the same bits.

        Raises:
            UserError: another kind, and `allow_mixed` was not given.
        """
        there = read_object(self / DEVICE)
        if there is not None and self.measured:
            differing = [
                f"{key}: {there.get(key)} there, {record[key]} now" for key in record if there.get(key) != record[key]
            ]
            if differing and not allow_mixed:
                raise UserError(
                    f"run directory {self.location} was begun on another kind of worker ({'; '.join(differing)}); "
                    "use the same kind, or --allow-mixed to give up bit-equal losses"
                )
            return
        (self / DEVICE).write_bytes(json.dumps(dict(record), indent=1).encode())

    def start(self) -> Genotype | None:
        """Where a baseline let this run begin; None where it has not yet, or had no part in it."""
        found = read_object(self / START) if self.measured else None
        return tuple(found["genotype"]) if found is not None else None

    def start_tokens(self) -> int:
        """Candidate tokens that the baseline of the start took."""
        found = read_object(self / START)
        return int(found["candidate_tokens"]) if found is not None else 0

    def write_start(
        self, genotype: Genotype, baseline: str, candidate_tokens: int, lessons: Lessons | None = None
    ) -> None:
        """Keeps what a baseline found, so that resuming need not find it again, and what proposals begin with."""
        if lessons is not None:
            write_lessons(self / TAUGHT, lessons)
        elif (self / TAUGHT).exists():
            (self / TAUGHT).delete()
        found = {"baseline": baseline, "genotype": list(genotype), "candidate_tokens": candidate_tokens}
        (self / START).write_bytes(json.dumps(found, indent=1).encode())

    def taught(self) -> Lessons | None:
        """What proposals begin with, from the same writing as the start; None for nothing."""
        return read_lessons(self / TAUGHT)

    def write_best(self, best: Mapping[str, Any]) -> None:
        """Replaces best.json."""
        (self / BEST).write_bytes((json.dumps(best, indent=1, allow_nan=True) + "\n").encode())


def read_object(place: Location) -> dict[str, Any] | None:
    """A JSON object of a run; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        found = json.loads(place.read_bytes()) if place.exists() else None
    except ValueError:
        found = False
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{place} is damaged: no JSON object; delete it, or give another --run")
    return found


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """What of two identities is not the same, in words.

    Args:
        theirs, mine: of the run that is there, and of the one that is asked for.
        but: keys that don't count.
    """
    return [
        f"{key}: {_short(theirs.get(key))} there, {_short(mine.get(key))} now"
        for key in {**theirs, **mine}
        if key not in but and theirs.get(key) != mine.get(key)
    ]


def write_lessons(place: Location, lessons: Lessons) -> None:
    """Writes what proposals learned, bit for bit."""
    buffer = io.BytesIO()
    np.savez(buffer, **lessons)
    place.write_bytes(buffer.getvalue())


def read_lessons(place: Location) -> Lessons | None:
    """Reads what proposals learned; None where there is nothing.

    Raises:
        UserError: it is damaged.
    """
    if not place.exists():
        return None
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as read:
            return dict(read)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{place} is damaged; begin again in another run directory") from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
