"""Which worker does what, and what happens to the work of a lost one. Pure logic: no Ray, no clock.

Holds: `Item`, `Dispatcher`, `shares`.

A pair is one candidate on one batch. A unit of work is a token of a batch that goes through the whole model.
"""

import bisect
import math
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evoray.cluster.roster import Outlook, Roster
from evoray.cluster.speeds import Speeds

Worker = Hashable

DEATHS = 3
"""Deaths of workers after which a candidate that was alone at the last one is set aside: two may be chance."""

SURE = 1.1
"""By how much a second worker must be expected to be earlier before work is done twice."""

SPREAD = 3.0
"""Errors of predictions that are reckoned with: so much of everybody's share is kept back to even them out."""

UNDER, OVER = 0.12, 0.03
"""By what share an item may be smaller or larger than wanted, to cut where little is lost, or not at all."""

CHEAP = 1.5
"""Passes up to which candidates that share nearly all go with the one before: elsewhere each would be a whole pass."""

QUEUED = 2.0
"""Pairs that a busy worker's share must still have for it to get the next item at hand. The time between two items is
short beside an item, and what is in nobody's hand can go to who is free first."""

FAR_BEYOND = 20.0
"""Times the expected time after which a worker counts as hung, if that is longer than `hung_after`."""

LATER = 1.5
"""Times the expected rest of what others are at that something nobody waits for may take. With 1, equal items would
hardly ever be begun, since predictions are a little off; with 2, it delays what is asked for next by more than it
saves."""

LEAST_SHARE = 0.05
"""Of the work of a candidate that shares its whole prefix with another: the head is run all the same."""


@dataclass(frozen=True, eq=False)
class Item:
    """Some candidates on one batch: what one worker does in one call. Each call has an item of its own.

    Attributes:
        candidates: indexes into the caller's list, in the order in which prefixes are shared best.
        batch: index into the caller's batches.
        cost: units of work.
        spare: of an item that nobody waits for, which one it is; it has no candidates.
        deaths: healthy workers that died while they worked at it.
    """

    candidates: tuple[int, ...]
    batch: int
    cost: float = 0.0
    deaths: int = 0
    spare: int | None = None


