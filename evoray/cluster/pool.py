"""What a driver sees of its workers: losses of candidates on batches, wherever they are computed.

Holds: `Pool`, `LocalPool`, `say`.

Legend: N candidates, L layers, B blocks over all batches.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from evoray.cluster.ahead import Ahead
from evoray.cluster.busy import BusyTime
from evoray.cluster.worker import DeviceRecord, Worker, WorkerSpec

if TYPE_CHECKING:
    from evoray.evaluator import Work
    from evoray.fitness import Fitness, TeacherBlock


def say(text: str) -> None:
    """Where notes of a pool go when nobody asks for them: to logging, as warnings."""
    logging.getLogger("evoray").warning(text)


class Pool(ABC):
    """Workers that measure. Use it as a context manager; `close` gives everything back.

    Attributes:
        workers: how many there are, 0 for the driver's own process.
        record: what the bits of its losses depend on.
        notes: which short cuts the model does not allow.
        named_aside: candidates that kill workers, as tuples of row entries. Their losses are infinite.
        lost: how many times a worker was lost.
        busy: how long each had work.
    """

    workers: int
    record: DeviceRecord
    notes: tuple[str, ...]

    def __init__(self) -> None:
        self.named_aside: set[tuple[int, ...]] = set()
        self.lost = 0
        self.busy = BusyTime()
        self.at(None)

    def at(self, run: str | None, generation: int | None = None) -> None:
        """What log lines of workers say from the next call on, beside their text. No loss depends on it.

        Args:
            run: place of the run.
            generation: that is at work.
        """
        said = {"run": run, "generation": generation}
        self._at = json.dumps({name: value for name, value in said.items() if value is not None})

    def measure(
        self,
        rows_NL: np.ndarray,
        works: Sequence[Work],
        fitness: Fitness,
        progress: Callable[[float], None] | None = None,
        ahead: Sequence[Ahead] = (),
    ) -> np.ndarray:
        """The loss of every candidate on every block.

        Args:
            rows_NL: int8, one row per candidate, as `Space.rows` gives them.
            works: the batches.
            fitness: what is measured.
            progress: told the share that is done, 0 to 1.
            ahead: what may be asked for next, for workers that have nothing else to do. It changes no loss.

        Returns:
            float64 [N, B]: sums in nats over each block's counted tokens, blocks in the order of the batches. Infinite
            for a candidate whose loss is NaN, or that was set aside because it kills workers.

        Raises:
            UserError: a variant is missing or corrupt.
            EvorayError: workers fail for a reason of their own.
        """
        rows_NL = np.asarray(rows_NL, dtype=np.int8)
        alive = [index for index, row in enumerate(rows_NL) if tuple(row.tolist()) not in self.named_aside]
        losses_NB = np.full((len(rows_NL), sum(len(work.cuts) for work in works)), np.inf)
        if alive:
            losses_NB[alive] = self._measure(rows_NL[alive], works, fitness, progress, ahead)
        return losses_NB

    @abstractmethod
    def _measure(
        self,
        rows_NL: np.ndarray,
        works: Sequence[Work],
        fitness: Fitness,
        progress: Callable[[float], None] | None,
        ahead: Sequence[Ahead],
    ) -> np.ndarray: ...

    @abstractmethod
    def each(
        self,
        works: Sequence[Work],
        method: str,
        *arguments: Any,
        progress: Callable[[float], None] | None = None,
    ) -> list[Any]:
        """What a method of the workers' evaluators says of every batch, spread over them.

        Args:
            works: the batches.
            method: one of `MEASUREMENTS`.
            arguments: of the method, behind the batch.
            progress: told the share that is done, 0 to 1.

        Returns:
            A result per batch, in their order.

        Raises:
            EvorayError: no such method, or workers fail for a reason of their own.
        """

    def teach(
        self,
        works: Sequence[Work],
        fitness: Fitness | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[list[TeacherBlock]]:
        """The base model's part of a measure, per batch and block; by default of the whole KL divergence.

        None and not `Fitness.kl`, because that would bring torch in before a worker has set its environment.
        """
        return self.each(works, "teach", *(() if fitness is None else (fitness,)), progress=progress)

    def publish(self, run: str, figures: Mapping[str, float], busy: Sequence[float] = ()) -> None:  # noqa: B027
        """Shows figures of a run at work to whoever watches the cluster; see `RunMetrics`. Without Ray nobody does."""

    def close(self) -> None:  # noqa: B027
        """Gives back what the pool holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class LocalPool(Pool):
    """One evaluator in the driver's own process. No Ray.

    Args:
        spec: how to build it.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__()
        self.workers = 0
        self._worker = Worker(spec)
        self.record = self._worker.record
        self.notes = self._worker.notes

    def _measure(
        self,
        rows_NL: np.ndarray,
        works: Sequence[Work],
        fitness: Fitness,
        progress: Callable[[float], None] | None,
        ahead: Sequence[Ahead],
    ) -> np.ndarray:
        parts = []
        for done, work in enumerate(works, start=1):
            self.busy.begin(0)
            try:
                losses_NB = self._worker.losses(rows_NL, work, fitness)
            finally:
                self.busy.end(0)
            parts.append(np.where(np.isnan(losses_NB), np.inf, losses_NB))
            if progress:
                progress(done / len(works))
        return np.concatenate(parts, axis=1)

    def each(
        self,
        works: Sequence[Work],
        method: str,
        *arguments: Any,
        progress: Callable[[float], None] | None = None,
    ) -> list[Any]:
        results = []
        for done, work in enumerate(works, start=1):
            results.append(self._worker.each(method, work, *arguments))
            if progress:
                progress(done / len(works))
        return results
