"""Losses are the bits of plain passes of models with hand-set weights, whatever is reused, kept or evicted."""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import tiny_store
from tiny import tiny_ids, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

import evoray.evaluator.cache
from evoray.errors import EvorayError, UserError
from evoray.evaluator import Evaluator, Work
from evoray.fitness import Fitness, loss_head, place
from evoray.formats import dense_weight
from evoray.model import ModelAdapter
from evoray.store import VariantStore
from evoray.store.variants import layer_path

pytestmark = pytest.mark.usefixtures("same_products")

FAMILIES = ("llama", "gpt2", "gemma2", "gemma3n", "mamba")
CUTS = (12, 9, 5)
HUGE = 1 << 40


@dataclass
class Case:
    """One family: an untouched copy of the model beside the adapter that the evaluator works with."""

    plain: PreTrainedModel
    adapter: ModelAdapter
    store: VariantStore
    work: Work
    rows_NL: np.ndarray
    expected: dict[tuple[int, ...], np.ndarray]
    works: dict[Fitness, Work]

    def wanted(self, rows_NL: np.ndarray, fitness: Fitness = Fitness.kl) -> np.ndarray:
        return np.stack([self.expected[fitness, tuple(row.tolist())] for row in rows_NL])


def one_by_one(case: Case, row_L: np.ndarray, fitness: Fitness, work: Work) -> np.ndarray:
    """A plain pass of a copy of the model into which the weights were written by hand."""
    model = copy.deepcopy(case.plain)
    for entry, level in zip(case.store.manifest.layers, row_L, strict=True):
        if level >= 0:
            weight_OI = dense_weight(case.store.read(entry.name, entry.levels[level]), torch.float32)
            transposed = case.adapter.layers[entry.name].transposed
            model.get_submodule(entry.name).weight.data.copy_(weight_OI.T if transposed else weight_OI)
    decoder = next(name for name, module in case.adapter.model.named_modules() if module is case.adapter.decoder)
    ids_BT = torch.from_numpy(work.ids.astype(np.int64))
    with torch.no_grad():
        hidden_BTD = model.get_submodule(decoder)(input_ids=ids_BT, use_cache=False, return_dict=True)[0]
    head = loss_head(case.adapter, 16384)
    if fitness is Fitness.perplexity:
        return head.cross_entropy(hidden_BTD, work.cuts, ids_BT)
    taught = place(work.teacher, work.cuts, torch.device("cpu"))
    if fitness is Fitness.kl:
        return head.kl(hidden_BTD, work.cuts, taught)
    return (head.top.kl if fitness is Fitness.kl_topk else head.top.kl_renormalised)(hidden_BTD, work.cuts, taught)


def population(layers: int, levels: int) -> np.ndarray:
    """A parent, offspring that differ from it in a few layers, a few of them twice, strangers, and the base model."""
    rng = np.random.default_rng(7)
    parent = rng.integers(0, levels, layers)
    rows = [parent, np.full(layers, -1), rng.integers(-1, levels, layers)]
    for changes in (1, 2, 2, 4, 4, 6):
        child = parent.copy()
        child[rng.choice(layers, changes, replace=False)] = rng.integers(-1, levels, changes)
        rows.append(child)
    last = parent.copy()
    last[-1] = (last[-1] + 1) % levels
    return np.array([*rows, last, parent, rows[4]], dtype=np.int8)


def a_batch(seed: int = 1) -> Work:
    ids = tiny_ids(len(CUTS), max(CUTS), seed=seed).numpy().astype(np.int32)
    for row, cut in enumerate(CUTS):
        ids[row, cut:] = 0
    return Work(ids, CUTS)


@functools.cache
def a_case(family: str, folder: Path) -> Case:
    plain = tiny_model(family)
    adapter = ModelAdapter(copy.deepcopy(plain))
    symmetric = family != "gpt2"
    store = VariantStore.open(tiny_store(folder / family, adapter, symmetric=symmetric))
    work, evaluator = a_batch(), Evaluator(adapter, store)
    works = {
        fitness: Work(work.ids, work.cuts, tuple(evaluator.teach(work, fitness)) if fitness.needs_teacher else ())
        for fitness in Fitness
    }
    case = Case(plain, adapter, store, works[Fitness.kl], population(len(adapter.layers), 3), {}, works)
    for row in case.rows_NL:
        for fitness in Fitness:
            case.expected[fitness, tuple(row.tolist())] = one_by_one(case, row, fitness, works[fitness])
    return case


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, folder) -> Case:
    return a_case(request.param, folder)


