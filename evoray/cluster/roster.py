"""What each worker has in hand, and when it will be through. Pure logic: no clock.

Holds: `Roster`, `Outlook`.
"""

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from evoray.cluster.speeds import Speeds

Worker = Hashable

BEYOND_COUNTING = 3.0
"""Times the expected time after which nobody counts on a worker any more, until it answers."""


class Costly(Protocol):
    """What a worker may hold."""

    @property
    def cost(self) -> float: ...


Held = TypeVar("Held", bound=Costly)


@dataclass(eq=False)
class _Entry(Generic[Held]):
    place: int
    items: deque[Held] = field(default_factory=deque)


class Roster(Generic[Held]):
    """The workers, what they hold in order, and since when each is at work at the first of it.

    Numbers are kept in arrays, by a place per worker, because with a thousand workers they are looked at after every
    answer.

    Args:
        speeds: of the workers; what is seen here is added.
    """

    def __init__(self, speeds: Speeds) -> None:
        self.speeds = speeds
        self._entries: dict[Worker, _Entry[Held]] = {}
        self._workers: list[Worker] = []
        self.active = np.zeros(0, dtype=bool)
        self.count = np.zeros(0, dtype=np.int64)
        self.cost = np.zeros(0)
        self.since = np.zeros(0)
        self.speed = np.zeros(0)

    def add(self, worker: Worker) -> None:
        """A worker comes, or comes back."""
        if worker not in self._entries:
            self._entries[worker] = _Entry(len(self._workers))
            self._workers.append(worker)
            for name in ("active", "count", "cost", "since", "speed"):
                before = getattr(self, name)
                setattr(self, name, np.append(before, np.zeros(1, dtype=before.dtype)))
        place = self._entries[worker].place
        self.active[place] = True
        self._note_speed(worker, place)

    def retire(self, worker: Worker) -> None:
        """A worker gets no more."""
        if worker in self._entries:
            self.active[self._entries[worker].place] = False

    def remove(self, worker: Worker) -> list[Held]:
        """A worker is gone; what it held."""
        if worker not in self._entries:
            return []
        entry = self._entries[worker]
        gone = list(entry.items)
        entry.items.clear()
        self.active[entry.place], self.count[entry.place], self.cost[entry.place] = False, 0, 0.0
        self.speeds.forget(worker)
        return gone

    def items(self, worker: Worker) -> deque[Held]:
        """What a worker holds, the first of it at work."""
        return self._entries[worker].items if worker in self._entries else deque()

    def give(self, worker: Worker, item: Held, now: float) -> None:
        """A worker gets one more."""
        entry = self._entries[worker]
        if not entry.items:
            self.since[entry.place] = now
        entry.items.append(item)
        self.count[entry.place] += 1
        self.cost[entry.place] += item.cost

    def take(self, worker: Worker, item: Held, now: float, seconds: float | None = None) -> bool:
        """A worker is through with one that it held; False where it does not hold it.

        Args:
            worker: see above.
            item: see above.
            now: the time.
            seconds: that it took; None to go by when it was given.
        """
        entry = self._entries.get(worker)
        if entry is None or item not in entry.items:
            return False
        if seconds is None and entry.items[0] is item:
            seconds = now - float(self.since[entry.place])
        if seconds is not None:
            self.speeds.tell(worker, item.cost, seconds)
            self._note_speed(worker, entry.place)
        entry.items.remove(item)
        self.count[entry.place] -= 1
        self.cost[entry.place] = sum(each.cost for each in entry.items)
        self.since[entry.place] = now
        return True

    def _note_speed(self, worker: Worker, place: int) -> None:
        self.speed[place] = self.speeds.of(worker) or math.nan

    def holding(self) -> list[Worker]:
        """Workers with something in hand."""
        return [self._workers[place] for place in np.flatnonzero(self.count).tolist()]

    def deadline(self, worker: Worker, least: float, times: float, unknown: float) -> float:
        """When it should have answered; infinite where it holds nothing.

        Args:
            worker: see above.
            least: seconds after it began, at least.
            times: the expected time, at least so often.
            unknown: seconds after it began where no speed is known.
        """
        entry, speed = self._entries.get(worker), self.speeds.of(worker)
        if entry is None or not entry.items:
            return math.inf
        within = unknown if speed is None else max(least, times * float(self.cost[entry.place]) / speed)
        return float(self.since[entry.place]) + within

    def began(self, worker: Worker) -> float:
        """When a worker began the first of what it holds."""
        return float(self.since[self._entries[worker].place]) if worker in self._entries else math.nan

    def worker(self, place: int) -> Worker:
        """Who has this place."""
        return self._workers[place]

    def outlook(self, now: float, waiting: float, *, per_item: float, missing: int) -> "Outlook":
        """What is to be expected.

        Args:
            now: the time.
            waiting: units of work that nobody has in hand.
            per_item: seconds between two items that are given, one after the other.
            missing: workers that are expected but are not here yet.
        """
        unknown = np.isnan(self.speed)
        known = not unknown.all()
        # Before anything is known all are alike.
        speed = self.speed
        if unknown.any():
            speed = np.where(unknown, np.nanmedian(speed) if known else 1.0, speed)
        busy = self.count > 0
        took = np.where(busy, now - self.since, 0.0)
        takes = self.cost / speed
        # Who is late by so much is expected to take as long again.
        ahead = takes - took if known else takes
        left = np.abs(ahead)
        counted = self.active & (took <= BEYOND_COUNTING * np.maximum(takes, 1e-3)) if known else self.active
        fastest = float(speed[counted].max()) if counted.any() else 1.0
        # Units that can be done until a time t: sum of speed x (t - start) over those that start before it.
        start = np.where(busy, np.minimum(left, takes), 0.0)
        idle = np.flatnonzero(self.active & ~busy)
        idle = idle[np.argsort(-speed[idle], kind="stable")]
        start[idle] = per_item * np.arange(len(idle))
        order = np.flatnonzero(counted)
        order = order[np.argsort(start[order], kind="stable")]
        together = np.cumsum(speed[order])
        ends = (waiting + np.cumsum(speed[order] * start[order])) / together
        if missing > 0 and len(order):
            ends *= together[-1] / (together[-1] + missing * together[-1] / len(order))
        end = float(ends.min()) if len(order) else math.inf
        return Outlook(known, len(order) <= 1 and not missing, speed, start, ahead, left, idle, end, fastest)


@dataclass(frozen=True)
class Outlook:
    """What is to be expected, by the places of a roster. Times are seconds from now.

    Attributes:
        known: whether anything was measured; if not, all workers are taken for alike, and seconds mean nothing.
        alone: whether there is but one worker that can be counted on, and no other is expected.
        speed: units per second.
        start: when each could begin something new.
        ahead: until each should be through with what it holds; less than zero for who is late.
        left: until each is through with what it holds, if it goes on as it did.
        idle: who holds nothing and may get something, the fastest first.
        end: when all is done, if all end together.
        fastest: speed of the fastest that can be counted on.
    """

    known: bool
    alone: bool
    speed: np.ndarray
    start: np.ndarray
    ahead: np.ndarray
    left: np.ndarray
    idle: np.ndarray
    end: float
    fastest: float

    def share(self, place: int) -> float:
        """Units that a worker can do between its start and the end."""
        return float(self.speed[place]) * (self.end - float(self.start[place]))
