"""What happens, as lines of JSON: for whoever collects the logs of many jobs.

Holds: `JsonProgress`.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from evoray.log_line import json_line
from evoray.run.journal import GenerationRow
from evoray.run.progress import Progress

_WORKER = re.compile(r"worker (\d+)\b")
"""How notes about one worker begin."""


class JsonProgress(Progress):
    """Writes what it is told, a line each. Every line has the run, those of a search also the generation at work.

    Args:
        run: place of the run, or what else is made.
        stream: where to; standard error by default.
    """

    def __init__(self, run: str, stream: IO[str] | None = None) -> None:
        self._run, self._stream = run, stream or sys.stderr
        self._generation: int | None = None

    def _write(self, event: str, level: str = "info", **fields: Any) -> None:
        at = {} if self._generation is None else {"generation": self._generation}
        print(json_line(event, level, run=self._run, **at, **fields), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        about = _WORKER.match(text)
        of_worker = {} if about is None else {"worker": int(about[1])}
        self._write("note", "info" if about is None else "warning", **of_worker, text=" ".join(text.split()))

    def stage(self, name: str) -> Callable[[float], None]:
        began = time.monotonic()

        def share(done: float) -> None:
            if done >= 1.0:
                self._write("stage", name=name, seconds=round(time.monotonic() - began, 3))

        return share

    def generation(self, row: GenerationRow, generations: int) -> None:
        self._generation = row.generation
        self._write(
            "generation",
            generations=generations,
            fitness=row.fitness,
            parent_fitness=row.parent_fitness,
            accepted=row.accepted,
            bits=row.bits,
            bpw=row.bpw,
            size=row.size,
            sparsity=row.sparsity,
            candidates=row.candidates,
            tokens=row.tokens,
            seconds=round(row.seconds, 3),
            busy_seconds=[round(seconds, 3) for seconds in row.busy_seconds],
            lost_workers=row.lost_workers,
            set_aside=len(row.set_aside),
        )
        self._generation = row.generation + 1

    def concluded(self, best: Mapping[str, Any]) -> None:
        self._generation = best["generation"]
        self._write("concluded", bits=best["bits"], kl=best["held_out"]["candidates"]["found"]["kl"])

    def layer(self, done: int, total: int, name: str) -> None:
        self._write("layer", done=done, total=total, layer=name)
