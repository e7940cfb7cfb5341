"""Workers as Ray actors that may die at any time.

Holds: `RayPool`.

What was seen of Ray 2.60, and shapes this file: all calls queued on a dying actor fail; what an actor put into the
object store dies with it. So actors restart by themselves, no call is retried by Ray, and the driver does lost work
again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from evoray.cluster.actor import WorkerActor
from evoray.cluster.actors import PAUSE, POLL, TRIES, Actor, Actors, is_loss
from evoray.cluster.ahead import Ahead, Kept, Pair, pairs
from evoray.cluster.answers import answer
from evoray.cluster.capacity import room_for_workers
from evoray.cluster.connection import draining, nodes
from evoray.cluster.dispatch import Dispatcher, Item, shares
from evoray.cluster.pool import Pool, say
from evoray.cluster.ray_errors import first_line, process_died, told
from evoray.cluster.speeds import Speeds
from evoray.cluster.worker import WorkerSpec
from evoray.errors import EvorayError, UserError

if TYPE_CHECKING:
    from evoray.evaluator import Work
    from evoray.fitness import Fitness

PER_ITEM = 0.0004
"""Seconds of the driver for each call, sent and answered: measured, see benchmarks/LOG.md."""

MANY_ASIDE = 4
"""Candidates set aside in one measurement beyond which it is not the candidates that kill workers."""


@dataclass(frozen=True, eq=False)
class _Late:
    """A call that outlived the measurement it was made for.

    It counts as hung at the deadline. `pair` is what it measures, where that may be asked for next.
    """

    actor: Actor
    deadline: float
    since: float
    pair: Pair | None


class RayPool(Actors, Pool):
    """See `open_pool`.

    Args:
        actor_class: what runs in the workers' processes; tests give one that dies when it is told to.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        workers: int | str | None = None,
        address: str | None = None,
        allow_mixed: bool = False,
        wait: float = 600.0,
        memory: int = 0,
        hung_after: float = 600.0,
        hung_at_start: float = 7200.0,
        note: Callable[[str], None] = say,
        keep_log: Callable[[str, bytes], None] | None = None,
        run: str | None = None,
        actor_class: type[WorkerActor] = WorkerActor,
    ) -> None:
        self._hung_after = hung_after
        self._barren = 0
        self._look_at = 0.0
        self._going: frozenset[str] = frozenset()
        self._speeds: dict[str, Speeds] = {}
        self._late: dict[Any, _Late] = {}
        self._adopting: list[tuple[Any, _Late]] = []
        self._kept = Kept()
        Pool.__init__(self)
        Actors.__init__(
            self,
            spec,
            workers=workers,
            address=address,
            allow_mixed=allow_mixed,
            wait=wait,
            memory=memory,
            hung_at_start=hung_at_start,
            note=note,
            keep_log=keep_log,
            run=run,
            actor_class=actor_class,
        )

    def _measure(
        self,
        rows_NL: np.ndarray,
        works: Sequence[Work],
        fitness: Fitness,
        progress: Callable[[float], None] | None,
        ahead: Sequence[Ahead],
    ) -> np.ndarray:
        order = np.lexsort(rows_NL.T[::-1]) if rows_NL.shape[1] else np.arange(len(rows_NL))
        wanted = pairs(str(fitness), rows_NL, works)
        later = [work for _, works in ahead for work in works]
        spare = self._spare(wanted, str(fitness), ahead)
        dispatcher = self._dispatcher(
            len(rows_NL),
            works,
            str(fitness),
            order=order.tolist(),
            shares=shares(rows_NL[order]),
            known={
                (candidate, batch): losses_B
                for batch, row in enumerate(wanted)
                for candidate, pair in enumerate(row)
                if (losses_B := self._kept.take(pair)) is not None
            },
            wanted=wanted,
            spare=[float(later[batch].ids.size) for _, batch in spare],
        )
        placed, placed_later = _Placed(works), _Placed(later)

        def submit(handle: Any, item: Item) -> Any:
            if item.spare is not None:
                pair, batch = spare[item.spare]
                return handle.measure.remote(self._at, 1, pair[2], placed_later.ref(batch), str(fitness))
            rows = rows_NL[list(item.candidates)].tobytes()
            batch_ref = placed.ref(item.batch)
            return handle.measure.remote(self._at, len(item.candidates), rows, batch_ref, str(fitness))

        def take(item: Item, result: np.ndarray) -> np.ndarray:
            if item.spare is not None:
                self._kept.put(spare[item.spare][0], result[0])
            return result

        def aside(candidate: int) -> None:
            row = tuple(rows_NL[candidate].tolist())
            self.named_aside.add(row)
            self._note(
                "a candidate kills workers by itself and is set aside with infinite loss; "
                f"its levels by layer are {' '.join(map(str, row))}"
            )

        self._drive(dispatcher, submit, take, aside, progress, [pair for pair, _ in spare])
        return np.concatenate(dispatcher.losses, axis=1)

    def _spare(self, wanted: Sequence[Sequence[Pair]], fitness: str, ahead: Sequence[Ahead]) -> list[tuple[Pair, int]]:
        """Of what may be asked for next, what is neither known nor under way: one candidate on one batch each, so that
        whatever is asked for then finds it. The numbers are of the batches, one behind the other."""
        if self._allow_mixed:
            return []
        there = {pair for row in wanted for pair in row} | {late.pair for late in self._late.values() if late.pair}
        aside = {np.array(row, dtype=np.int8).tobytes() for row in self.named_aside}
        found: dict[Pair, int] = {}
        rows = [row for rows_NL, works in ahead for row in pairs(fitness, rows_NL, works)]
        for batch, row in enumerate(rows):
            for pair in row:
                if pair not in there and pair not in self._kept and pair[2] not in aside:
                    found.setdefault(pair, batch)
        return list(found.items())

    def each(
        self,
        works: Sequence[Work],
        method: str,
        *arguments: Any,
        progress: Callable[[float], None] | None = None,
    ) -> list[Any]:
        dispatcher = self._dispatcher(1, works, method)
        placed = _Placed(works)
        results: dict[int, Any] = {}

        def submit(handle: Any, item: Item) -> Any:
            return handle.timed.remote(self._at, method, placed.ref(item.batch), *arguments)

        def take(item: Item, result: Any) -> np.ndarray:
            results.setdefault(item.batch, result)
            return np.zeros((1, len(works[item.batch].cuts)))

        def aside(_: int) -> None:
            raise EvorayError(
                f"workers die while they measure the base model {self.spec.model}; lower --tokens-per-pass"
            )

        self._drive(dispatcher, submit, take, aside, progress)
        return [results[index] for index in range(len(works))]

    def _dispatcher(
        self,
        candidates: int,
        works: Sequence[Work],
        kind: str,
        *,
        order: Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
        known: Mapping[tuple[int, int], np.ndarray] | None = None,
        wanted: Sequence[Sequence[Pair]] = (),
        spare: Sequence[float] = (),
    ) -> Dispatcher:
        """Of a kind of calls: how fast workers are at one tells nothing of another."""
        places = {pair: (candidate, batch) for batch, row in enumerate(wanted) for candidate, pair in enumerate(row)}
        self._adopting = [
            (ref, late) for ref, late in self._late.items() if late.pair in places and self._only_late(late.actor)
        ]
        return Dispatcher(
            candidates,
            [len(work.cuts) for work in works],
            weights=[float(work.ids.size) for work in works],
            order=order,
            shares=shares,
            speeds=self._speeds.setdefault(kind, Speeds()),
            workers=sum(actor.placed for actor in self._actors),
            # Other devices may give other bits, so who is first must not decide.
            copies=not self._allow_mixed,
            per_item=PER_ITEM,
            hung_after=self._hung_after,
            hung_at_start=self._hung_at_start,
            known=known,
            under_way=[(late.actor.index, *places[late.pair], late.since) for _, late in self._adopting if late.pair],
            spare=spare,
        )

    def _only_late(self, actor: Actor) -> bool:
        """Whether an actor has but one late call, so that nothing stands before it."""
        return sum(late.actor is actor for late in self._late.values()) == 1

    def _drive(
        self,
        dispatcher: Dispatcher,
        submit: Callable[[Any, Item], Any],
        take: Callable[[Item, Any], np.ndarray],
        aside: Callable[[int], None],
        progress: Callable[[float], None] | None,
        spare: Sequence[Pair] = (),
    ) -> None:
        """Carries items out and results in until the dispatcher has all of them."""
        calls: dict[Any, tuple[Actor, Item]] = {}
        added: set[int] = set()
        # What is wanted now and was begun when nobody waited for it, is waited for.
        for (ref, late), (index, item) in zip(self._adopting, dispatcher.adopted, strict=True):
            calls[ref] = (late.actor, item)
            added.add(index)
            del self._late[ref]
        self._adopting = []
        self._until = time.monotonic() + self._wait
        try:
            while not dispatcher.finished:
                late = {late.actor.index for late in self._late.values()}
                for actor in self._actors:
                    known = actor.index in added or actor.index in late
                    if actor.ready and not known and actor.node not in self._going:
                        dispatcher.add(actor.index)
                        added.add(actor.index)
                for index, item in dispatcher.assign(time.monotonic()):
                    calls[submit(self._actors[index].handle, item)] = (self._actors[index], item)
                    self.busy.begin(index)
                self._check_wait()
                self._note_unplaced()
                self._ask_to_start()
                self._look_around(dispatcher, calls, added)
                for ref in self._await([*calls, *self._late], dispatcher.wake):
                    if ref in self._late:
                        self._settle_late(ref, dispatcher, aside)
                    elif ref in calls:
                        self._settle(ref, calls, added, dispatcher, take, aside, progress)
        finally:
            # Calls are not cancelled: that can wedge an actor that works in order. Who is still at work at what others
            # did meanwhile, or at what an error left behind, gets new work after that.
            for ref, (actor, item) in calls.items():
                pair = None if item.spare is None else spare[item.spare]
                self._late[ref] = _Late(actor, dispatcher.deadline(actor.index), dispatcher.since(actor.index), pair)

    def _settle(
        self,
        ref: Any,
        calls: dict[Any, tuple[Actor, Item]],
        added: set[int],
        dispatcher: Dispatcher,
        take: Callable[[Item, Any], np.ndarray],
        aside: Callable[[int], None],
        progress: Callable[[float], None] | None,
    ) -> None:
        actor, item = calls.pop(ref)
        try:
            result, seconds = answer(ref)
        except RayError as error:
            if not is_loss(error):
                self.busy.end(actor.index)
                raise told(error) from None
            added.discard(actor.index)
            self._keep_finished(actor, dispatcher, take, calls)
            self._lose(actor, error, dispatcher, aside)
            return
        self._barren = 0
        self.busy.end(actor.index)
        before = dispatcher.share_done
        dispatcher.done(actor.index, item, take(item, result), time.monotonic(), seconds)
        # An answer to what another one was earlier with is no progress.
        if progress and dispatcher.share_done > before:
            progress(dispatcher.share_done)

    def _settle_late(self, ref: Any, dispatcher: Dispatcher, aside: Callable[[int], None]) -> None:
        """Whoever was late has ended; nobody waits for what it says, but it may be asked for next."""
        late = self._late.pop(ref)
        actor = late.actor
        try:
            result, _ = answer(ref)
            if late.pair is not None:
                self._kept.put(late.pair, result[0])
        except RayError as error:
            if is_loss(error):
                self._late = {ref: other for ref, other in self._late.items() if other.actor is not actor}
                self._lose(actor, error, dispatcher, aside)
                return
        self.busy.end(actor.index)

    def _look_around(self, dispatcher: Dispatcher, calls: dict[Any, tuple[Actor, Item]], added: set[int]) -> None:
        """What no call tells of, every now and then: workers that hang, nodes that come and go."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + POLL
        self._end_hung(dispatcher, now)
        if self._grows:
            self._grow()
        busy = {actor.index for actor, _ in calls.values()} | {late.actor.index for late in self._late.values()}
        self._leave_draining(dispatcher, added, busy)

    def _grow(self) -> None:
        """Where nobody gave a number, new nodes bring new workers."""
        # While nodes go, none may have the memory for a worker: that is no user's mistake now.
        with contextlib.suppress(UserError):
            room = room_for_workers(
                nodes(), self._room.memory, threads=self.spec.threads, on_gpu=self._on_gpu, gpus=self.spec.gpus
            )
            if room.fitting > len(self._actors):
                self._note(f"{room.fitting - len(self._actors)} workers more: the cluster has grown")
                self._create(room.fitting - len(self._actors))

    def _leave_draining(self, dispatcher: Dispatcher, added: set[int], busy: Collection[int]) -> None:
        """Workers on nodes that will be gone soon end what they have in hand, and begin anew elsewhere."""
        self._going = draining()
        for actor in self._actors if self._going else ():
            if not actor.ready or actor.node not in self._going:
                continue
            dispatcher.retire(actor.index)
            if actor.index not in busy:
                dispatcher.lost(actor.index, blame=False)
                added.discard(actor.index)
                self._note(f"worker {actor.index} leaves its node, which will be gone soon")
                self._again(actor, PAUSE)
                ray.kill(actor.handle, no_restart=False)

    def _end_hung(self, dispatcher: Dispatcher, now: float) -> None:
        """Kills workers that have not answered far beyond the expected time; as lost ones they come back."""
        hung = [(self._actors[index], now - dispatcher.since(index)) for index in dispatcher.hung(now)]
        hung += [(late.actor, now - late.since) for late in self._late.values() if now > late.deadline]
        for actor, seconds in hung:
            if not actor.ending:
                self._end(actor, f"has not answered for {seconds:.0f} s, far beyond what can be expected")

    def _keep_finished(
        self,
        actor: Actor,
        dispatcher: Dispatcher,
        take: Callable[[Item, Any], np.ndarray],
        calls: dict[Any, tuple[Actor, Item]],
    ) -> None:
        """What a lost actor had finished counts; its other calls are forgotten."""
        for ref in [ref for ref, (holder, _) in calls.items() if holder is actor]:
            _, item = calls.pop(ref)
            try:
                result, seconds = answer(ref, timeout=0)
            except (RayError, GetTimeoutError):
                continue
            dispatcher.done(actor.index, item, take(item, result), time.monotonic(), seconds)

    def _lose(self, actor: Actor, error: RayError, dispatcher: Dispatcher, aside: Callable[[int], None]) -> None:
        """An actor is gone: what it held goes back, and it is prepared again."""
        self.lost += 1
        self._barren += 1
        self.busy.forget(actor.index)
        self._logs.fetch(actor.index, actor.node, actor.pid)
        self._note(f"worker {actor.index} (process {actor.pid}) was lost, its work is done again: {first_line(error)}")
        self._again(actor, PAUSE)
        blame = process_died(error, actor.node)
        for candidate in dispatcher.lost(actor.index, blame=blame):
            aside(candidate)
        if len(dispatcher.set_aside) > MANY_ASIDE or self._barren > TRIES + 2 * len(self._actors):
            raise EvorayError(
                f"workers die again and again, whatever they measure: {first_line(error)}; see Ray's logs of the "
                "workers, or lower --tokens-per-pass, --work-memory or --variant-memory"
            )


class _Placed:
    """Batches in Ray's object store, from their first use on: with a teacher's part they may be a gigabyte a rung, and
    nobody shall wait for the last of them."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        self._refs: dict[int, Any] = {}

    def ref(self, batch: int) -> Any:
        """What stands for a batch in a call."""
        if batch not in self._refs:
            self._refs[batch] = ray.put(self._works[batch])
        return self._refs[batch]
