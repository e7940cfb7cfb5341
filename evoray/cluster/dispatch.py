"""Which worker does what, and what happens to the work of a lost one. Pure logic: no Ray, no clock.

Holds: `Item`, `Dispatcher`.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

Worker = Hashable


@dataclass(eq=False)
class Item:
    """Some candidates on one batch: what one worker does in one call.

    Attributes:
        candidates: indexes into the caller's list, in the order in which prefixes are shared best.
        batch: index into the caller's batches.
        deaths: healthy workers that died while they held it.
    """

    candidates: tuple[int, ...]
    batch: int
    deaths: int = 0


@dataclass
class _Held:
    items: deque[Item] = field(default_factory=deque)


class Dispatcher:
    """Spreads (candidates x batches) over workers that may vanish.

    The carrier tells it what happens (`add`, `done`, `lost`) and asks what is next (`next_for`). An item whose
    worker died alone is done again whole; when that kills a second worker it is cut in halves, until one candidate is
    left, which is set aside. An item under suspicion is given only to a worker that holds nothing else, so that nobody
    else is blamed and nobody else's work is lost.

    Args:
        candidates: how many there are.
        blocks: blocks of each batch.
        order: candidates in the order that shares prefixes; default: as they are.
        workers: how many are expected; with it, items are cut so that each gets about four per stage.
        depth: items in flight per worker: one at work and the next at hand.
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
        self._all = self._left = candidates * len(blocks)
        self._held: dict[Worker, _Held] = {}
        self._suspects: deque[Item] = deque()
        self._waiting: deque[Item] = deque()
        ordered = np.arange(candidates) if order is None else np.asarray(order)
        pieces = 1 if workers <= 1 else min(candidates, max(1, -(-4 * workers // max(1, len(blocks)))))
        for batch in range(len(blocks)):
            for piece in np.array_split(ordered, pieces) if candidates else []:
                self._waiting.append(Item(tuple(int(index) for index in piece), batch))

    @property
    def finished(self) -> bool:
        """Every candidate has a loss on every block, or was set aside."""
        return self._left == 0

    @property
    def share_done(self) -> float:
        """Of all (candidate, batch) pairs, 0 to 1."""
        return 1 - self._left / max(1, self._all)

    def add(self, worker: Worker) -> None:
        """A worker is ready for work, for the first time or again."""
        self._held.setdefault(worker, _Held())

    def next_for(self, worker: Worker) -> Item | None:
        """What this worker should begin or queue now; None when it has enough, or nothing is left to give."""
        held = self._held[worker].items
        if any(item.deaths for item in held) or len(held) >= self.depth:
            return None
        if self._suspects and not held:
            held.append(self._suspects.popleft())
            return held[-1]
        if self._waiting:
            held.append(self._waiting.popleft())
            return held[-1]
        return None

    def done(self, worker: Worker, item: Item, losses: np.ndarray) -> None:
        """A result came: float64 [candidates of the item, blocks of its batch]. A NaN becomes infinite."""
        self._held[worker].items.remove(item)
        self._record(item, np.where(np.isnan(losses), np.inf, losses))

    def lost(self, worker: Worker, *, blame: bool) -> list[int]:
        """A worker died, and what it held is to be done again.

        Args:
            worker: it gets no more work until it is added again.
            blame: its process died on a healthy node. The item it was working at (the oldest it held) may be why.
                False for deaths of nodes, preemptions, and workers taken away on purpose.

        Returns:
            Candidates set aside by this: they alone killed workers, again and again. Their losses are infinite.
        """
        held = self._held.pop(worker, _Held()).items
        aside: list[int] = []
        if held and blame:
            aside = self._suspect(held.popleft())
        for item in reversed(held):
            (self._suspects if item.deaths else self._waiting).appendleft(item)
        return aside

    def _suspect(self, item: Item) -> list[int]:
        item.deaths += 1
        if item.deaths == 1:
            self._suspects.append(item)
            return []
        if len(item.candidates) > 1:
            middle = len(item.candidates) // 2
            for half in (item.candidates[:middle], item.candidates[middle:]):
                # One death stays on the record: a half that kills again is cut at once.
                self._suspects.append(Item(half, item.batch, deaths=1))
            return []
        return self._put_aside(item)

    def _put_aside(self, item: Item) -> list[int]:
        candidate = item.candidates[0]
        self.set_aside.add(candidate)
        self._record(item, np.full((1, self.losses[item.batch].shape[1]), np.inf))
        for queue in (self._waiting, self._suspects):
            for other in list(queue):
                if candidate not in other.candidates:
                    continue
                self._record(Item((candidate,), other.batch), np.full((1, self.losses[other.batch].shape[1]), np.inf))
                other.candidates = tuple(index for index in other.candidates if index != candidate)
                if not other.candidates:
                    queue.remove(other)
        return [candidate]

    def _record(self, item: Item, losses: np.ndarray) -> None:
        for candidate, loss in zip(item.candidates, losses, strict=True):
            target = self.losses[item.batch][candidate]
            if np.isnan(target).all():
                self._left -= 1
                target[:] = loss
