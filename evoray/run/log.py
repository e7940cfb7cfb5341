"""The log of a run: what a person was told, with the time, kept in the run directory.

Holds: `DriverLog`.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from evoray.errors import EvorayError
from evoray.run.journal import GenerationRow
from evoray.run.progress import Progress
from evoray.store import Location

LOG = "logs/driver.log"


class DriverLog(Progress):
    """Tells another progress what it is told, and writes it down.

    A local file gets each line at once. Object storage knows no appending: there the file is written again at the end
    of each generation and of the driver's work. A log that can't be written ends no run.

    Args:
        location: of the file.
        progress: told everything.
    """

    def __init__(self, location: Location, progress: Progress) -> None:
        self._location, self._progress = location, progress
        self._lines: list[str] = []
        self._before: bytes | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._write(f"ended by {type(error).__name__}: {error}".rstrip(": "))
        self._flush()

    def note(self, text: str) -> None:
        self._write(text)
        self._progress.note(text)

    def stage(self, name: str) -> Callable[[float], None]:
        told, began = self._progress.stage(name), time.monotonic()

        def share(done: float) -> None:
            if done >= 1.0:
                self._write(f"{name}: {time.monotonic() - began:.1f} s")
            told(done)

        return share

    def step(self, name: str) -> Callable[[float], None]:
        return self._progress.step(name)

    def generation(self, row: GenerationRow, generations: int) -> None:
        self._write(
            f"generation {row.generation}/{generations}: fitness {row.fitness:.6f}, "
            f"{'accepted' if row.accepted else 'parent kept'}, bits {row.bits:.4f}, {row.candidates} candidates, "
            f"{row.tokens} tokens, {row.seconds:.1f} s, {row.lost_workers} workers lost"
        )
        self._flush()
        self._progress.generation(row, generations)

    def concluded(self, best: Mapping[str, Any]) -> None:
        self._progress.concluded(best)

    def layer(self, done: int, total: int, name: str) -> None:
        self._progress.layer(done, total, name)

    def keep_log(self, name: str, data: bytes) -> None:
        with contextlib.suppress(EvorayError):
            (self._location.parent / name).write_bytes(data)
        self._progress.keep_log(name, data)

    def _write(self, text: str) -> None:
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(text.split())}\n"
        path = self._location.local_path
        if path is None:
            self._lines.append(line)
            return
        with contextlib.suppress(OSError, EvorayError):
            self._location.allow_writing()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line)

    def _flush(self) -> None:
        if not self._lines:
            return
        with contextlib.suppress(EvorayError):
            if self._before is None:
                try:
                    self._before = self._location.read_bytes()
                except FileNotFoundError:
                    self._before = b""
            self._location.write_bytes(self._before + "".join(self._lines).encode())
