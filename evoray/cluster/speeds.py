"""How fast workers are, from how long they took. Pure logic: no clock.

Holds: `Speeds`.
"""

import statistics
from collections.abc import Hashable

Worker = Hashable

KEPT = 0.5
"""Share of what was known of a worker that is kept when it answers once more: its first answers are slow ones, since
they fetch variants, and clocks change."""

ERROR_KEPT = 0.9
"""The same of how far off predictions are, which is one number for all workers."""


class Speeds:
    """Units of work per second, worker by worker. What a unit is, is the caller's business.

    Attributes:
        error: how far off predictions by these speeds were lately, as a share of the time; 1 before there are any.
    """

    def __init__(self) -> None:
        self.error = 1.0
        self._seen: dict[Worker, tuple[float, float]] = {}
        self._typical: float | None = None

    def tell(self, worker: Worker, units: float, seconds: float) -> None:
        """A worker took so long for so much."""
        if units <= 0 or seconds <= 0:
            return
        if worker in self._seen:
            done, took = self._seen[worker]
            off = min(1.0, abs(seconds * done / (units * took) - 1))
            self.error = ERROR_KEPT * self.error + (1 - ERROR_KEPT) * off
        done, took = self._seen.get(worker, (0.0, 0.0))
        self._seen[worker] = (KEPT * done + units, KEPT * took + seconds)
        self._typical = None

    def forget(self, worker: Worker) -> None:
        """A worker begins anew, maybe elsewhere."""
        self._seen.pop(worker, None)
        self._typical = None

    def of(self, worker: Worker) -> float | None:
        """Of this worker, or the median of the others where nothing is known of it; None where nothing is known."""
        if worker in self._seen:
            done, took = self._seen[worker]
            return done / took
        if self._typical is None and self._seen:
            self._typical = statistics.median(done / took for done, took in self._seen.values())
        return self._typical