class Dispatcher:
    """Spreads (candidates x batches) over workers that may vanish, so that the last one ends with the first.

    The carrier tells it what happens (`add`, `retire`, `done`, `lost`) and carries out what it assigns (`assign`).

    Work is cut when it is given: each worker gets its fair share by its speed, less what predictions may err, and small
    items follow towards the end. Neighbours in the order stay together as long as they can: they share prefixes. When
    nothing is left to give, idle workers do again, in parts, what others are late with, and the first answer counts.
    Who still has nothing to do begins what may be asked for next, as long as that ends about when the others do;
    nothing ever waits for it.

    An item whose worker died alone is done again whole; when that kills a second worker it is cut in halves, until one
    candidate is left, which is set aside with the third death. An item under suspicion is given only to a worker that
    holds nothing else, so that nobody else is blamed and nobody else's work is lost. Workers drain for it only when
    nothing else waits, or one of them was lost and comes back with empty hands, as it does after each death that
    raised suspicion.

    Args:
        candidates: how many there are.
        blocks: blocks of each batch.
        weights: tokens of each batch; default: one.
        order: candidates in the order that shares prefixes; default: as they are.
        shares: of the candidates in that order, what share of the model each runs when it follows the one before it.
        speeds: of the workers, as far as they are known; what is seen here is added.
        workers: how many are expected, so that the first to come does not take what is the others'.
        depth: items in flight per worker: one at work and the next at hand.
        copies: do the work of late workers twice. Only where all workers give the same bits.
        per_item: seconds of the carrier for each item. Items are not made so small that it can't keep up.
        hung_after: seconds after which a worker may count as hung, see `hung`.
        hung_at_start: the same where nobody's speed is known yet; there is nothing else to go by.
        known: pairs (candidate, batch) that were measured before, with their losses.
        under_way: pairs that workers are at since a time, as (worker, candidate, batch, time).
        spare: units of each item that may be asked for next, the likeliest first.

    Attributes:
        adopted: the items that `under_way` became, with their workers.
        losses: per batch float64 [candidates, blocks]; NaN where no result came yet.
        set_aside: candidates that kill workers. Their losses are infinite on every batch.
        wake: time at which to ask for assignments though nothing has happened.
    """

    def __init__(
        self,
        candidates: int,
        blocks: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        order: Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
        speeds: Speeds | None = None,
        workers: int = 1,
        depth: int = 2,
        copies: bool = True,
        per_item: float = 0.0,
        hung_after: float = 600.0,
        hung_at_start: float = 7200.0,
        known: Mapping[tuple[int, int], np.ndarray] | None = None,
        under_way: Sequence[tuple[Worker, int, int, float]] = (),
        spare: Sequence[float] = (),
    ) -> None:
        self.losses = [np.full((candidates, size), np.nan) for size in blocks]
        self.set_aside: set[int] = set()
        self.wake = math.inf
        self.depth, self._copies, self._expected = depth, copies, workers
        self._hung_after, self._hung_at_start = hung_after, hung_at_start
        self._roster: Roster[Item] = Roster(Speeds() if speeds is None else speeds)
        self._weights = [1.0] * len(blocks) if weights is None else [float(weight) for weight in weights]
        ordered = tuple(range(candidates)) if order is None else tuple(int(index) for index in order)
        self._place = {candidate: place for place, candidate in enumerate(ordered)}
        self._shares = [1.0] * candidates if shares is None else [min(1.0, max(LEAST_SHARE, x)) for x in shares]
        self._open = np.ones((len(blocks), candidates), dtype=bool)
        self._left = self._open.size
        self._in_flight = np.zeros((len(blocks), candidates), dtype=np.int32)
        self._suspects: deque[Item] = deque()
        # By cost; a running number decides between equal ones.
        self._waiting: list[tuple[float, int, Item]] = []
        self._number = 0
        self._waiting_cost = 0.0
        self._per_item = per_item
        self._spare = deque(Item((), 0, cost, spare=number) for number, cost in enumerate(spare))
        self.adopted: list[tuple[Worker, Item]] = []
        for (candidate, batch), losses in (known or {}).items():
            self.losses[batch][candidate] = losses
            self._close(batch, candidate)
        for worker, candidate, batch, since in under_way:
            self._roster.add(worker)
            self.adopted.append((worker, self._item([candidate], batch)))
            self._give(*self.adopted[-1], since)
        whole = self._cost(ordered, 1.0) if candidates else 0.0
        for batch, weight in enumerate(self._weights if candidates else ()):
            if known or under_way:
                for rest in self._undone([Item(ordered, batch)]):
                    self._wait(rest)
            else:
                self._wait(Item(ordered, batch, whole * weight))

    # What the carrier asks

    @property
    def finished(self) -> bool:
        """Every candidate has a loss on every block or was set aside. Who is late with work that was done twice, or at
        work at a candidate that was set aside meanwhile, is still at it: see `holding`."""
        return not self._left

    @property
    def share_done(self) -> float:
        """Of all pairs, 0 to 1."""
        return 1 - self._left / max(1, self._open.size)

    def assign(self, now: float) -> Iterator[tuple[Worker, Item]]:
        """Who is to do what from now on, behind what each has in hand. To be carried out one by one, in this order."""
        self.wake = math.inf
        roster = self._roster
        if not (roster.active & (roster.count < self.depth)).any():
            return
        missing = max(0, self._expected - int(roster.active.sum()))
        outlook = roster.outlook(now, self._waiting_cost, per_item=self._per_item, missing=missing)
        for level in range(self.depth if self._waiting or self._suspects else 0):
            for place in (outlook.idle if level == 0 else self._not_sated(level, outlook)).tolist():
                if (item := self._next(place, outlook)) is not None:
                    self._give(roster.worker(place), item, now + (float(outlook.start[place]) if level == 0 else 0.0))
                    outlook.start[place] += item.cost / outlook.speed[place]
                    yield roster.worker(place), item
        if self._copies and outlook.known and self._left and not self._waiting and not self._suspects:
            yield from self._copy(outlook, now)
        if self._spare and outlook.known and self._left and not self._waiting and not self._suspects:
            yield from self._begin_spare(outlook, now)

    def add(self, worker: Worker) -> None:
        """A worker is ready for work, for the first time or again."""
        self._roster.add(worker)

    def retire(self, worker: Worker) -> None:
        """A worker ends what it has in hand, and gets no more."""
        self._roster.retire(worker)

    def done(
        self, worker: Worker, item: Item, losses: np.ndarray, now: float = 0.0, seconds: float | None = None
    ) -> None:
        """A result came.

        The result of an item that the worker does not hold (it was thought lost) is ignored: the item is done again.
        Of work that was done twice the first answer counts.

        Args:
            worker: that did it.
            item: what it did.
            losses: float64 [candidates of the item, blocks of its batch]. What is no number becomes infinite.
            now: the time.
            seconds: that the worker was at work; None to go by when it was given, which has the way in it.
        """
        if not self._roster.take(worker, item, now, seconds) or item.spare is not None:
            return
        candidates = np.array(item.candidates)
        self._in_flight[item.batch, candidates] -= 1
        wanted = self._open[item.batch, candidates]
        losses = np.asarray(losses)[wanted]
        self.losses[item.batch][candidates[wanted]] = np.where(np.isfinite(losses), losses, np.inf)
        self._open[item.batch, candidates] = False
        self._left -= int(wanted.sum())

    def lost(self, worker: Worker, *, blame: bool) -> list[int]:
        """A worker died, and what it held is to be done again, unless another one is at it.

        Args:
            worker: it gets no more work until it is added again.
            blame: its process died on a healthy node, or hung. The item it was working at (the oldest it held) may be
                why. False for deaths of nodes, preemptions, and workers taken away on purpose.

        Returns:
            Candidates set aside by this: they alone killed workers, again and again. Their losses are infinite.
        """
        held, aside = self._roster.remove(worker), list[int]()
        for item in held:
            self._in_flight[item.batch, list(item.candidates)] -= 1
        # Of an item with a candidate that was set aside meanwhile, it is known why its worker died.
        if held and blame and self.set_aside.isdisjoint(held[0].candidates):
            aside = self._suspect(held.pop(0))
        for item in reversed(held):
            for rest in self._undone([item]):
                if rest.deaths:
                    self._suspects.appendleft(rest)
                else:
                    self._wait(rest)
        return aside

    def hung(self, now: float) -> list[Worker]:
        """Workers that have not answered far beyond the expected time, or beyond the limit where none is expected."""
        return [worker for worker in self._roster.holding() if now > self.deadline(worker)]

    def deadline(self, worker: Worker) -> float:
        """The time at which a worker that has not answered yet counts as hung; infinite where it has no work."""
        return self._roster.deadline(worker, self._hung_after, FAR_BEYOND, self._hung_at_start)

    def since(self, worker: Worker) -> float:
        """The time at which a worker began what it is at."""
        return self._roster.began(worker)

    def holding(self) -> list[Worker]:
        """Workers that have not answered to all they were given."""
        return self._roster.holding()

    # What is given

    def _not_sated(self, level: int, outlook: Outlook) -> np.ndarray:
        """Places of busy workers that may get the next item at hand."""
        if not self._waiting:
            return np.zeros(0, dtype=np.int64)
        hungry = self._roster.active & (self._roster.count == level)
        least = self._weights[self._waiting[-1][2].batch]
        return np.flatnonzero(hungry & (outlook.speed * (outlook.end - outlook.start) >= QUEUED * least))

    def _next(self, place: int, outlook: Outlook) -> Item | None:
        held = self._roster.items(self._roster.worker(place))
        if any(item.deaths for item in held):
            return None
        if self._suspects and not held:
            return self._suspects.popleft()
        if not self._waiting:
            return None
        least = self._weights[self._waiting[-1][2].batch]
        share, speed = outlook.share(place), float(outlook.speed[place])
        if held and share < QUEUED * least:
            return None
        # Even if it is not its share, an idle worker takes a pair, unless others would be earlier after all the rest.
        if share < least / 2 and float(outlook.start[place]) + least / speed > outlook.end + least / outlook.fastest:
            return None
        # Alone it has nobody to even things out with, and every cut costs.
        wanted = math.inf if outlook.alone else share / (1 + SPREAD * self._roster.speeds.error)
        if outlook.known:
            wanted = max(wanted, self._per_item * len(outlook.speed) * speed)
        return self._cut(share if share - wanted < least else wanted)

    def _cut(self, wanted: float) -> Item:
        """About so much of what waits; the rest of it goes on waiting."""
        least = wanted * (1 - UNDER)
        most = max(wanted * (1 + OVER), CHEAP * self._weights[self._waiting[-1][2].batch])
        # Best is what needs no cut; next, the largest, where a cut costs least in proportion.
        fitting = bisect.bisect_right(self._waiting, most, key=lambda entry: entry[0]) - 1
        whole = fitting == len(self._waiting) - 1 or (fitting >= 0 and self._waiting[fitting][0] >= least)
        _, _, found = self._waiting.pop(fitting if whole else -1)
        self._waiting_cost = self._waiting_cost - found.cost if self._waiting else 0.0
        if whole or len(found.candidates) == 1:
            return found
        weight = self._weights[found.batch]
        # Among the places about right the one where least is shared, or else the last before it is too much.
        best, cut, before, cost = 0, 0.0, 0.0, 0.0
        for index, share in enumerate(self._chain(found.candidates)):
            if cost > most:
                break
            if index and (before < least or share > cut):
                best, cut, before = index, share, cost
            cost += share * weight
        # The rest begins with a whole pass.
        rest = Item(found.candidates[best:], found.batch, found.cost - before + (1 - cut) * weight, found.deaths)
        self._wait(rest)
        return Item(found.candidates[:best], found.batch, before, found.deaths)

    def _copy(self, outlook: Outlook, now: float) -> Iterator[tuple[Worker, Item]]:
        """Idle workers do again what others are late with, in as many parts as there are idle workers."""
        roster = self._roster
        idle = outlook.idle[roster.count[outlook.idle] == 0].tolist()
        if not idle:
            return
        least = SURE * min(self._weights) / float(outlook.speed[idle[0]]) + 2 * self._per_item
        busy = roster.count > 0
        late = np.flatnonzero((outlook.left > least) & busy)
        # Who is on time may still become late.
        times = now + outlook.ahead[busy] + least
        self.wake = float(times[times > now].min(initial=math.inf))
        for place in late[np.argsort(-outlook.left[late], kind="stable")].tolist():
            for item in roster.items(roster.worker(place)):
                wanted = [] if item.deaths or item.spare is not None else self._only_here(item)
                for part in np.array_split(wanted, min(len(idle), len(wanted))) if wanted else ():
                    copy = self._item(part.tolist(), item.batch)
                    takes = SURE * copy.cost / float(outlook.speed[idle[0]]) + 2 * self._per_item
                    if takes >= outlook.left[place]:
                        # If it stays late, the time comes when it is expected to take longer than that.
                        until = now + float(outlook.left[place])
                        self.wake = min(self.wake, max(until, now + takes / 4))
                        break
                    worker = roster.worker(idle.pop(0))
                    self._give(worker, copy, now)
                    yield worker, copy
                    if not idle:
                        return

    def _begin_spare(self, outlook: Outlook, now: float) -> Iterator[tuple[Worker, Item]]:
        """Who has nothing to do begins what may be asked for next, if that ends no later than what others are at."""
        roster = self._roster
        end = float(np.where(roster.count > 0, np.maximum(outlook.start, outlook.left), 0.0).max(initial=0.0))
        for place in outlook.idle[roster.count[outlook.idle] == 0].tolist():
            if not self._spare or self._spare[0].cost / float(outlook.speed[place]) > LATER * end:
                return
            item = self._spare.popleft()
            self._give(roster.worker(place), item, now)
            yield roster.worker(place), item

    def _only_here(self, item: Item) -> list[int]:
        """What of an item in flight is wanted and nobody else is at."""
        candidates = np.array(item.candidates)
        alone = self._open[item.batch, candidates] & (self._in_flight[item.batch, candidates] == 1)
        return candidates[alone].tolist()

    def _give(self, worker: Worker, item: Item, now: float) -> None:
        self._roster.give(worker, item, now)
        self._in_flight[item.batch, list(item.candidates)] += 1

    # What waits

    def _wait(self, item: Item) -> None:
        # The first of equal ones stands last, where they are taken from.
        bisect.insort(self._waiting, (item.cost, -self._number, item))
        self._number += 1
        self._waiting_cost += item.cost

    def _chain(self, candidates: Sequence[int]) -> Iterator[float]:
        """Share of the model that each of them runs behind the one before; the first runs all."""
        before = -2
        for candidate in candidates:
            place = self._place[candidate]
            yield self._shares[place] if place == before + 1 else 1.0
            before = place

    def _cost(self, candidates: Sequence[int], weight: float) -> float:
        return weight * sum(self._chain(candidates))

    def _item(self, candidates: Sequence[int], batch: int, deaths: int = 0) -> Item:
        return Item(tuple(candidates), batch, self._cost(candidates, self._weights[batch]), deaths)

    def _close(self, batch: int, candidate: int) -> None:
        self._open[batch, candidate] = False
        self._left -= 1

    def _undone(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items anew, without what has a loss, was set aside, or is done by others."""
        for item in items:
            row_open, row_flight = self._open[item.batch], self._in_flight[item.batch]
            rest = [candidate for candidate in item.candidates if row_open[candidate] and not row_flight[candidate]]
            if rest:
                yield self._item(rest, item.batch, item.deaths)

    # Who kills

    def _suspect(self, item: Item) -> list[int]:
        rest = next(iter(self._undone([item])), None)
        if rest is None:
            return []
        deaths = item.deaths + 1
        if deaths == 1 or (deaths < DEATHS and len(rest.candidates) == 1):
            self._suspects.append(self._item(rest.candidates, rest.batch, deaths))
            return []
        if len(rest.candidates) == 1:
            self._put_aside(rest.candidates[0])
            return [rest.candidates[0]]
        middle = len(rest.candidates) // 2
        # In front: one killer is followed down to its end before the next suspect costs a worker.
        for half in (rest.candidates[middle:], rest.candidates[:middle]):
            # The deaths stay on the record: a half that kills again is cut at once.
            self._suspects.appendleft(self._item(half, rest.batch, DEATHS - 1))
        return []

    def _put_aside(self, candidate: int) -> None:
        self.set_aside.add(candidate)
        for batch, losses in enumerate(self.losses):
            if self._open[batch, candidate]:
                self._close(batch, candidate)
            losses[candidate] = np.inf
        # What is in flight goes on as it is: its result has a row for each of its candidates.
        waiting, self._waiting, self._waiting_cost = self._waiting, [], 0.0
        for item in self._undone(item for _, _, item in waiting):
            self._wait(item)
        self._suspects = deque(self._undone(self._suspects))


def shares(rows_NL: np.ndarray) -> list[float]:
    """What share of the model each candidate runs behind the one before it: from the first column that differs on.

    Args:
        rows_NL: candidates in their order; columns in the order of the model, about equally dear.
    """
    count, columns = rows_NL.shape
    if not count or not columns:
        return [1.0] * count
    unequal = rows_NL[1:] != rows_NL[:-1]
    first = np.where(unequal.any(1), unequal.argmax(1), columns)
    return [1.0, *(1 - first / columns).tolist()]
