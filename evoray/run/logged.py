"""A search that is told to loggers as well, without depending on them.

Holds: `LoggedProgress`, `lacking`, `figures_of`, `result_figures`.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from evoray.errors import EvorayError
from evoray.run.journal import GenerationRow
from evoray.run.loggers import Log, LogPlace, open_log
from evoray.run.progress import Progress
from evoray.store import Location


def figures_of(row: GenerationRow, candidate_tokens: int) -> dict[str, float]:
    """What is logged of a generation.

    Args:
        row: of the journal.
        candidate_tokens: of all generations up to this one.
    """
    figures = {
        "fitness": row.fitness,
        "parent_fitness": row.parent_fitness,
        "bits": row.bits,
        "bpw": row.bpw,
        "size": row.size,
        "sparsity": row.sparsity,
        "candidate_tokens": candidate_tokens,
        "tokens_per_second": row.tokens / row.seconds if row.seconds else None,
        "lost_workers": row.lost_workers,
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def result_figures(best: Mapping[str, Any]) -> dict[str, float]:
    """What is logged of a judged result: how it does on held-out text, and what it has to beat.

    Args:
        best: what best.json holds.
    """
    return {
        f"held_out/{candidate}/{name}": float(judged[name])
        for candidate, judged in best["held_out"]["candidates"].items()
        for name in ("kl", "perplexity", *(() if candidate == "found" else ("found_minus_this_kl", "interval_95")))
    }


@dataclass(frozen=True)
class _Written:
    """What RUN/logs/NAME.json says of a log: the library's id, and the last generation and result in it."""

    id: str | None = None
    generation: int = -1
    result: int = -1


class LoggedProgress(Progress):
    """Tells another progress what it is told, and loggers the figures. A context manager: logs are open inside.

    A log goes on where it ended; what it lacks of the journal is written first, so that nothing is missing after a
    crash, or where a run gets a logger later. A logger that fails is left out from then on, and a note says so.

    Args:
        names: of the loggers.
        run: the run directory.
        settings: of the run, resolved.
        rows: of the journal so far.
        progress: told everything.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: Location,
        settings: Mapping[str, Any],
        rows: Sequence[GenerationRow],
        progress: Progress,
    ) -> None:
        self._names, self._run, self._settings, self._progress = tuple(dict.fromkeys(names)), run, settings, progress
        self._rows, self._tokens = tuple(rows), 0
        self._logs: dict[str, Log] = {}
        self._written: dict[str, _Written] = {}
        self._concluded = False

    def __enter__(self) -> Self:
        try:
            for name in self._names:
                there = _state(self._run, name)
                log = open_log(name, LogPlace(self._run, self._settings, there.id, there.generation))
                self._logs[name], self._written[name] = log, there
                self._keep(name, id=log.id)
            for row in self._rows:
                self._write_generation(row)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()

    def note(self, text: str) -> None:
        self._progress.note(text)

    def stage(self, name: str) -> Callable[[float], None]:
        return self._progress.stage(name)

    def step(self, name: str) -> Callable[[float], None]:
        return self._progress.step(name)

    def layer(self, done: int, total: int, name: str) -> None:
        self._progress.layer(done, total, name)

    def keep_log(self, name: str, data: bytes) -> None:
        self._progress.keep_log(name, data)

    def generation(self, row: GenerationRow, generations: int) -> None:
        self._progress.generation(row, generations)
        self._write_generation(row)

    def concluded(self, best: Mapping[str, Any]) -> None:
        self._progress.concluded(best)
        self._concluded = True
        generation = int(best["generation"])
        for name in tuple(self._logs):
            if self._written[name].result < generation:
                with self._sparing(name):
                    self._logs[name].conclude(generation, result_figures(best))
                    self._keep(name, result=generation)

    def _write_generation(self, row: GenerationRow) -> None:
        self._tokens += row.tokens
        for name in tuple(self._logs):
            if self._written[name].generation < row.generation:
                with self._sparing(name):
                    self._logs[name].write(row.generation, figures_of(row, self._tokens))
                    self._keep(name, generation=row.generation)

    def _keep(self, name: str, **changes: Any) -> None:
        """Notes what a log has."""
        self._written[name] = replace(self._written[name], **changes)
        (self._run / _file(name)).write_bytes(json.dumps(asdict(self._written[name])).encode())

    def _close(self) -> None:
        for name, log in tuple(self._logs.items()):
            with self._sparing(name):
                log.close(self._concluded)

    @contextlib.contextmanager
    def _sparing(self, name: str) -> Iterator[None]:
        """Spares the search what a logger raises; it is not asked again."""
        try:
            yield
        except Exception as error:
            self._logs.pop(name, None)
            said = " ".join(f"{type(error).__name__}: {error}".split())
            self.note(f"note: --log-to {name} failed ({said}); the search goes on without it")


def lacking(names: Sequence[str], run: Location, best: Mapping[str, Any]) -> tuple[str, ...]:
    """Those loggers that have not been told the result of a finished run."""
    return tuple(name for name in names if _state(run, name).result < int(best["generation"]))


def _state(run: Location, name: str) -> _Written:
    try:
        return _Written(**json.loads((run / _file(name)).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, EvorayError):
        return _Written()  # none yet, or damaged: then the log begins anew


def _file(name: str) -> str:
    return f"logs/{name}.json"