@pytest.fixture(scope="module")
def llama(folder) -> Case:
    return a_case("llama", folder)


def reserved(adapter: ModelAdapter, store: VariantStore, work: Work, fitness: Fitness, prefetch: bool = False) -> int:
    """Bytes of work memory that an evaluator leaves for all but kept states."""
    evaluator = Evaluator(adapter, store, work_bytes=HUGE, prefetch=prefetch)
    return HUGE - evaluator._stack(evaluator._place(work, fitness), [1]).limit


def state_bytes(case: Case) -> int:
    kept: dict[int, Tensor] = {}
    ids_BT = torch.from_numpy(case.work.ids.astype(np.int64))
    case.adapter.hidden(ids_BT, keep=range(1, case.adapter.n_blocks), kept=kept)
    return max(state.nbytes for state in kept.values())


# Bit equality


@pytest.mark.parametrize("fitness", list(Fitness))
@pytest.mark.parametrize("reuse", [True, False])
def test_losses_are_those_of_plain_passes(case, fitness, reuse):
    evaluator = Evaluator(case.adapter, case.store, reuse=reuse)
    losses_NB = evaluator.losses(case.rows_NL, case.works[fitness], fitness)
    assert losses_NB.dtype == np.float64
    assert np.array_equal(losses_NB, case.wanted(case.rows_NL, fitness))
    # What the test is about is there: candidates differ, and few of them are the base model.
    assert len(np.unique(losses_NB[:, 0])) == len(np.unique(case.rows_NL, axis=0))


def test_gemma3n_resumes_nowhere_inside(folder):
    assert a_case("gemma3n", folder).adapter.boundaries == {0, 4}


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_order_limit_or_history_changes_a_bit(case, data):
    prefetch = data.draw(st.booleans())
    states = data.draw(st.sampled_from([-1, 0, 1, 2, 3, HUGE])) * state_bytes(case)
    evaluator = Evaluator(
        case.adapter,
        case.store,
        work_bytes=max(1, reserved(case.adapter, case.store, case.work, Fitness.kl, prefetch) + states),
        variant_bytes=data.draw(st.sampled_from([1, 5_000, 25_000, 60_000, HUGE])),
        reuse=data.draw(st.booleans() | st.just(True)),
        prefetch=prefetch,
    )
    for _ in range(2):
        picked = data.draw(st.lists(st.integers(0, len(case.rows_NL) - 1), min_size=0, max_size=8))
        rows_NL = case.rows_NL[picked]
        fitness = data.draw(st.sampled_from(Fitness))
        losses_NB = evaluator.losses(rows_NL, case.works[fitness], fitness)
        assert losses_NB.shape == (len(picked), len(CUTS))
        assert not picked or np.array_equal(losses_NB, case.wanted(rows_NL, fitness))
        if data.draw(st.booleans()):
            for found, held in zip(evaluator.teach(case.work), case.work.teacher, strict=True):
                assert np.array_equal(found.vectors, held.vectors)
                assert np.array_equal(found.scalars, held.scalars)
        if data.draw(st.booleans()):
            evaluator.losses(case.rows_NL[::-1][:3], a_batch(seed=9), Fitness.perplexity)


def test_candidates_one_per_call(case):
    evaluator = Evaluator(case.adapter, case.store)
    found = [evaluator.losses(row[None], case.work, Fitness.kl)[0] for row in case.rows_NL]
    assert np.array_equal(found, case.wanted(case.rows_NL))


@pytest.mark.parametrize("seed", range(3))
def test_layers_may_stand_in_any_order_in_the_manifest(llama, tmp_path, seed):
    names = [entry.name for entry in llama.store.manifest.layers]
    order = np.random.default_rng(seed).permutation(len(names))
    store = VariantStore.open(tiny_store(tmp_path, llama.adapter, order=[names[index] for index in order]))
    evaluator = Evaluator(llama.adapter, store)
    losses_NB = evaluator.losses(llama.rows_NL[:, order], llama.work, Fitness.kl)
    assert np.array_equal(losses_NB, llama.wanted(llama.rows_NL))
    assert evaluator.blocks_run == tree_nodes(llama)


def test_half_precision(tmp_path):
    adapter = ModelAdapter(tiny_model("mamba").bfloat16())
    store = VariantStore.open(tiny_store(tmp_path, adapter))
    whole = Evaluator(adapter, store, reuse=False)
    work = a_batch()
    work = Work(work.ids, work.cuts, tuple(whole.teach(work)))
    rows_NL = population(len(adapter.layers), 3)
    wanted = np.concatenate([whole.losses(row[None], work, Fitness.kl) for row in rows_NL])
    assert np.array_equal(Evaluator(adapter, store).losses(rows_NL, work, Fitness.kl), wanted)


