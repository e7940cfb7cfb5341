"""How long each worker had work, seen from the driver.

Holds: `BusyTime`.
"""

import time
from collections.abc import Callable


class BusyTime:
    """Adds up, for each worker, the time in which it had at least one call that was not answered.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[int, float] = {}
        self._calls: dict[int, int] = {}
        self._since: dict[int, float] = {}

    def begin(self, worker: int) -> None:
        """A worker is given a call."""
        if not self._calls.get(worker):
            self._since[worker] = self._clock()
        self._calls[worker] = self._calls.get(worker, 0) + 1

    def end(self, worker: int) -> None:
        """A worker answered a call."""
        self._calls[worker] -= 1
        if not self._calls[worker]:
            self._count(worker)

    def forget(self, worker: int) -> None:
        """A worker is lost with all its calls."""
        if self._calls.get(worker):
            self._calls[worker] = 0
            self._count(worker)

    def _count(self, worker: int) -> None:
        self._seconds[worker] = self._seconds.get(worker, 0.0) + self._clock() - self._since[worker]

    def take(self) -> tuple[float, ...]:
        """Seconds since this was last asked, of each worker that ever had work, in their order.

        Of calls that are under way counts what has passed: they may belong to what was asked for before, and go on.
        """
        for worker, calls in self._calls.items():
            if calls:
                self._count(worker)
                self._since[worker] = self._clock()
        found = tuple(self._seconds[worker] for worker in sorted(self._seconds))
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return found
