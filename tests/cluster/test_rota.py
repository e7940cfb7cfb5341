"""Whoever is lost, every shard goes through every block in order, and every task is done once."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.cluster.rota import Rota, Step


class Workers:
    """Workers as they are: each knows how many blocks its shards have passed, and forgets it when it is lost."""

    def __init__(self, shards: int, count: int) -> None:
        self.rota, self.shards = Rota(shards), shards
        self.passed: list[dict[int, int]] = [{} for _ in range(count)]
        self.hands: list[Any] = [None] * count
        self.looked: list[tuple[int, int]] = []
        self.made: list[int] = []

    def step(self, worker: int) -> None:
        """A worker ends what it has in hand, or gets something."""
        if self.hands[worker] is None:
            self.hands[worker] = self.rota.assign(worker)
            return
        item, self.hands[worker] = self.hands[worker], None
        assert self.rota.done(worker) == item
        if isinstance(item, Step):
            # A pass begins where the states are.
            assert self.passed[worker].get(item.shard, 0) == item.block
            if item.moves:
                self.passed[worker][item.shard] = item.block + 1
            if item.looks:
                self.looked.append((item.shard, item.block))
        else:
            self.made.append(item)

    def lose(self, worker: int) -> None:
        assert self.rota.lost(worker) == self.hands[worker]
        self.hands[worker], self.passed[worker] = None, {}

    def until(self, done: Any, draws: np.random.Generator, losses: float) -> None:
        while not done():
            worker = int(draws.integers(len(self.hands)))
            self.lose(worker) if draws.random() < losses else self.step(worker)


@given(
    st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.05, 0.2])
)
def test_all_is_done_once_and_in_order(seed: int, count: int, shards: int, blocks: int, losses: float) -> None:
    draws = np.random.default_rng(seed)
    workers, tasks = Workers(shards, count), 0
    rota, expected = workers.rota, []
    for block in range(blocks):
        looks, moves = bool(draws.integers(2)), bool(draws.integers(2))
        if looks or moves:
            rota.walk(block, looks=looks, moves=moves)
            workers.until(lambda: rota.walked, draws, losses)
        expected += [(shard, block) for shard in range(shards) if looks]
        for _ in range(draws.integers(4)):
            rota.add(tasks)
            tasks += 1
        if not moves:
            rota.walk(block, looks=False, moves=True)
            workers.until(lambda: rota.walked, draws, losses)
    workers.until(lambda: not rota.unfinished, draws, losses)
    assert rota.waiting == 0
    assert sorted(workers.made) == list(range(tasks))
    assert sorted(workers.looked) == sorted(expected)
    # A block's looks come after those of the blocks before it.
    assert [block for _, block in workers.looked] == sorted(block for _, block in workers.looked)


def test_shards_stay_where_their_states_are_and_tasks_go_to_whoever_is_free() -> None:
    rota = Rota(3)
    for block in range(3):
        rota.walk(block, looks=True, moves=True)
        rota.add(10 + block)
        assert [rota.assign("a"), rota.assign("b")] == [Step(shard, block, True, True) for shard in (0, 1)]
        assert rota.assign("a") is None  # one thing at a time
        rota.done("b")
        rota.done("a")
        # The third one fell to who was free first, and is its own from then on.
        assert rota.assign("b") == Step(2, block, True, True)
        assert rota.assign("a") == 10 + block
        rota.done("a")
        assert not rota.walked
        rota.done("b")
        assert rota.walked
    rota.add(20)
    rota.add(21)
    assert (rota.assign("b"), rota.lost("b"), rota.waiting, rota.unfinished) == (20, 20, 2, 2)
    # What is done again comes first.
    assert (rota.assign("a"), rota.unfinished) == (20, 2)
    rota.walk(3, looks=False, moves=True)
    with pytest.raises(ValueError, match=r"shards \[0, 1, 2\] are still on their way"):
        rota.walk(4, looks=True, moves=True)
    # The lost one's shards are walked from the beginning.
    assert rota.assign("c") == Step(1, 0, False, True)
