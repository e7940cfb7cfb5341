"""What a call holds at most is counted, evaluators keep within their limit, and what gives way changes no bit."""

import numpy as np
import pytest
import torch
from stores import tiny_store
from tiny import tiny_ids, tiny_model

import evoray.evaluator.evaluator
from evoray.errors import DeviceFullError
from evoray.evaluator import Evaluator, Work, peak_bytes
from evoray.evaluator.boundaries import BoundaryStack
from evoray.fitness import Fitness
from evoray.model import ModelAdapter
from evoray.store import VariantStore

CPU = torch.device("cpu")
CUTS = (40, 33, 17)
HUGE = 1 << 40


@pytest.fixture(scope="module")
def adapter() -> ModelAdapter:
    return ModelAdapter(tiny_model("llama", num_hidden_layers=6))


@pytest.fixture(scope="module")
def store(adapter, tmp_path_factory) -> VariantStore:
    return VariantStore.open(tiny_store(tmp_path_factory.mktemp("store"), adapter))


@pytest.fixture(scope="module")
def work(adapter, store) -> Work:
    plain = Work(tiny_ids(len(CUTS), max(CUTS)).numpy().astype(np.int32), CUTS)
    return Work(plain.ids, CUTS, tuple(Evaluator(adapter, store).teach(plain)))


@pytest.fixture(scope="module")
def rows_NL(adapter) -> np.ndarray:
    rng = np.random.default_rng(3)
    rows = np.zeros((12, len(adapter.layers)), dtype=np.int8)
    for row in rows[1:]:
        row[rng.choice(len(row), 2, replace=False)] = rng.integers(-1, 3, 2)
    return rows


@pytest.fixture(scope="module")
def wanted(adapter, store, work, rows_NL) -> np.ndarray:
    return Evaluator(adapter, store, reuse=False, variant_bytes=1).losses(rows_NL, work, Fitness.kl)


# Counting


def test_tensors_count_while_they_live():
    given = torch.ones(100, 100)

    def call() -> torch.Tensor:
        first = given + 1  # 40,000 bytes
        second = first.view(-1)[5:] * 2  # 39,980 more; the view is nothing
        del first
        second.add_(1)
        third = torch.cat([given, given])  # 80,000 beside the second's
        del second
        return third[:100] + given  # 40,000 beside the third's

    assert peak_bytes(CPU, call) == 80_000 + 40_000


def test_what_a_call_is_given_and_what_was_there_do_not_count():
    given = torch.ones(1000)
    assert peak_bytes(CPU, lambda: given.view(10, 100)[2:]) == 0
    assert peak_bytes(CPU, lambda: given.mul_(2)) == 0


def test_what_is_let_go_in_between_does_not_add_up():
    assert peak_bytes(CPU, lambda: [torch.zeros(1000) for _ in range(3)] and None) == 12_000

    def one_by_one() -> None:
        for _ in range(5):
            torch.zeros(1000)

    assert peak_bytes(CPU, one_by_one) == 4_000


# The limit


