"""Which worker does what, and what happens to the work of a lost one. Pure logic: no Ray, no clock.

Holds: `Item`, `Dispatcher`.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Worker = Hashable


@dataclass(frozen=True, eq=False)
class Item:
    """Some candidates on one batch: what one worker does in one call. Each call has an item of its own.

    Attributes:
        candidates: indexes into the caller's list, in the order in which prefixes are shared best.
        batch: index into the caller's batches.
        deaths: healthy workers that died while they worked at it.
    """

    candidates: tuple[int, ...]
    batch: int
    deaths: int = 0


class Dispatcher:
    """Spreads (candidates x batches) over workers that may vanish.

    The carrier tells it what happens (`add`, `done`, `lost`) and asks what is next (`next_for`). An item whose
    worker died alone is done again whole; when that kills a second worker it is cut in halves, until one candidate is
    left, which is set aside. An item under suspicion is given only to a worker that holds nothing else, so that nobody
    else is blamed and nobody else's work is lost. Workers drain for it only when nothing else waits, or one of them
    was lost and comes back with empty hands, as it does after each death that raised suspicion.

    Args:
        candidates: how many there are.
        blocks: blocks of each batch.
        order: candidates in the order that shares prefixes; default: as they are.
        workers: how many are expected; with it, items are cut so that each gets about four per stage.
        depth: items in flight per worker: one at work and the next at hand.

    Attributes:
        losses: per batch float64 [candidates, blocks]; NaN where no result came yet.
        set_aside: candidates that kill workers. Their losses are infinite on every batch.
    """

    def __init__(
        self,
        candidates: int,
        blocks: Sequence[int],
        *,
        order: Sequence[int] | None = None,
        workers: int = 1,
        depth: int = 2,
    ) -> None:
        self.losses = [np.full((candidates, size), np.nan) for size in blocks]
        self.set_aside: set[int] = set()
        self.depth = depth
        self._open = np.ones((len(blocks), candidates), dtype=bool)
        self._held: dict[Worker, deque[Item]] = {}
        self._suspects: deque[Item] = deque()
        self._waiting: deque[Item] = deque()
        ordered = np.arange(candidates) if order is None else np.asarray(order)
        pieces = 1 if workers <= 1 else min(candidates, max(1, -(-4 * workers // max(1, len(blocks)))))
        for batch in range(len(blocks)):
            for piece in np.array_split(ordered, pieces) if candidates else []:
                self._waiting.append(Item(tuple(int(index) for index in piece), batch))

    @property
    def finished(self) -> bool:
        """Every candidate has a loss on every block or was set aside, and no worker is at work any more."""
        return not self._open.any() and not any(self._held.values())

    @property
    def share_done(self) -> float:
        """Of all (candidate, batch) pairs, 0 to 1."""
        return 1 - np.count_nonzero(self._open) / max(1, self._open.size)

    def add(self, worker: Worker) -> None:
        """A worker is ready for work, for the first time or again."""
        self._held.setdefault(worker, deque())

    def next_for(self, worker: Worker) -> Item | None:
        """What this worker should begin or queue now; None when it has enough, or nothing is left to give."""
        held = self._held[worker]
        if len(held) >= self.depth or any(item.deaths for item in held):
            return None
        queue = self._suspects if self._suspects and not held else self._waiting
        if not queue:
            return None
        held.append(queue.popleft())
        return held[-1]

    def done(self, worker: Worker, item: Item, losses: np.ndarray) -> None:
        """A result came: float64 [candidates of the item, blocks of its batch]. What is no number becomes infinite.

        The result of an item that the worker does not hold (it was thought lost) is ignored: the item is done again.
        """
        held = self._held.get(worker, deque())
        if item not in held:
            return
        held.remove(item)
        for candidate, loss in zip(item.candidates, losses, strict=True):
            if candidate not in self.set_aside:
                self._open[item.batch, candidate] = False
                self.losses[item.batch][candidate] = np.where(np.isfinite(loss), loss, np.inf)

    def lost(self, worker: Worker, *, blame: bool) -> list[int]:
        """A worker died, and what it held is to be done again.

        Args:
            worker: it gets no more work until it is added again.
            blame: its process died on a healthy node. The item it was working at (the oldest it held) may be why.
                False for deaths of nodes, preemptions, and workers taken away on purpose.

        Returns:
            Candidates set aside by this: they alone killed workers, again and again. Their losses are infinite.
        """
        held = list(self._held.pop(worker, ()))
        aside: list[int] = []
        # Of an item with a candidate that was set aside meanwhile, it is known why its worker died.
        if held and blame and self.set_aside.isdisjoint(held[0].candidates):
            aside = self._suspect(held.pop(0))
        for item in reversed(held):
            for rest in self._healthy([item]):
                (self._suspects if rest.deaths else self._waiting).appendleft(rest)
        return aside

    def _suspect(self, item: Item) -> list[int]:
        if item.deaths == 0:
            self._suspects.append(replace(item, deaths=1))
            return []
        if len(item.candidates) == 1:
            self._put_aside(item.candidates[0])
            return [item.candidates[0]]
        middle = len(item.candidates) // 2
        # In front: one killer is followed down to its end before the next suspect costs a worker.
        for half in (item.candidates[middle:], item.candidates[:middle]):
            # One death stays on the record: a half that kills again is cut at once.
            self._suspects.appendleft(Item(half, item.batch, deaths=1))
        return []

    def _put_aside(self, candidate: int) -> None:
        self.set_aside.add(candidate)
        self._open[:, candidate] = False
        for losses in self.losses:
            losses[candidate] = np.inf
        # What is in flight goes on as it is: its result has a row for each of its candidates.
        self._waiting = deque(self._healthy(self._waiting))
        self._suspects = deque(self._healthy(self._suspects))

    def _healthy(self, items: Iterable[Item]) -> Iterable[Item]:
        """The items anew, without candidates that were set aside."""
        for item in items:
            rest = tuple(candidate for candidate in item.candidates if candidate not in self.set_aside)
            if rest:
                yield replace(item, candidates=rest)
