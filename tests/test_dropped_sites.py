"""Candidates with dropped sublayers, blocks and variants mixed: the bits of one pass each; and influences of parts."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import tiny_store
from tiny import tiny_ids, tiny_model

from evoray.errors import EvorayError
from evoray.evaluator import Evaluator, Work
from evoray.fitness import INFLUENCES, Fitness, loss_head
from evoray.formats import dense_weight
from evoray.model import DropKind, ModelAdapter
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")

FAMILIES = ("llama", "opt", "falcon", "mamba")
CUTS = (11, 7)


@functools.cache
def a_case(family: str, folder: Path) -> tuple[ModelAdapter, VariantStore, tuple[str, ...]]:
    """A model, its store, and all its droppable sites in an order of no use to anybody."""
    adapter = ModelAdapter(tiny_model(family))
    store = VariantStore.open(tiny_store(folder / family, adapter))
    names = np.random.default_rng(3).permutation(list(adapter.droppable))
    return adapter, store, tuple(map(str, names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stores")


def a_batch() -> Work:
    return Work(tiny_ids(2, max(CUTS)).numpy().astype(np.int32), CUTS)


def by_hand(adapter: ModelAdapter, store: VariantStore, names: tuple[str, ...], row: np.ndarray, work: Work):
    """A plain pass of a model with variants written into its weights, and zeros into what is dropped."""
    model = tiny_model(adapter.model.config.model_type)
    for entry, level in zip(store.manifest.layers, row, strict=False):
        if level >= 0:
            weight_OI = dense_weight(store.read(entry.name, entry.levels[level]), torch.float32)
            model.get_submodule(entry.name).weight.data.copy_(weight_OI)
    for name, level in zip(names, row[len(store.manifest.layers) :], strict=True):
        site = adapter.droppable[name]
        if level == 0:
            for sublayer in adapter.sublayers[site.block] if site.kind is DropKind.block else [name]:
                parent, _, last = sublayer.rpartition(".")
                for path in last.split("+"):
                    for parameter in model.get_submodule(f"{parent}.{path}").parameters():
                        parameter.data.zero_()
    ids_BT = torch.from_numpy(work.ids.astype(np.int64))
    decoder = next(name for name, module in adapter.model.named_modules() if module is adapter.decoder)
    with torch.no_grad():
        hidden_BTD = model.get_submodule(decoder)(input_ids=ids_BT, use_cache=False, return_dict=True)[0]
    return loss_head(adapter, 16384).cross_entropy(hidden_BTD, work.cuts, ids_BT)


def population(layers: int, sites: int, seed: int) -> np.ndarray:
    """Offspring of a parent that differ from it in a few columns each, and strangers."""
    rng = np.random.default_rng(seed)
    parent = np.concatenate([rng.integers(-1, 3, layers), np.where(rng.random(sites) < 0.2, 0, -1)])
    rows = [parent, np.full(layers + sites, -1)]
    for _ in range(8):
        child = parent.copy()
        some = rng.choice(sites, 2, replace=False) + layers
        child[some] = -1 - child[some]
        child[rng.choice(layers, 2)] = rng.integers(-1, 3, 2)
        rows.append(child)
    return np.array(rows, dtype=np.int8)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_silenced_models_in_any_order(family, folder):
    adapter, store, names = a_case(family, folder)
    work = a_batch()
    rows_NL = population(len(store.manifest.layers), len(names), seed=1)
    wanted_NB = np.stack([by_hand(adapter, store, names, row, work) for row in rows_NL])
    assert len(np.unique(wanted_NB[:, 0])) > 4
    order = np.random.default_rng(0).permutation(len(rows_NL))
    for reuse in (True, False):
        evaluator = Evaluator(adapter, store, droppable=names, reuse=reuse)
        assert np.array_equal(evaluator.losses(rows_NL, work, Fitness.perplexity), wanted_NB)
        assert np.array_equal(evaluator.losses(rows_NL[order], work, Fitness.perplexity), wanted_NB[order])


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_sorted_order_is_one_by_one(data, folder):
    adapter, store, names = a_case(data.draw(st.sampled_from(FAMILIES)), folder)
    work = a_batch()
    some = tuple(data.draw(st.lists(st.sampled_from(names), unique=True, min_size=2)))
    rows_NL = population(len(store.manifest.layers), len(some), seed=data.draw(st.integers(0, 99)))
    limits = {"work_bytes": data.draw(st.sampled_from([1, 200_000, 250_000, 1 << 30])), "variant_bytes": 30_000}
    together = Evaluator(adapter, store, droppable=some, **limits)
    found_NB = together.losses(rows_NL, work, Fitness.perplexity)
    alone = Evaluator(adapter, store, droppable=some, reuse=False)
    wanted_NB = np.concatenate([alone.losses(row[None], work, Fitness.perplexity) for row in rows_NL])
    assert np.array_equal(found_NB, wanted_NB)


def test_layers_of_what_is_dropped_are_not_read(folder, monkeypatch):
    adapter, store, _ = a_case("llama", folder)
    names = ("model.layers.0.mlp", "model.layers.1", "model.layers.1.self_attn")
    evaluator = Evaluator(adapter, store, droppable=names)
    read: list[str] = []
    own = store.read
    monkeypatch.setattr(store, "read", lambda layer, level: read.append(layer) or own(layer, level))
    layers = len(store.manifest.layers)
    row = np.full((4, layers + 3), 1, dtype=np.int8)
    row[:, layers:] = [[0, 0, -1], [0, 0, 0], [0, 0, -1], [0, 0, -1]]
    row[2, [layer.name.endswith("0.mlp.up_proj") for layer in store.manifest.layers] + [False] * 3] = 2
    row[3, : layers // 2] = 1
    given_rows = row.copy()
    losses_NB = evaluator.losses(row, a_batch(), Fitness.perplexity)
    assert np.array_equal(row, given_rows)
    wanted = {
        layer.name for layer in store.manifest.layers if layer.block != 1 and not layer.name.startswith(names[0] + ".")
    }
    assert sorted(read) == sorted(wanted)
    # Candidates that differ only inside what they dropped are one, and are run once.
    assert evaluator.blocks_run == adapter.n_blocks
    assert np.all(losses_NB == losses_NB[0])


def test_a_new_evaluator_finds_a_whole_model():
    adapter = ModelAdapter(tiny_model("llama"))
    base = adapter.logits(tiny_ids())
    for name in adapter.droppable:
        adapter.drop(name)
    Evaluator(adapter, None)
    assert torch.equal(adapter.logits(tiny_ids()), base)


def test_unknown_sites_are_refused():
    adapter = ModelAdapter(tiny_model("llama"))
    with pytest.raises(EvorayError, match=r"model\.layers\.7 is no sublayer or block"):
        Evaluator(adapter, None, droppable=["model.layers.7"])
    with pytest.raises(EvorayError, match=r"model\.layers\.7 is no sublayer or block"):
        Evaluator(adapter, None).influences(a_batch(), [("model.layers.7",)])
    with pytest.raises(EvorayError, match="does not go forward"):
        Evaluator(adapter, None).influences(a_batch(), [("model.layers.1", "model.layers.0")])


# Influences


def measures(before_TD: torch.Tensor, behind_TD: torch.Tensor) -> list[float]:
    """The published definitions, a token at a time."""
    sums = [0.0] * 4
    for x, y in zip(before_TD.double(), behind_TD.double(), strict=True):
        sums[0] += 1 - float(x @ y / (x.norm() * y.norm()))
        sums[1] += float((y - x).norm() / y.norm())
        sums[2] += float((y - x).norm())
        sums[3] += float((y / y.norm() - x / x.norm()).norm())
    return sums


def states_by_hooks(model, ids_BT: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Before and behind each part of a llama, from what its real modules take and give."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    held: dict[str, torch.Tensor] = {}
    hooks = []
    for index, block in enumerate(model.model.layers):
        name = f"model.layers.{index}"

        def before(module, args, name=name):
            held[name] = args[0]

        def attention(module, args, output, name=name):
            found[f"{name}.self_attn"] = (held[name], held[name] + output[0])

        def between(module, args, name=name):
            held[f"{name}.mlp"] = args[0]

        def feed_forward(module, args, output, name=name):
            found[f"{name}.mlp"] = (held[f"{name}.mlp"], held[f"{name}.mlp"] + output)

        def whole(module, args, output, name=name):
            found[name] = (args[0], output)

        hooks += [
            block.input_layernorm.register_forward_pre_hook(before),
            block.post_attention_layernorm.register_forward_pre_hook(between),
            block.self_attn.register_forward_hook(attention),
            block.mlp.register_forward_hook(feed_forward),
            block.register_forward_hook(whole),
        ]
    with torch.no_grad():
        model(input_ids=ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def test_influences_are_those_of_the_real_modules_states():
    model = tiny_model("llama")
    work = a_batch()
    states = states_by_hooks(model, torch.from_numpy(work.ids.astype(np.int64)))
    adapter = ModelAdapter(model)
    spans = [(name,) for name in adapter.droppable]
    blocks = [f"model.layers.{block}" for block in range(3)]
    runs = [tuple(blocks[:2]), tuple(blocks[1:]), tuple(blocks)]
    evaluator = Evaluator(adapter, None, droppable=("model.layers.1.mlp",))
    evaluator.losses(np.zeros((1, 1), dtype=np.int8), work, Fitness.perplexity)  # leaves a site dropped
    found_S4B = evaluator.influences(work, [*spans, *runs, spans[0]])
    assert found_S4B.shape == (len(spans) + 4, len(INFLUENCES), 2)
    assert found_S4B.dtype == np.float64
    for span, found_4B in zip([*spans, *runs, spans[0]], found_S4B, strict=True):
        before, behind = states[span[0]][0], states[span[-1]][1]
        for row, cut in enumerate(CUTS):
            np.testing.assert_allclose(found_4B[:, row], measures(before[row, :cut], behind[row, :cut]), rtol=1e-9)
    # Nothing stays dropped.
    assert torch.equal(adapter.hidden(tiny_ids()), ModelAdapter(tiny_model("llama")).hidden(tiny_ids()))


@pytest.mark.parametrize("family", ["falcon", "cohere", "opt", "bloom", "gemma2"])
def test_influences_of_sublayers_are_of_the_sum_so_far(family):
    adapter = ModelAdapter(tiny_model(family))
    work = a_batch()
    ids_BT = torch.from_numpy(work.ids.astype(np.int64))
    states: dict[int, torch.Tensor] = {}
    adapter.hidden(ids_BT, keep=range(4), kept=states)
    first, second = adapter.sublayers[1]
    adapter.drop(second)
    between = adapter.hidden(ids_BT, start=1, hidden_BTD=states[1], stop=2)
    adapter.drop(second, False)
    found_S4B = Evaluator(adapter, None).influences(work, [(second,), (first,), (first, second)])
    pairs = [(between, states[2]), (states[1], between), (states[1], states[2])]
    for (before, behind), found_4B in zip(pairs, found_S4B, strict=True):
        for row, cut in enumerate(CUTS):
            np.testing.assert_allclose(found_4B[:, row], measures(before[row, :cut], behind[row, :cut]), rtol=1e-9)