@pytest.mark.parametrize("states", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("prefetch", [False, True])
def test_all_beside_base_and_variants_stays_within_the_limit(adapter, store, work, rows_NL, wanted, states, prefetch):
    state = 4 * work.ids.size * adapter.hidden_size
    probing = Evaluator(adapter, store, work_bytes=HUGE, prefetch=prefetch)
    reserve = HUGE - probing._stack(probing._place(work, Fitness.kl), [1]).limit
    limit = reserve + states * state
    evaluator = Evaluator(adapter, store, work_bytes=limit, prefetch=prefetch)
    evaluator.losses(rows_NL, work, Fitness.kl)  # all variants are ready from now on, as limits say nothing of them
    peak = peak_bytes(CPU, lambda: evaluator.losses(rows_NL, work, Fitness.kl))
    assert peak <= limit
    assert np.array_equal(evaluator.losses(rows_NL, work, Fitness.kl), wanted)


def test_a_rehearsal_serves_all_smaller_batches(adapter, store, work, rows_NL, monkeypatch):
    evaluator = Evaluator(adapter, store)
    evaluator.losses(rows_NL, work, Fitness.kl)
    passes = []
    monkeypatch.setattr(adapter, "hidden", lambda *args, **kwargs: passes.append(1) or hidden(*args, **kwargs))
    hidden = type(adapter).hidden.__get__(adapter)
    smaller = Work(work.ids[:2, :33], (33, 33), tuple(block.cut(33) for block in work.teacher[:2]))
    different = len(np.unique(rows_NL, axis=0))
    evaluator.losses(rows_NL, smaller, Fitness.kl)
    assert len(passes) == different
    evaluator.losses(rows_NL, Work(work.ids, CUTS, work.teacher, vocabulary_chunk=1 << 20), Fitness.kl)
    assert len(passes) == 2 * different + 1


def test_a_pass_takes_more_memory_with_more_tokens_and_more_of_the_vocabulary_at_once(adapter, store, work):
    evaluator = Evaluator(adapter, store)
    sizes = [
        evaluator.pass_bytes(Work(work.ids[:rows], CUTS[:rows], (), chunk), Fitness.kl)
        for rows, chunk in [(1, 97), (3, 97)]
    ]
    assert sizes[0] < sizes[1]
    # The head is wide enough here that its chunk decides.
    wide = ModelAdapter(tiny_model("llama", vocab_size=4000))
    evaluator = Evaluator(wide, None)
    ids = work.ids
    small, large = (evaluator.pass_bytes(Work(ids, CUTS, (), chunk), Fitness.kl) for chunk in (256, 4000))
    assert large - small > 0.8 * sum(CUTS) * (4000 - 256) * 4


# A full device


class FullDevice:
    """Raises out of memory in the middle of a pass while more is held than is allowed.

    Args:
        evaluator: whose ready weights and kept states count.
        allowed: bytes of both.
    """

    def __init__(self, monkeypatch, evaluator: Evaluator, allowed: int, *, without_prefetch: bool = False) -> None:
        self.evaluator, self.allowed, self.without_prefetch = evaluator, allowed, without_prefetch
        self.refused: list[tuple[int, int, bool]] = []  # room for variants, room for states, prefetch
        self.stack: BoundaryStack | None = None
        make = type(evaluator)._stack

        def watched(*args):
            self.stack = make(evaluator, *args)
            return self.stack

        monkeypatch.setattr(evaluator, "_stack", watched)
        block = evaluator.adapter.blocks[3].mlp
        self.close = block.register_forward_pre_hook(self._check).remove

    def _check(self, *_: object) -> None:
        if self.stack is None:
            return
        cache = self.evaluator.cache
        if cache.bytes + self.stack.bytes > self.allowed or (self.without_prefetch and cache.prefetches):
            self.refused.append((cache.limit, self.stack.limit, cache.prefetches))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more text.")


@pytest.mark.parametrize("allowed", [0, 10_000, 40_000, 100_000, 400_000])
@pytest.mark.parametrize("prefetch", [False, True])
def test_what_gives_way_changes_no_bit(adapter, store, work, rows_NL, wanted, monkeypatch, allowed, prefetch):
    evaluator = Evaluator(adapter, store, prefetch=prefetch)
    device = FullDevice(monkeypatch, evaluator, allowed, without_prefetch=allowed == 0)
    try:
        for _ in range(2):
            assert np.array_equal(evaluator.losses(rows_NL, work, Fitness.kl), wanted)
    finally:
        device.close()
    assert device.refused
    variants, states, prefetching = zip(*device.refused, strict=True)
    # First ready weights, then states, then the prefetch: nobody gives before the one in front has given all.
    assert list(variants) == sorted(variants, reverse=True)
    assert all(limit == states[0] for limit, held in zip(states, variants, strict=True) if held > 30_000)
    assert evaluator.cache.prefetches == (prefetch and allowed > 0)
    assert list(prefetching) == sorted(prefetching, reverse=True)


def test_a_pass_for_which_there_is_no_room_is_told_and_harms_no_later_one(
    adapter, store, work, rows_NL, wanted, monkeypatch
):
    evaluator = Evaluator(adapter, store, prefetch=True)
    evaluator.losses(rows_NL[:2], work, Fitness.kl)
    limits = evaluator.cache.limit
    device = FullDevice(monkeypatch, evaluator, -1)
    with pytest.raises(DeviceFullError, match=r"cpu has no room for a pass \(CUDA out of memory.*GiB\.\); lower --tok"):
        evaluator.losses(rows_NL, work, Fitness.kl)
    device.close()
    # It was the pass that was too large: what gave way in vain comes back.
    assert evaluator.cache.limit == limits
    assert evaluator.cache.prefetches
    assert np.array_equal(evaluator.losses(rows_NL, work, Fitness.kl), wanted)


@pytest.mark.parametrize("calls", range(5))
def test_a_pass_that_fails_once_is_done_again(adapter, store, work, rows_NL, wanted, calls):
    evaluator = Evaluator(adapter, store)
    left = [calls]

    def fail_once(*_: object) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise torch.OutOfMemoryError("out of memory")

    handle = adapter.blocks[2].mlp.register_forward_pre_hook(fail_once)
    try:
        assert np.array_equal(evaluator.losses(rows_NL, work, Fitness.kl), wanted)
    finally:
        handle.remove()


def test_a_variant_for_which_there_is_no_room_in_the_background_is_fetched_again(
    adapter, store, work, rows_NL, wanted, monkeypatch
):
    evaluator = Evaluator(adapter, store, prefetch=True)
    decode, failures = evaluator.cache.decode, [7, 3]

    def scarce(layer: str, level: str) -> torch.Tensor:
        if failures:
            failures[-1] -= 1
            if failures[-1] == 0:
                failures.pop()
                raise torch.OutOfMemoryError("out of memory")
        return decode(layer, level)

    monkeypatch.setattr(evaluator.cache, "decode", scarce)
    assert np.array_equal(evaluator.losses(rows_NL, work, Fitness.kl), wanted)
    assert not failures


def test_ready_weights_give_way_to_a_batch_too(adapter, store, work, rows_NL, wanted, monkeypatch):
    evaluator = Evaluator(adapter, store)
    evaluator.losses(rows_NL, work, Fitness.kl)
    place = evoray.evaluator.evaluator.place

    def full(*arguments):
        if evaluator.cache.bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return place(*arguments)

    monkeypatch.setattr(evoray.evaluator.evaluator, "place", full)
    assert evaluator.cache.bytes
    assert np.array_equal(evaluator.losses(rows_NL, work, Fitness.kl), wanted)

    def always(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(evoray.evaluator.evaluator, "place", always)
    with pytest.raises(DeviceFullError, match="no room for a pass"):
        evaluator.losses(rows_NL, work, Fitness.kl)


def test_what_a_pass_takes_is_rehearsed_for_each_measure(adapter, store, work, rows_NL):
    """One against another's teacher takes more than one against the next token alone."""
    evaluator = Evaluator(adapter, store)
    for fitness in (Fitness.perplexity, Fitness.kl, Fitness.perplexity):
        evaluator.losses(rows_NL, work, fitness)
    assert [fitness for fitness, _, _ in evaluator._rehearsed] == [Fitness.perplexity, Fitness.kl]
