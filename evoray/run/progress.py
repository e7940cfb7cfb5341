"""What a person sees while something long is at work.

Holds: `Progress` (says nothing; for programs), `RichProgress` (for terminals, pipes and logs).
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from evoray.run.journal import GenerationRow


class Progress:
    """Says nothing. Subclasses say what they are told."""

    def note(self, text: str) -> None:
        """A line worth reading."""

    def stage(self, name: str) -> Callable[[float], None]:
        """A stage begins; what is returned is told the share that is done, 0 to 1."""
        return lambda share: None

    def step(self, name: str) -> Callable[[float], None]:
        """The same for what is too small for a line: it is seen while it lasts, on terminals only."""
        return lambda share: None

    def starting(self, workers: int | str | None) -> Callable[[float], None]:
        """Workers are started, or with 0 the model is loaded in this process."""
        if workers != 0:
            self.note("starting workers")
        return self.step("loading the model")

    def generation(self, row: GenerationRow, generations: int) -> None:
        """A generation was journaled."""

    def concluded(self, best: Mapping[str, Any]) -> None:
        """The result was judged; `best` is what best.json holds."""

    def layer(self, done: int, total: int, name: str) -> None:
        """A layer of a build is finished."""

    def keep_log(self, name: str, data: bytes) -> None:
        """The end of a worker's log, to be kept with the run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        return None


class RichProgress(Progress):
    """Bars on a terminal; in a pipe a line a generation and a line a stage.

    Args:
        console: where to; standard error by default, so that standard output stays clean.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._step: TaskID | None = None
        self._seconds: list[float] = []
        self._layers: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    def _update(self, name: str, done: float, total: float) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, visible=done < total)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str) -> Callable[[float], None]:
        began = time.monotonic()

        def share(done: float) -> None:
            self._update(name, done, 1.0)
            if done >= 1.0:
                self.note(f"{name}: {time.monotonic() - began:.1f} s")

        self._update(name, 0.0, 1.0)
        return share

    def step(self, name: str) -> Callable[[float], None]:
        if self._step is not None:
            self._bars.remove_task(self._step)
        self._step = task = self._bars.add_task(name, total=1.0)
        return lambda done: self._bars.update(task, completed=done, visible=done < 1.0)

    def generation(self, row: GenerationRow, generations: int) -> None:
        self._seconds.append(row.seconds)
        recent = self._seconds[-5:]
        left = (generations - row.generation) * sum(recent) / len(recent)
        rate = row.tokens / row.seconds if row.seconds else 0.0
        self.note(
            f"generation {row.generation}/{generations}  fitness {row.fitness:.6f}{'' if row.accepted else ' ='}  "
            f"bits {row.bits:.4f}  {rate:,.0f} candidate tokens/s  {_duration(left)} left"
        )
        self._update("generations", row.generation, max(1, generations))

    def layer(self, done: int, total: int, name: str) -> None:
        self._update("layers", done, total)
        began, already = self._layers = self._layers or (time.monotonic(), done)
        if not self._console.is_terminal and (done == total or done % max(1, total // 10) == 0):
            seconds = (time.monotonic() - began) * (total - done) / (done - already) if done > already else None
            self.note(f"{done}/{total} layers" + (f", {_duration(seconds)} left" if seconds else ""))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
