"""A configuration on a loaded model: the same answers as a model with those weights."""

import pytest
import torch
from searches import Material
from transformers import PreTrainedModel

from evoray import UserError, apply_configuration
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, load_model
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")


@pytest.fixture
def store(material: Material) -> VariantStore:
    return VariantStore.open(material.store)


@pytest.fixture
def adapter(material: Material) -> ModelAdapter:
    return ModelAdapter(load_model(material.model))


def answers(model: PreTrainedModel) -> torch.Tensor:
    """Logits with a padded row, as other libraries call a model."""
    ids_BT = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]])
    with torch.no_grad():
        logits_BTV: torch.Tensor = model(input_ids=ids_BT, attention_mask=(ids_BT > 0).long()).logits
        return logits_BTV


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_configured_model_answers_like_one_with_those_weights(
    material: Material, store: VariantStore, adapter: ModelAdapter, overwrite: bool
) -> None:
    layers = [layer.name for layer in store.manifest.layers]
    configuration = {layers[0]: "2", layers[3]: "4", layers[-1]: "3", layers[1]: "base"}
    reference = load_model(material.model)
    base = answers(reference)
    with torch.no_grad():
        for layer, level in configuration.items():
            if level != "base":
                weight = reference.get_submodule(layer).weight
                weight.copy_(dense_weight(store.read(layer, level), weight.dtype))
    apply_configuration(adapter, store, configuration, overwrite=overwrite)
    assert torch.equal(answers(adapter.model), answers(reference))
    assert not torch.equal(answers(adapter.model), base)
    # Another one takes its place whole.
    if not overwrite:
        apply_configuration(adapter, store, {})
        assert torch.equal(answers(adapter.model), base)


def test_a_configuration_that_does_not_fit_changes_nothing(store: VariantStore, adapter: ModelAdapter) -> None:
    layer = store.manifest.layers[0].name
    base = answers(adapter.model)
    for configuration, said in (
        ({layer: "2", "nope": "2"}, "names nope, which the store lacks"),
        ({layer: "9"}, "has no level '9'"),
        ({layer: "2", "nope": "dropped"}, "says 'dropped' of nope, which is nothing this model can do without"),
    ):
        with pytest.raises(UserError, match=said):
            apply_configuration(adapter, store, configuration)
    with pytest.raises(UserError, match="at level '2' needs variants; give the store"):
        apply_configuration(adapter, None, {layer: "2"})
    assert torch.equal(answers(adapter.model), base)


def test_dropped_sites_with_variants_beside_them(store: VariantStore, adapter: ModelAdapter) -> None:
    base = answers(adapter.model)
    up = "model.layers.1.mlp.up_proj"
    drops = {"model.layers.0.self_attn": "dropped", "model.layers.2.mlp": "dropped", "model.layers.1.mlp": "kept"}
    weight = adapter.model.get_submodule(up).weight
    adapter.swap(up, adapter.ready(up, dense_weight(store.read(up, "2"), weight.dtype)))
    for name in ("model.layers.0.self_attn", "model.layers.2.mlp"):
        adapter.drop(name)
    wanted = answers(adapter.model)
    assert not torch.equal(wanted, base)
    apply_configuration(adapter, None, {})
    assert torch.equal(answers(adapter.model), base)
    # The level of a layer in a dropped sublayer has no say.
    apply_configuration(adapter, store, {**drops, up: "2", "model.layers.2.mlp.up_proj": "3"})
    assert torch.equal(answers(adapter.model), wanted)
    silent = adapter.layers["model.layers.2.mlp.up_proj"]
    assert torch.equal(silent.module.weight, silent.base)


def test_a_model_by_itself_is_refused_with_the_way_to_wrap_it(material: Material) -> None:
    model = load_model(material.model)
    with pytest.raises(UserError, match=r"LlamaForCausalLM is no ModelAdapter.*evoray\.ModelAdapter\(model\)"):
        apply_configuration(model, None, {})
    apply_configuration(ModelAdapter(model), None, {})
