"""Ready weights in a bounded number of bytes: which stay, which go, and that they are the store's."""

import numpy as np
import pytest
import torch
from stores import tiny_store
from tiny import tiny_model

import evoray.evaluator
from evoray.errors import EvorayError
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

    monkeypatch.setattr(evoray.evaluator, "dense_weight", watched)
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
    cache.clear()
    assert cache.bytes == 0


def test_without_a_store_there_are_no_variants(adapter):
    with pytest.raises(EvorayError, match="without a store"):
        VariantCache(adapter, None, 1).get(next(iter(adapter.layers)), "3")
