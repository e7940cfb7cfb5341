"""Which driver may write to a run directory, or a sweep's folder: the one with the highest number.

Holds: `Fence`, `FencedError`, `Holder`.

A driver takes the next number by a file `fence/NUMBER-TOKEN.json`, which it writes again every few seconds as a sign of
life. Before anything appears in the folder it looks for a higher number: where there is one, somebody took the folder
over, and this driver ends. Storage knows no condition on a write, so one request lies between the look and the
appearance. What slips through there belongs to the same run: it is measured to the same bits, and the next commit of
whoever took over replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from evoray.errors import EvorayError
from evoray.store import Location

FENCE = "fence"

BEAT = 10.0
"""Seconds between signs of life."""

STALE = 60.0
"""Seconds without one after which a driver counts as dead."""

LOOK = 2.0
"""Seconds between looks whether it gives one."""


class FencedError(EvorayError):
    """Another driver took the folder over. Nothing was written since."""


@dataclass(frozen=True)
class Holder:
    """What a driver's file says.

    Attributes:
        host: of the driver.
        process: its number there.
        space: where that number means this process: the start of the system, and the namespace of processes.
        locked: it has the lock of the folder, so while it lives nobody else can.
        time: of the last sign of life, seconds since 1970.
        ended: it left the folder by itself.
    """

    host: str
    process: int
    space: str
    locked: bool
    time: float
    ended: bool = False

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def lives(self) -> bool:
        """Whether it seems to be at work."""
        if self.ended or time.time() - self.time >= STALE:
            return False
        if self.space and self.space == process_space():
            # Nothing has to be waited for where the system knows.
            with contextlib.suppress(PermissionError):
                try:
                    os.kill(self.process, 0)
                except ProcessLookupError:
                    return False
        return True


def process_space() -> str:
    """Names where process numbers mean what they mean here; empty where the system doesn't tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class Fence:
    """This driver's number in a folder.

    Args:
        place: the folder.
        what: to call it in messages.
    """

    def __init__(self, place: Location, what: str = "run directory") -> None:
        self._place, self._what, self._folder = place, what, place / FENCE
        self._name = ""
        self._fenced: str | None = None
        self._locked = False
        self._stop = threading.Event()
        self._beats: threading.Thread | None = None

    def holder(self) -> Holder | None:
        """Who had the highest number last; None where nobody did, or no driver that lives wrote its file."""
        names = self._names()
        return self._read(names[-1]) if names else None

    def living(self, note: Callable[[str], None]) -> Holder | None:
        """The driver that is at work. One that may be is waited for, until it gives a sign of life or counts as dead.

        A job that was killed is often submitted again at once, by a person or by KubeRay.

        Args:
            note: told of the wait.
        """
        first = self.holder()
        if first is None or not first.lives():
            return None
        left = min(STALE, STALE - (time.time() - first.time))
        note(f"waiting up to {left:.0f} s: {first} used this {self._what}, and may live")
        until = time.monotonic() + left
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))
            now = self.holder()
            if now is None or not now.lives():
                return None  # it ended meanwhile
            if now != first:
                return now
        return None

    def take(self, *, locked: bool) -> bool:
        """Takes the next number, which ends the driver that had the last one.

        Args:
            locked: this process has the lock of the folder.

        Returns:
            Whether it worked; another driver may have taken a number at the same moment.
        """
        before = self._names()
        number = int(before[-1].partition("-")[0]) + 1 if before else 1
        self._name, self._locked = f"{number:08d}-{secrets.token_hex(4)}.json", locked
        self._write()
        if self._names()[-1] != self._name:
            (self._folder / self._name).delete()
            return False
        for name in before:
            (self._folder / name).delete()
        self._beats = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._beats.start()
        return True

    def check(self) -> None:
        """Sees that this driver may still write.

        Raises:
            FencedError: another one took the folder over.
            UserError, EvorayError: the folder can't be read.
        """
        if self._fenced is None:
            names = self._names()
            if names and names[-1] > self._name:
                self._fenced = str(self._read(names[-1]) or "another driver")
        if self._fenced is not None:
            raise FencedError(
                f"{self._what} {self._place} was taken over by {self._fenced}; this driver stops and writes nothing "
                "more"
            )

    def release(self) -> None:
        """Gives the number back, unless it is lost already."""
        if self._beats is None:
            return
        self._stop.set()
        # A sign of life that is being written now must not appear after the last one.
        self._beats.join()
        self._beats = None
        # Whatever ended the work says more than that its end could not be told.
        with contextlib.suppress(EvorayError):
            self.check()
            self._write(ended=True)

    def _names(self) -> list[str]:
        return [name for name in self._folder.list() if name.partition("-")[0].isdecimal() and name.endswith(".json")]

    def _read(self, name: str) -> Holder | None:
        try:
            return Holder(**json.loads((self._folder / name).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _write(self, ended: bool = False) -> None:
        mine = Holder(platform.node(), os.getpid(), process_space(), self._locked, time.time(), ended)
        (self._folder / self._name).write_bytes(json.dumps(asdict(mine)).encode())

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                self.check()
                self._write()
            except FencedError:
                return
            except EvorayError:
                continue  # the next one may get through; the run itself reports storage that stays away
