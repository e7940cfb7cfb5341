"""A model over several GPUs: the map against all maps, and passes whose tensors may only meet on one device."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from fake_devices import CPU, GPUS, FakeDevices
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import tiny_store
from tiny import tiny_ids, tiny_model
from transformers import PreTrainedModel

from evoray.errors import UserError
from evoray.evaluator import Evaluator, Work
from evoray.fitness import Fitness
from evoray.model import ModelAdapter, load_model
from evoray.model.spread import Parts, device_map, free_output, parts_of, spread_blocks
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")

LARGE = 1 << 40

# The map


def all_ways(blocks: int, gpus: int) -> Iterator[tuple[int, ...]]:
    for cuts in combinations(range(1, blocks), gpus - 1):
        yield tuple(sum(block >= cut for cut in cuts) for block in range(blocks))


def shares(parts: Parts, way: tuple[int, ...], memory: list[int]) -> list[float]:
    held = [0] * len(memory)
    held[0] += parts.first
    held[-1] += parts.last
    for size, gpu in zip(parts.blocks, way, strict=True):
        held[gpu] += size
    return [size / room for size, room in zip(held, memory, strict=True)]


SIZES = st.integers(0, 50)


@settings(max_examples=150, deadline=None)
@given(
    SIZES,
    st.lists(st.integers(1, 50), min_size=1, max_size=8),
    SIZES,
    st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
def test_no_map_of_neighbouring_blocks_is_more_balanced(
    first: int, blocks: list[int], last: int, memory: list[int]
) -> None:
    parts = Parts(first, tuple(blocks), last)
    if len(blocks) < len(memory):
        with pytest.raises(UserError, match=rf"^--gpus-per-worker {len(memory)}: the model has {len(blocks)} blocks"):
            spread_blocks(parts, memory)
        return
    best = min(max(shares(parts, way, memory)) for way in all_ways(len(blocks), len(memory)))
    if best > 1:
        with pytest.raises(UserError, match=r"give more GPUs, or another --dtype$"):
            spread_blocks(parts, memory)
        return
    found = spread_blocks(parts, memory)
    assert found in set(all_ways(len(blocks), len(memory)))
    assert max(shares(parts, found, memory)) == best


def test_80_equal_blocks_go_over_4_equal_gpus_with_fewer_beside_embeddings_and_head() -> None:
    found = spread_blocks(Parts(20, (10,) * 80, 20), [LARGE] * 4)
    assert [found.count(gpu) for gpu in range(4)] == [19, 21, 21, 19]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "falcon", "gemma2", "mamba", "gemma3n"])
def test_each_weight_has_one_place_and_counts_once(family: str) -> None:
    model = tiny_model(family)
    parts, _, _ = parts_of(model, 4)
    assert parts.first + sum(parts.blocks) + parts.last == sum(4 * p.numel() for p in model.parameters())
    found = device_map(model, 4, [LARGE, LARGE])
    places: dict[int, set[int]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        paths = [path for path in found if name == path or name.startswith(f"{path}.")]
        assert len(paths) == 1, name
        places.setdefault(id(parameter), set()).add(found[paths[0]])
    assert all(len(gpus) == 1 for gpus in places.values()), "what is tied stays together"
    assert set(found.values()) == {0, 1}


def test_a_head_goes_last_unless_it_is_the_embedding_again() -> None:
    tied, loose = tiny_model("llama"), tiny_model("llama", tie_word_embeddings=False)
    assert device_map(tied, 4, [LARGE] * 3) == {
        **{"model.embed_tokens": 0, "model.rotary_emb": 0, "lm_head": 0, "model.norm": 2},
        **{f"model.layers.{block}": block for block in range(3)},
    }
    assert device_map(loose, 4, [LARGE] * 3)["lm_head"] == 2


# Passes


def spread(model: PreTrainedModel, devices: FakeDevices, gpus: int) -> ModelAdapter:
    """As the loader does it. To be called with the devices there."""
    places = device_map(model, 4, [LARGE] * gpus)
    dispatch_model(model, {path: GPUS[gpu] for path, gpu in places.items()}, skip_keys="past_key_values")
    free_output(model)
    assert {devices.place(parameter) for parameter in model.parameters()} == set(GPUS[:gpus])
    return ModelAdapter(model)


def changed(family: str) -> dict[str, object]:
    return {"tie_word_embeddings": False} if family == "qwen2" else {}


@pytest.mark.parametrize(
    ("family", "gpus"), [("llama", 3), ("qwen2", 2), ("gpt2", 2), ("gemma2", 3), ("opt", 2), ("mamba", 2)]
)
def test_a_spread_model_has_the_bits_of_an_undivided_one(family: str, gpus: int, tmp_path: Path) -> None:
    whole = ModelAdapter(tiny_model(family, **changed(family)))
    store = VariantStore.open(tiny_store(tmp_path / "store", whole))
    draws = np.random.default_rng(5)
    sites = [name for index in range(whole.n_blocks) for name in whole.sublayers[index]]
    sites += [name for name in whole.droppable if name not in sites]
    ids = tiny_ids(3, 12).numpy().astype(np.int32)
    rows_NL = draws.integers(-1, 3, (8, len(store.manifest.layers))).astype(np.int8)
    rows_NL[1:4, 3:] = rows_NL[0, 3:]
    dropped_ND = np.where(draws.random((8, len(sites))) < 0.15, 0, -1).astype(np.int8)
    rows_NL = np.concatenate([rows_NL, dropped_ND], axis=1)

    def measured(adapter: ModelAdapter) -> list[np.ndarray]:
        adapter.check_droppable(sites)
        evaluator = Evaluator(adapter, store, droppable=sites, prefetch=False)
        work = Work(ids, (12, 9, 5), vocabulary_chunk=32)
        found = [evaluator.losses(rows_NL, work, Fitness.perplexity)]
        for fitness in (Fitness.kl, Fitness.kl_topk):
            taught = Work(ids, (12, 9, 5), tuple(evaluator.teach(work, fitness)), 32)
            found += [part for block in taught.teacher for part in (block.vectors, block.scalars)]
            found.append(evaluator.losses(rows_NL, taught, fitness))
        found.append(evaluator.influences(work, [[name] for name in whole.sublayers[1]]))
        found.append(np.array(evaluator.pass_bytes(work, Fitness.kl) > 0))
        return found

    expected = measured(whole)
    with FakeDevices() as devices:
        adapter = spread(tiny_model(family, **changed(family)), devices, gpus)
        assert adapter.notes == whole.notes
        assert adapter.boundaries == whole.boundaries
        assert adapter.devices == GPUS[:gpus]
        assert adapter.device == GPUS[0]
        tied = devices.place(adapter.model.get_input_embeddings().weight) == adapter.head_device
        assert adapter.head_device == (GPUS[gpus - 1] if not tied else GPUS[0])
        assert tied == bool(adapter.model.config.tie_word_embeddings)
        found = measured(adapter)
        places = device_map(adapter.model, 4, [LARGE] * gpus)
        for name, ref in adapter.layers.items():
            wanted = GPUS[places[f"{adapter.blocks_name}.{ref.block}"]]
            # What was swapped in last, too.
            assert devices.place(ref.base) == devices.place(ref.module.weight) == wanted, name
        assert devices.moves > 0
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert np.array_equal(mine, its)


def test_the_loader_spreads_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_model("qwen2", tie_word_embeddings=False)
    whole.save_pretrained(tmp_path)
    # The devices are known to this thread alone.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    monkeypatch.setattr("evoray.model.load.pick_devices", lambda device, gpus: list(GPUS[:gpus]))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=LARGE))
    expected = whole(tiny_ids()).logits
    with FakeDevices() as devices:
        model = load_model(str(tmp_path), device="cuda", gpus=2)
        places = device_map(whole, 4, [LARGE] * 2)
        assert model.hf_device_map == {path: GPUS[gpu] for path, gpu in places.items()}
        for name, parameter in model.named_parameters():
            path = next(path for path in places if name.startswith(f"{path}."))
            assert devices.place(parameter) == GPUS[places[path]]
        logits = model(tiny_ids()).logits
        # Left where the head is, though the ids came from elsewhere.
        assert devices.place(logits) == GPUS[1]
        assert torch.equal(logits.cpu(), expected)


def test_the_fake_devices_notice_a_tensor_in_the_wrong_place() -> None:
    with FakeDevices() as devices:
        one, other = torch.ones(3, device=GPUS[0]), torch.ones(3).to(GPUS[1])
        assert (one.device, other.device, (one * 2).device) == (GPUS[0], GPUS[1], GPUS[0])
        with pytest.raises(RuntimeError, match="tensors on mtia:0 and mtia:1"):
            one + other
        with pytest.raises(RuntimeError, match="tensors on cpu and mtia:1"):
            torch.nn.functional.linear(torch.ones(2, 3), other[None])
        with pytest.raises(TypeError, match="numpy"):
            one.numpy()
        assert torch.equal(one.cpu(), torch.ones(3))
        assert (one + other.to(one)).device == GPUS[0]
        assert devices.place(torch.ones(2)) == CPU
        # Without its hooks a model stays where its weights are, and a pass between its devices fails.
        model = tiny_model("qwen2")
        for block, module in enumerate(model.model.layers):
            module.to(GPUS[block % 2])
        with pytest.raises(UserError, match="tensors on "):
            ModelAdapter(model)
