"""The crew of a build as Ray actors that may die at any time.

Holds: `RayCrew`.

An actor takes the states of its shards with it. Whoever gets them next walks them again through the blocks that they
had passed, with the weights that the first time had, which the driver keeps: as an interrupted build does, and with the
same bits.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.exceptions import RayError

from evoray.cluster.actor import ModelActor
from evoray.cluster.actors import PAUSE, TRIES, Actor, Actors, is_loss
from evoray.cluster.answers import answer
from evoray.cluster.build_worker import BuildActor, BuildSpec, arrived, portable
from evoray.cluster.pool import say
from evoray.cluster.ray_errors import first_line, process_died, told
from evoray.cluster.rota import Rota, Step
from evoray.compress.hessian import Sums, add_sums
from evoray.compress.recipe import HESSIAN_SHARDS
from evoray.errors import EvorayError

if TYPE_CHECKING:
    from evoray.compress.work import Finished, Task
    from evoray.store import Variant

DEATHS = 4
"""Processes that died at the same piece of work; then it is the work that kills them."""


class RayCrew(Actors):
    """See `open_crew`, and `Crew` for what it does.

    Args:
        actor_class: what runs in the workers' processes; tests give one that dies when it is told to.

    Attributes:
        lost: how many times a worker was lost.
    """

    def __init__(
        self,
        spec: BuildSpec,
        *,
        workers: int | str | None = None,
        address: str | None = None,
        wait: float = 600.0,
        memory: int = 0,
        hung_after: float = 7200.0,
        note: Callable[[str], None] = say,
        keep_log: Callable[[str, bytes], None] | None = None,
        actor_class: type[ModelActor] = BuildActor,
    ) -> None:
        self.lost = 0
        self._hung_after = hung_after
        self._barren = 0
        self._deaths: Counter[Step | int] = Counter()
        self._rota = Rota(HESSIAN_SHARDS)
        # Call -> whose it is, and since when.
        self._calls: dict[Any, tuple[Actor, float]] = {}
        # Blocks that the text has passed with other than base weights -> these, for whoever walks there again.
        self._given: dict[int, Any] = {}
        self._tasks: dict[int, tuple[Task, Callable[[Finished], None]]] = {}
        self._begun = 0
        self._sums: dict[int, Sums] = {}
        self._finished: deque[tuple[Callable[[Finished], None], Finished]] = deque()
        super().__init__(
            spec,
            workers=workers,
            address=address,
            wait=wait,
            memory=memory,
            hung_at_start=hung_after,
            note=note,
            keep_log=keep_log,
            actor_class=actor_class,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def observe(self, block: int, *, moves: bool) -> Sums:
        total: Sums = {}
        self._rota.walk(block, looks=True, moves=moves)
        added = 0

        def summed() -> bool:
            nonlocal added
            while added in self._sums:
                add_sums(total, self._sums.pop(added))
                added += 1
            return added == HESSIAN_SHARDS

        self._work(summed)
        return total

    def advance(self, block: int, given: Mapping[str, Variant] | None) -> None:
        if given is not None:
            self._given[block] = ray.put({name: portable(variant) for name, variant in given.items()})
        self._rota.walk(block, looks=False, moves=True)
        self._work(lambda: self._rota.walked)

    def make(self, tasks: Sequence[Task], take: Callable[[Finished], None]) -> None:
        for task in tasks:
            carried = None if task.lower_II is None else ray.put(task.lower_II)
            self._tasks[self._begun] = replace(task, lower_II=carried), take
            self._rota.add(self._begun)
            self._begun += 1
        # Hessians take memory, so no more than one block's wait for workers.
        self._work(lambda: self._rota.waiting <= len(tasks))

    def finish(self) -> None:
        self._work(lambda: not self._rota.unfinished and not self._finished)

    def _work(self, done: Callable[[], bool]) -> None:
        """Carries work out and results in until it is enough."""
        self._until = time.monotonic() + self._wait
        while not done():
            for actor in self._actors:
                if actor.ready and (item := self._rota.assign(actor.index)) is not None:
                    self._calls[self._submit(actor, item)] = actor, time.monotonic()
            if self._finished:
                # Now, when everybody has something to do meanwhile.
                take, finished = self._finished.popleft()
                take(finished)
                continue
            self._check_wait()
            self._note_unplaced()
            self._ask_to_start()
            self._end_hung()
            for ref in self._await(list(self._calls)):
                if ref in self._calls:
                    self._settle(ref)

    def _end_hung(self) -> None:
        """Kills workers that have had one piece of work in hand for too long."""
        for actor, since in self._calls.values():
            if not actor.ending and time.monotonic() > since + self._hung_after:
                self._end(actor, f"has not ended one piece of work within {self._hung_after:g} s")

    def _submit(self, actor: Actor, item: Step | int) -> Any:
        if isinstance(item, int):
            task, _ = self._tasks[item]
            wanted = [name for name in task.layers if name in task.wanted]
            return actor.handle.make.remote(task.layers, wanted, task.lower_II)
        if item.looks:
            return actor.handle.observe.remote(item.shard, item.block, item.moves)
        return actor.handle.advance.remote(item.shard, item.block, self._given.get(item.block))

    def _settle(self, ref: Any) -> None:
        actor, _ = self._calls.pop(ref)
        try:
            result = answer(ref)
        except RayError as error:
            if not is_loss(error):
                raise told(error) from None
            self._lose(actor, error)
            return
        self._barren = 0
        item = self._rota.done(actor.index)
        if isinstance(item, int):
            _, take = self._tasks.pop(item)
            layers = tuple((entry, tuple(arrived(each) for each in variants)) for entry, variants in result.layers)
            self._finished.append((take, replace(result, layers=layers)))
        elif item.looks:
            self._sums[item.shard] = result

    def _lose(self, actor: Actor, error: RayError) -> None:
        """An actor is gone: what it held goes to others, and it is prepared again."""
        self.lost += 1
        self._barren += 1
        self._logs.fetch(actor.index, actor.node, actor.pid)
        self._note(f"worker {actor.index} (process {actor.pid}) was lost, its work is done again: {first_line(error)}")
        hung, died = actor.ending, process_died(error, actor.node)
        self._again(actor, PAUSE)
        item = self._rota.lost(actor.index)
        if (died or hung) and item is not None:
            self._deaths[item] += 1
        if self._barren > TRIES + 2 * len(self._actors) or (item is not None and self._deaths[item] >= DEATHS):
            task = self._tasks[item][0] if isinstance(item, int) else None
            what = f"make {', '.join(task.layers)}" if task else "take the Hessian text through the model"
            if hung:
                raise EvorayError(
                    f"workers take longer than {self._hung_after:g} s, again and again, to {what}; give a higher "
                    "--hung-after, or lower --tokens-per-pass"
                )
            raise EvorayError(
                f"workers die again and again while they {what}: {first_line(error)}; see Ray's logs of the workers, "
                "lower --tokens-per-pass, build fewer --levels, or use nodes with more memory"
            )
