"""Whole builds of sparse variants of the tiny model: exact counts, what is stored, and interrupted builds."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from builds import built, check_interrupted
from tiny import tiny_model

from evoray.compress import HessianInputs, Sparsity, layer_entry, store_header
from evoray.compress.sparsity import SparsityMethod
from evoray.compress.zeros import Sparsities, Steps
from evoray.errors import UserError
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, checkpoint_facts, load_model, load_tokenizer
from evoray.store import VariantStore

LEVELS = "0.35,0.5,0.9"


@pytest.fixture(scope="module")
def adapter(material):
    return ModelAdapter(load_model(material.model, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def stores(material, tmp_path_factory):
    """A store of each method."""
    folder = tmp_path_factory.mktemp("sparse")
    for method in SparsityMethod:
        data = None if method is SparsityMethod.MAGNITUDE else material.text
        built(material, folder / method, kind="sparsity", method=method.value, levels=LEVELS, data=data)
    return {method.value: VariantStore.open(folder / method) for method in SparsityMethod}


@pytest.mark.parametrize("method", list(SparsityMethod))
def test_a_store_holds_exact_counts_of_every_layer_and_level(method, stores, adapter):
    store = stores[method]
    header = store.manifest.header
    assert (header.kind, header.method, header.levels) == ("sparsity", method, ("0.9", "0.5", "0.35"))
    assert (header.cost_format, header.group_size, header.symmetric) == ("bitmask", -1, True)
    assert header.scale_dtype == header.dtype == "float32"
    assert (header.text_digest is None) == (method is SparsityMethod.MAGNITUDE)
    total = dict.fromkeys(header.levels, 0)
    for entry in store.manifest.layers:
        base = adapter.weight_OI(entry.name)
        assert entry.record_bytes == 0
        for level, cost in entry.costs.items():
            zeros = math.ceil(base.numel() * Fraction(level))
            variant = store.read(entry.name, level)
            weight = dense_weight(variant, torch.float32)
            assert int((weight == 0).sum()) == zeros == base.numel() - cost.kept
            assert cost.code_bits == 32 * cost.kept
            assert cost.bytes == sum(map(len, variant.columns.values())) == -(-base.numel() // 8) + 4 * cost.kept
            assert store.manifest.files[entry.name].errors[level] == variant.error
            total[level] += cost.kept
            if method is not SparsityMethod.SPARSEGPT:
                assert torch.equal(weight, base * (weight != 0))
            if method is SparsityMethod.MAGNITUDE:
                assert variant.error == pytest.approx(float(((weight - base) ** 2).sum() / (base**2).sum()), rel=1e-4)
        errors = [store.read(entry.name, level).error for level in entry.costs]
        assert errors == sorted(errors, reverse=True)
    weights = sum(entry.out_features * entry.in_features for entry in store.manifest.layers)
    for level, kept in total.items():
        assert weights * (1 - Fraction(level)) - len(adapter.layers) < kept <= weights * (1 - Fraction(level))


def test_sparsegpt_has_the_smaller_errors_of_the_output(stores, material, adapter):
    for entry in stores["sparsegpt"].manifest.layers:
        solved, sorted_rows = (stores[name].read(entry.name, "0.5").error for name in ("sparsegpt", "wanda"))
        assert solved < sorted_rows
    # Of the kind of text that the Hessians saw.
    written = json.loads(Path(material.text).read_text().splitlines()[3])["text"]
    ids = torch.tensor(load_tokenizer(material.model)(written)["input_ids"])[None, :64]
    base = adapter.logits(ids)
    lost = {}
    for method, store in stores.items():
        for name in adapter.layers:
            adapter.swap(name, adapter.ready(name, dense_weight(store.read(name, "0.35"), torch.float32)))
        lost[method] = float(((adapter.logits(ids) - base) ** 2).sum())
        for name in adapter.layers:
            adapter.restore(name)
    assert lost["sparsegpt"] < lost["magnitude"]


def test_outlier_ratios_are_those_of_the_scores(stores, adapter):
    for entry in stores["magnitude"].manifest.layers:
        scores = adapter.weight_OI(entry.name).abs().double()
        expected = {str(many): float((scores > many * scores.mean()).double().mean()) for many in (3, 5, 7, 10)}
        assert entry.outliers == pytest.approx(expected, abs=2 / scores.numel())
    # The same inputs give the same ratios, whatever is made of them.
    one, other = ([entry.outliers for entry in stores[name].manifest.layers] for name in ("sparsegpt", "wanda"))
    assert one == other
    assert one != [entry.outliers for entry in stores["magnitude"].manifest.layers]


def test_steps_are_one_count_in_every_layer(material, tmp_path):
    manifest = built(
        material, tmp_path, kind="sparsity", method="magnitude", target_sparsity=0.6, steps=3, step_weights=500
    )
    assert manifest.levels == ("3", "2", "1", "0", "-1", "-2", "-3")
    assert manifest.settings["target_sparsity"] == 0.6
    assert (manifest.settings["steps"], manifest.settings["step_weights"]) == (3, 500)
    store = VariantStore.open(tmp_path)
    small = manifest.layer("model.layers.0.self_attn.k_proj")
    # 2048 weights, 1229 of them zero at the target: one step up, two down.
    assert small.levels == ("1", "0", "-1", "-2")
    for entry in manifest.layers:
        weights = entry.out_features * entry.in_features
        for level, cost in entry.costs.items():
            assert weights - cost.kept == math.ceil(weights * Fraction("0.6")) + 500 * int(level)
            assert int(dense_weight(store.read(entry.name, level), torch.float32).count_nonzero()) == cost.kept


def test_the_usual_levels(material, tmp_path):
    manifest = built(material, tmp_path / "a", kind="sparsity", method="magnitude", data=None)
    assert manifest.levels == ("0.8", "0.7", "0.6", "0.5", "0.4", "0.3")
    manifest = built(material, tmp_path / "b", kind="sparsity", method="magnitude", data=None, target_sparsity="0.5")
    # int(0.5 * 0.5 / 8 * 64^2)
    assert (manifest.settings["steps"], manifest.settings["step_weights"], len(manifest.levels)) == (8, 128, 17)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "sparsegpt", "levels": "0.5,0.7", "hessian_inputs": "quantized"},
        {"method": "sparsegpt", "target_sparsity": 0.6, "steps": 2, "step_weights": 400},
        {"method": "wanda", "levels": LEVELS},
        {"method": "magnitude", "levels": LEVELS},
    ],
)
def test_an_interrupted_build_ends_with_the_same_bytes(material, tmp_path, given):
    check_interrupted(material, tmp_path, (1, 8), kind="sparsity", **given)


def test_inputs_of_the_pruned_model_are_others_behind_the_first_block(material, tmp_path):
    stores = [
        built(material, tmp_path / inputs, kind="sparsity", levels="0.5,0.8", hessian_inputs=inputs)
        for inputs in ("base", "quantized")
    ]
    assert stores[1].settings["hessian_level"] == "0.5"
    same = {name for name in stores[0].files if stores[0].files[name].sha256 == stores[1].files[name].sha256}
    assert same == {name for name in stores[0].files if name.startswith("model.layers.0.")}


def test_values_have_the_dtype_of_the_checkpoint(tmp_path):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    facts = checkpoint_facts(str(tmp_path))
    recipe = Sparsity(method=SparsityMethod.MAGNITUDE, levels=Sparsities.parse(["0.5"]))
    header = store_header(facts, recipe, None, compute_dtype="float32", device="cpu")
    assert header.scale_dtype == "bfloat16"
    entry = layer_entry("model.layers.0.mlp.down_proj", 0, 64, 95, header)
    assert (entry.costs["0.5"].kept, entry.costs["0.5"].code_bits, entry.costs["0.5"].bytes) == (3040, 48640, 6840)


def test_levels_that_can_not_be():
    with pytest.raises(UserError, match=r"hessian level 0\.4 is not among the levels to build; choose one of 0\.5"):
        Sparsity(levels=Sparsities.parse(["0.5"]), hessian_level="0.4")
    steps = Sparsity(levels=Steps(0.5, 3, 100), hessian_level="-2", hessian_inputs=HessianInputs.QUANTIZED)
    with pytest.raises(UserError, match="no layer has room for level 3, -3; choose fewer --steps, or smaller"):
        steps.check({"a": (20, 20)})
    with pytest.raises(UserError, match="hessian level -2: layer a has no room for it; choose level 0"):
        steps.check({"a": (10, 10), "b": (100, 100)})
    steps.check({"b": (100, 100)})


def test_a_checkpoint_whose_dtype_can_not_be_stored(tmp_path):
    tiny_model("llama").to(torch.float64).save_pretrained(tmp_path)
    facts = checkpoint_facts(str(tmp_path))
    for recipe in (Sparsity(method=SparsityMethod.MAGNITUDE),):
        with pytest.raises(UserError, match="dtype float64 is none for stored values; convert it to bfloat16 first"):
            store_header(facts, recipe, None, compute_dtype="float32", device="cpu")