# Work done and memory held


def tree_nodes(case: Case) -> int:
    """Different (block, levels of all layers up to it), counted the slow way."""
    entries = case.store.manifest.layers
    nodes = set()
    for row in case.rows_NL:
        for block in range(case.adapter.n_blocks):
            seen = [level for entry, level in zip(entries, row.tolist(), strict=True) if entry.block <= block]
            nodes.add((block, tuple(seen)))
    return len(nodes)


def test_every_node_of_the_prefix_tree_is_run_once(case):
    evaluator = Evaluator(case.adapter, case.store)
    evaluator.losses(case.rows_NL, case.work, Fitness.kl)
    different = len(np.unique(case.rows_NL, axis=0))
    if case.adapter.resumable:
        assert evaluator.blocks_run == tree_nodes(case) < different * case.adapter.n_blocks
    else:
        assert evaluator.blocks_run == different * case.adapter.n_blocks


def watch_stack(monkeypatch, adapter: ModelAdapter) -> list[tuple[int, int]]:
    """Notes after each pass how many states are kept, and their bytes."""
    sizes: list[tuple[int, int]] = []
    hidden = adapter.hidden

    def watched(*args, **kwargs):
        state = hidden(*args, **kwargs)
        kept = kwargs.get("kept") or {}
        sizes.append((len(kept), sum(tensor.nbytes for tensor in kept.values())))
        return state

    monkeypatch.setattr(adapter, "hidden", watched)
    return sizes


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("fitting", [0, 0.9, 1, 1.5, 2, 3, 4, 7, 8])
def test_kept_states_stay_within_their_limit(monkeypatch, tmp_path, family, fitting):
    # Mamba carries float32 states, twice the width of its weights here.
    blocks = {"n_layer": 6} if family == "gpt2" else {"num_hidden_layers": 6}
    adapter = _deep(family, tuple(blocks.items()))
    store = VariantStore.open(tiny_store(tmp_path, adapter, levels=("2", "4")))
    work = a_batch()
    one: dict[int, Tensor] = {}
    adapter.hidden(torch.from_numpy(work.ids.astype(np.int64)), keep=(3,), kept=one)
    limit = int(fitting * one[3].nbytes)
    # In sorted order each of these differs from the next one block further up.
    rows_NL = np.zeros((6, len(adapter.layers)), dtype=np.int8)
    for candidate in range(1, 6):
        first = next(i for i, entry in enumerate(store.manifest.layers) if entry.block == 6 - candidate)
        rows_NL[candidate, first] = 1
    reserve = reserved(adapter, store, work, Fitness.perplexity)
    evaluator = Evaluator(adapter, store, work_bytes=reserve + limit)
    sizes = watch_stack(monkeypatch, adapter)
    evaluator.losses(rows_NL, work, Fitness.perplexity)
    assert max(held for _, held in sizes) <= limit
    # And it is used: as many states as an even stride over the inner five boundaries allows.
    stride = next(stride for stride in range(1, 7) if 5 // stride <= int(fitting))
    assert max(count for count, _ in sizes) == 5 // stride
    if fitting >= 5:
        assert evaluator.blocks_run == 6 + 1 + 2 + 3 + 4 + 5


@functools.cache
def _deep(family: str, changes: tuple[tuple[str, int], ...]) -> ModelAdapter:
    return ModelAdapter(tiny_model(family, **dict(changes)).bfloat16())


def test_nothing_is_decoded_twice_that_is_still_at_hand(llama):
    evaluator = Evaluator(llama.adapter, llama.store)
    for _ in range(3):
        evaluator.losses(llama.rows_NL, llama.work, Fitness.kl)
    used = {(site, level) for row in llama.rows_NL for site, level in enumerate(row.tolist()) if level >= 0}
    assert evaluator.cache.misses == len(used)


# Failures


def spoil(store: VariantStore, layer: str, level: str) -> None:
    """Flips one bit of a variant's codes on disk."""
    codes = bytes(store.read(layer, level).columns["codes"])
    path = Path(store.location.local_path) / layer_path(layer)
    data = bytearray(path.read_bytes())
    data[data.index(codes) + len(codes) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("variant_bytes", [1, HUGE])
@pytest.mark.parametrize("site", [0, 8, -1])
def test_a_corrupt_variant_is_named_and_harms_nobody_else(llama, tmp_path, site, variant_bytes):
    place_of_store = tiny_store(tmp_path, llama.adapter)
    victim = llama.store.manifest.layers[site].name
    spoil(VariantStore.open(place_of_store), victim, "3")
    evaluator = Evaluator(llama.adapter, VariantStore.open(place_of_store), variant_bytes=variant_bytes)
    healthy = llama.rows_NL[llama.rows_NL[:, site] != 1]
    assert len(healthy) >= 3
    for attempt in range(3):
        rows_NL = np.concatenate([healthy[:2], np.roll(llama.rows_NL[1:4], attempt, axis=0)])
        rows_NL[2 + attempt % 2] = 2
        rows_NL[2 + attempt % 2, site] = 1
        with pytest.raises(UserError, match=rf"layer {victim}, level 3: .* is corrupt"):
            evaluator.losses(rows_NL, llama.work, Fitness.kl)
        assert np.array_equal(evaluator.losses(healthy, llama.work, Fitness.kl), llama.wanted(healthy))
    taught = evaluator.teach(llama.work)
    assert np.array_equal(taught[0].vectors, llama.work.teacher[0].vectors)


def test_losses_that_are_no_numbers_are_infinite(llama, monkeypatch):
    monkeypatch.setattr(
        evoray.evaluator.cache, "dense_weight", lambda *args: torch.full_like(dense_weight(*args), torch.inf)
    )
    rows_NL = llama.rows_NL[[1, 0]]
    for fitness in Fitness:
        losses_NB = Evaluator(llama.adapter, llama.store).losses(rows_NL, llama.works[fitness], fitness)
        assert np.array_equal(losses_NB[0], llama.wanted(rows_NL[:1], fitness)[0])
        assert np.all(losses_NB[1] == np.inf)


def test_a_teacher_of_another_batch_is_refused(llama):
    evaluator = Evaluator(llama.adapter, llama.store)
    for teacher in [(), llama.work.teacher[::-1], llama.work.teacher[:2]]:
        with pytest.raises(EvorayError, match="teacher"):
            evaluator.losses(llama.rows_NL, Work(llama.work.ids, CUTS, teacher), Fitness.kl)


def test_a_store_of_another_model_is_refused(llama, folder):
    with pytest.raises(EvorayError, match="has a layer"):
        Evaluator(llama.adapter, a_case("gpt2", folder).store)


# Padding, and the base model


def test_padding_changes_next_to_nothing(case):
    """Cuts are seen by the loss alone, so only the shapes of products differ: 1e-6 relative in float32."""
    for fitness in Fitness:
        padded_NB = Evaluator(case.adapter, case.store).losses(case.rows_NL, case.works[fitness], fitness)
        for row, cut in enumerate(CUTS):
            alone = Work(case.work.ids[row : row + 1, :cut], (cut,), case.works[fitness].teacher[row : row + 1])
            evaluator = Evaluator(case.adapter, case.store)
            alone_N = evaluator.losses(case.rows_NL, alone, fitness)[:, 0]
            base = (case.rows_NL < 0).all(1) & fitness.needs_teacher
            # A divergence is the difference of logarithms that are many times as large: of each token a ten-millionth.
            np.testing.assert_allclose(alone_N[~base], padded_NB[~base, row], rtol=1e-6, atol=1e-7 * cut)
            assert np.all(np.abs(alone_N[base] - padded_NB[base, row]) < 1e-6 * cut)


@pytest.mark.parametrize("fill", [3, 50, 96])
def test_what_stands_in_the_padding_does_not_matter(case, fill):
    ids = case.work.ids.copy()
    for row, cut in enumerate(CUTS):
        ids[row, cut:] = fill
    evaluator = Evaluator(case.adapter, case.store)
    for fitness in Fitness:
        losses_NB = evaluator.losses(case.rows_NL, Work(ids, CUTS, case.works[fitness].teacher), fitness)
        np.testing.assert_array_equal(losses_NB, case.wanted(case.rows_NL, fitness))


def test_the_base_model_does_not_diverge_from_itself(case):
    base = np.full((1, len(case.adapter.layers)), -1, dtype=np.int8)
    losses_1B = Evaluator(case.adapter, case.store).losses(base, case.work, Fitness.kl)
    assert np.all(np.abs(losses_1B) < 1e-12 * np.array(CUTS))
    alone = Evaluator(case.adapter, None)
    assert np.array_equal(alone.losses(np.zeros((2, 0), np.int8), case.work, Fitness.kl), losses_1B.repeat(2, 0))
