"""Candidates that do without blocks: the same bits as a model that never had them."""

import copy
import itertools

import numpy as np
import pytest
import torch
from stores import tiny_store
from tiny import tiny_ids, tiny_model
from torch import nn

from evoray.evaluator import Evaluator, Work
from evoray.fitness import Fitness
from evoray.model import ModelAdapter
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")

FAMILIES = ["llama", "gpt2", "gemma2", "falcon"]


def without(model, adapter: ModelAdapter, dropped: tuple[int, ...]):
    """A copy of the model whose list of blocks lacks some."""
    cut = copy.deepcopy(model)
    parent, _, name = adapter.blocks_name.rpartition(".")
    blocks = cut.get_submodule(adapter.blocks_name)
    kept = [block for index, block in enumerate(blocks) if index not in dropped]
    setattr(cut.get_submodule(parent), name, nn.ModuleList(kept))
    cut.config.num_hidden_layers = len(kept)
    if getattr(cut.config, "layer_types", None):
        cut.config.layer_types = [kind for index, kind in enumerate(cut.config.layer_types) if index not in dropped]
    return cut


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_a_model_without_the_blocks(family):
    model = tiny_model(family)
    adapter = ModelAdapter(copy.deepcopy(model))
    evaluator = Evaluator(adapter, None, droppable=[f"{adapter.blocks_name}.{block}" for block in range(3)])
    cuts = (9, 12)
    ids = tiny_ids(2, 12)
    work = Work(ids.numpy().astype(np.int32), cuts)
    choices = [chosen for count in range(3) for chosen in itertools.combinations(range(3), count)]
    rows_NL = np.full((len(choices), 3), -1, dtype=np.int8)
    for row, chosen in enumerate(choices):
        rows_NL[row, list(chosen)] = 0
    found_NB = evaluator.losses(rows_NL, work, Fitness.perplexity)
    for losses_B, chosen in zip(found_NB, choices, strict=True):
        other = ModelAdapter(without(model, adapter, chosen))
        assert np.array_equal(losses_B, Evaluator(other, None).losses(np.zeros((1, 0)), work, Fitness.perplexity)[0])
    assert len(np.unique(found_NB[:, 0])) == len(choices)
    # The model is left as it was found once the base is measured again.
    evaluator.teach(work)
    assert torch.equal(adapter.logits(ids), model(input_ids=ids, use_cache=False).logits)


def test_dropped_blocks_and_variants_together_in_any_order(tmp_path):
    adapter = ModelAdapter(tiny_model("llama"))
    store = VariantStore.open(tiny_store(tmp_path, adapter))
    rng = np.random.default_rng(2)
    layers = len(adapter.layers)
    rows_NL = np.concatenate([rng.integers(-1, 3, (12, layers)), rng.integers(-1, 1, (12, 2))], axis=1).astype(np.int8)
    rows_NL[6:] = rows_NL[:6]
    rows_NL[6:, -1] = -1 - rows_NL[6:, -1]
    cuts = (10, 7)
    work = Work(tiny_ids(2, 10).numpy().astype(np.int32), cuts)
    whole = Evaluator(adapter, store, droppable=("model.layers.2", "model.layers.1"), reuse=False)
    wanted_NB = np.concatenate([whole.losses(row[None], work, Fitness.perplexity) for row in rows_NL])
    found = Evaluator(adapter, store, droppable=("model.layers.2", "model.layers.1"))
    for order in (np.arange(12), rng.permutation(12)):
        assert np.array_equal(found.losses(rows_NL[order], work, Fitness.perplexity), wanted_NB[order])
    assert found.blocks_run < whole.blocks_run * 2


def test_a_plain_call_of_the_model_leaves_dropped_blocks_out_too():
    model = tiny_model("llama")
    adapter = ModelAdapter(copy.deepcopy(model))
    ids = tiny_ids()
    adapter.drop("model.layers.1")
    assert torch.equal(adapter.logits(ids), without(model, adapter, (1,))(input_ids=ids, use_cache=False).logits)
    adapter.close()
    assert torch.equal(
        adapter.model(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
    )
