"""What a measurement takes, by one of two clocks.

Holds: `Clock`, `Timed`, `interleaved`.

Wall time is what a user waits. CPU time, of all threads of the processes concerned, is what is left to compare on a
machine where others compute as well: whoever takes a core away takes wall time from one side of a pair.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import psutil
import torch

Result = TypeVar("Result")


class Clock(StrEnum):
    """Which time is taken."""

    wall = "wall"
    cpu = "cpu"

    def time(self, call: Callable[[], Result], workers: Sequence[int] = ()) -> tuple[float, Result]:
        """Seconds that a call takes, and its result.

        Args:
            call: waits by itself for what it starts, but for kernels of a GPU.
            workers: other processes (their ids) that work for it.
        """
        began = self._now(workers)
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._now(workers) - began, result

    def _now(self, workers: Sequence[int]) -> float:
        if self is Clock.wall:
            return time.perf_counter()
        others = [psutil.Process(worker).cpu_times() for worker in workers]
        return time.process_time() + sum(used.user + used.system for used in others)


@dataclass(frozen=True)
class Timed:
    """Two sides of a comparison, timed one after the other several times.

    Attributes:
        ours, theirs: seconds of each pair.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """How many times faster our side is, in each pair."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def cells(self, candidate_tokens: int) -> list[str]:
        """Median ratio, range of it, and candidate tokens per second of both sides."""
        rates = [candidate_tokens / statistics.median(seconds) for seconds in (self.ours, self.theirs)]
        return [
            f"{statistics.median(self.ratios):.2f}",
            f"{min(self.ratios):.2f} to {max(self.ratios):.2f}",
            *(f"{rate:,.0f}" for rate in rates),
        ]


def interleaved(
    pairs: int,
    ours: Callable[[], tuple[float, Result]],
    theirs: Callable[[], tuple[float, Result]],
    check: Callable[[Result, Result], None],
) -> Timed:
    """Times both sides in turn.

    Args:
        pairs: how many times each.
        ours, theirs: the two sides; each returns its seconds and what it measured.
        check: is given what ours and theirs measured; fails where that is not the same.
    """
    seconds: list[tuple[float, float]] = []
    for _ in range(pairs):
        slow, expected = theirs()
        fast, found = ours()
        check(found, expected)
        seconds.append((fast, slow))
    fast_all, slow_all = zip(*seconds, strict=True)
    return Timed(fast_all, slow_all)
