"""Ready weights in a bounded number of bytes: which stay, which go, and that they are the store's."""

import numpy as np
import pytest
import torch
from stores import tiny_store
from tiny import tiny_model

import evoray.evaluator.cache
from evoray.errors import EvorayError, UserError
from evoray.evaluator import VariantCache
from evoray.formats import dense_weight
from evoray.model import ModelAdapter
from evoray.store import VariantStore


@pytest.fixture(scope="module")
def adapter() -> ModelAdapter:
    return ModelAdapter(tiny_model("llama"))


@pytest.fixture(scope="module")
def store(adapter, tmp_path_factory) -> VariantStore:
    return VariantStore.open(tiny_store(tmp_path_factory.mktemp("store"), adapter))


@pytest.mark.parametrize("limit", [0, 1, 16_384, 50_000, 100_000])
def test_ready_weights_stay_within_their_limit(adapter, store, monkeypatch, limit):
    cache = VariantCache(adapter, store, limit)

    def watched(variant, dtype, device):
        weight = dense_weight(variant, dtype, device)
        if weight.nbytes <= limit:
            assert cache.bytes + weight.nbytes <= limit, "room has to be made before a weight is"
        return weight

    monkeypatch.setattr(evoray.evaluator.cache, "dense_weight", watched)
    rng = np.random.default_rng(3)
    names = list(adapter.layers)
    recent: list[tuple[str, str]] = []
    for _ in range(300):
        key = (names[rng.integers(len(names))], "234"[rng.integers(3)])
        # The reference: the most recently used weights that fit together, each new one pushing out the oldest.
        known = key in recent
        hits = cache.hits
        weight = cache.get(*key)
        assert cache.hits == hits + known
        if known:
            recent.remove(key)
        size = {name: adapter.layers[name].base.nbytes for name in names}
        if known or size[key[0]] <= limit:
            recent.append(key)
            while sum(size[name] for name, _ in recent) > limit:
                recent.pop(0)
        assert cache.bytes == sum(size[name] for name, _ in recent) <= limit
        wanted = adapter.ready(key[0], dense_weight(store.read(*key), torch.float32))
        assert torch.equal(weight, wanted)
    while cache.halve():
        assert cache.bytes <= cache.limit
    assert cache.bytes == 0


def test_announced_variants_come_in_the_background_within_the_limit(adapter, store):
    names = list(adapter.layers)
    rng = np.random.default_rng(5)
    for limit in (1, 40_000, 1 << 30):
        cache = VariantCache(adapter, store, limit, prefetch=True)
        for _ in range(60):
            keys = [(names[rng.integers(len(names))], "234"[rng.integers(3)]) for _ in range(3)]
            cache.announce(keys)
            assert cache.bytes <= limit
            for key in keys:
                assert torch.equal(
                    cache.get(*key), adapter.ready(key[0], dense_weight(store.read(*key), torch.float32))
                )
                assert cache.bytes <= limit
        assert cache.misses == 0 or limit < 1 << 30


@pytest.mark.parametrize("limit", [1, 20_000, 40_000, 100_000, 1 << 30])
def test_no_announced_variant_pushes_out_another(adapter, store, limit):
    names = list(adapter.layers)
    made = {}
    for prefetch in (False, True):
        cache = VariantCache(adapter, store, limit, prefetch)
        decode, calls = cache.decode, []
        cache.decode = lambda *key, decode=decode, calls=calls: calls.append(key) or decode(*key)
        draws = np.random.default_rng(5)
        for _ in range(40):
            keys = [(name, "234"[draws.integers(3)]) for name in names]
            cache.announce(keys)
            for key in keys:
                cache.get(*key)
        made[prefetch] = len(calls)
    # What is brought early would be made anyway; little is dropped before it is asked for, where room is short.
    assert made[True] <= made[False] * 1.02


def test_a_corrupt_variant_found_in_the_background_is_told_when_it_is_asked_for(adapter, store, monkeypatch):
    cache = VariantCache(adapter, store, 1 << 30, prefetch=True)
    layer = next(iter(adapter.layers))

    def corrupt(variant, dtype, device):
        raise UserError("layer x, level 3 is corrupt")

    with monkeypatch.context() as patched:
        patched.setattr(evoray.evaluator.cache, "dense_weight", corrupt)
        cache.announce([(layer, "3")])
        with pytest.raises(UserError, match="level 3"):
            cache.get(layer, "3")
    assert cache.bytes == 0
    assert cache.get(layer, "3").shape == adapter.layers[layer].base.shape


def test_whatever_went_wrong_in_the_background_is_tried_again(adapter, store, monkeypatch):
    cache = VariantCache(adapter, store, 1 << 30, prefetch=True)
    layer = next(iter(adapter.layers))

    def broken(*_):
        raise OSError("input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "read", broken)
        cache.announce([(layer, "3")])
        with pytest.raises(OSError, match="input/output"):
            cache.get(layer, "3")
    assert cache.bytes == 0
    assert cache.get(layer, "3").shape == adapter.layers[layer].base.shape


def test_without_a_store_there_are_no_variants(adapter):
    with pytest.raises(EvorayError, match="without a store"):
        VariantCache(adapter, None, 1).get(next(iter(adapter.layers)), "3")
