"""Who walks which shard of a text, and who makes what. Pure logic: no Ray, no torch.

Holds: `Step`, `Rota`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One shard through one block.

    Attributes:
        shard, block: which.
        looks: somebody waits for what the layers of the block see of it.
        moves: the shard has passed the block afterwards.
    """

    shard: int
    block: int
    looks: bool
    moves: bool


class Rota:
    """Hands out work to workers that may be lost, one piece at a time each.

    A shard stays with the worker that took it first, because its states lie there. Where that one is lost, another
    takes it from the beginning through all blocks that it had passed. Tasks go to whoever is free; shards come first,
    since new tasks come of them.

    Args:
        shards: how many there are.

    Example:
        >>> rota = Rota(2)
        >>> rota.walk(0, looks=True, moves=True)
        >>> rota.add(task=7)
        >>> [rota.assign(worker) for worker in "abc"][1:]
        [Step(shard=1, block=0, looks=True, moves=True), 7]
    """

    def __init__(self, shards: int) -> None:
        self._home: dict[int, object] = {}
        self._passed = [0] * shards
        self._wanted: dict[int, Step] = {}
        self._tasks: deque[int] = deque()
        self._in_hand: dict[object, Step | int] = {}

    def walk(self, block: int, *, looks: bool, moves: bool) -> None:
        """All shards go through a block. Those before it are passed, or will be again.

        Raises:
            ValueError: they are not through the one before yet.
        """
        if self._wanted:
            raise ValueError(f"shards {sorted(self._wanted)} are still on their way")
        self._wanted = {shard: Step(shard, block, looks, moves) for shard in range(len(self._passed))}

    def add(self, task: int) -> None:
        """One more task, behind those that wait."""
        self._tasks.append(task)

    @property
    def walked(self) -> bool:
        """Whether all shards are through the block."""
        return not self._wanted

    @property
    def waiting(self) -> int:
        """Tasks that nobody has begun."""
        return len(self._tasks)

    @property
    def unfinished(self) -> int:
        """Tasks that wait or are in hand."""
        return len(self._tasks) + sum(isinstance(each, int) for each in self._in_hand.values())

    def assign(self, worker: object) -> Step | int | None:
        """A step or a task for a worker; None where there is nothing to do, or it has something in hand."""
        if worker in self._in_hand:
            return None
        shards = [shard for shard in self._wanted if self._home.get(shard, worker) == worker]
        # Its own first.
        shards.sort(key=lambda shard: (shard not in self._home, shard))
        if shards:
            shard = shards[0]
            self._home[shard] = worker
            wanted, passed = self._wanted[shard], self._passed[shard]
            self._in_hand[worker] = wanted if passed >= wanted.block else Step(shard, passed, looks=False, moves=True)
        elif self._tasks:
            self._in_hand[worker] = self._tasks.popleft()
        return self._in_hand.get(worker)

    def done(self, worker: object) -> Step | int:
        """A worker is done with what it had in hand; returns that."""
        item = self._in_hand.pop(worker)
        if isinstance(item, Step):
            if item.moves:
                self._passed[item.shard] = item.block + 1
            if self._wanted.get(item.shard) == item:
                del self._wanted[item.shard]
        return item

    def lost(self, worker: object) -> Step | int | None:
        """A worker is gone with the states of its shards; returns what it had in hand, which is done again."""
        for shard in [shard for shard, home in self._home.items() if home == worker]:
            del self._home[shard]
            self._passed[shard] = 0
        item = self._in_hand.pop(worker, None)
        if isinstance(item, int):
            self._tasks.appendleft(item)
        return item
