"""What can't be packed is refused by the name of a rule and what would have avoided it, or stays dense."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import helpers
from exports import IDS_BT, Case, loaded, quantization_of, rewritten, tensors_of

from evoray.configuration import DROPPED, Configuration
from evoray.errors import UserError
from evoray.export import Depth, export
from evoray.formats import dense_weight
from evoray.formats.dense import DenseWeight
from evoray.space.costs import configuration_costs
from evoray.store import Variant

pytestmark = pytest.mark.usefixtures("same_products")

FIRST = "model.layers.0"
OUTPUT = f"{FIRST}.self_attn.o_proj"
DOWN = f"{FIRST}.mlp.down_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.of(tmp_path_factory.mktemp("plain"), levels=("3", "4"))


def _refused(case: Case, configuration: Configuration, said: str, folder: Path, **options: Any) -> None:
    with pytest.raises(UserError, match=said) as caught:
        export("compressed-tensors", case.source(configuration, **options), str(folder / "refused"))
    assert "\n" not in str(caught.value)
    assert not (folder / "refused").exists()


def _dense_weights(case: Case, out: Path, configuration: Configuration, dense: set[str]) -> None:
    """Sees that just these layers are dense, with the weights of their levels."""
    tensors = tensors_of(out)
    packed = {target for group in quantization_of(out)["config_groups"].values() for target in group["targets"]}
    assert packed == set(configuration) - dense
    for name in configuration:
        assert (f"{name}.weight" in tensors) == (name in dense), name
        assert (f"{name}.weight_packed" in tensors) == (name not in dense), name
        if name in dense:
            assert torch.equal(tensors[f"{name}.weight"], case.weight_OI(name, configuration[name], torch.bfloat16))
            assert name in quantization_of(out)["ignore"]


def test_zero_points_at_other_bits_than_4_and_8(tmp_path: Path) -> None:
    case = Case.of(tmp_path, levels=("3", "4"), symmetric=False)
    configuration = case.tied(("4",)) | {OUTPUT: "3", DOWN: "3"}
    said = rf"{OUTPUT} \(and 1 more\), rule zero-points: it has zero points at 3 bits.*use evoray build --symmetric, or"
    _refused(case, configuration, said, tmp_path)
    out = export("compressed-tensors", case.source(configuration, allow_dense=True), str(tmp_path / "out"))
    _dense_weights(case, out, configuration, {OUTPUT, DOWN})


@pytest.mark.parametrize("levels", [{"q_proj": "3", "k_proj": "4", "v_proj": "4"}, {"q_proj": "4", "v_proj": "4"}])
def test_fused_layers_of_several_schemes(plain: Case, tmp_path: Path, levels: dict[str, str]) -> None:
    group = {f"{FIRST}.self_attn.{name}": level for name, level in levels.items()}
    # Of a group that is packed in part, no member can stay packed: engines have one matrix for all of it.
    configuration = {name: "4" for name in plain.tied(("4",)) if not name.startswith(f"{FIRST}.self_attn.")} | group
    middle = levels.get("k_proj", "base")
    said = f"q_proj at {levels['q_proj']}, k_proj at {middle}, v_proj at 4, which .* use evoray search --tie fused, or"
    _refused(plain, configuration, f"rule fused: it is one of {said}", tmp_path)
    out = export("compressed-tensors", plain.source(configuration, allow_dense=True), str(tmp_path / "out"))
    _dense_weights(plain, out, configuration, set(group))
    logits = loaded(out)(input_ids=IDS_BT, use_cache=False).logits
    assert torch.equal(logits, plain.logits(configuration, torch.bfloat16))


def test_a_refused_layer_takes_those_with_it_that_are_fused_with_it(plain: Case, tmp_path: Path) -> None:
    up, gate = f"{FIRST}.mlp.up_proj", f"{FIRST}.mlp.gate_proj"
    case = rewritten(plain, tmp_path / "store", _for(up, _dense))
    configuration = plain.tied(("4",))
    _refused(case, configuration, rf"{up} \(and 1 more\), rule codes: .*imported weight without codes", tmp_path)
    out = export("compressed-tensors", case.source(configuration, allow_dense=True), str(tmp_path / "out"))
    _dense_weights(case, out, configuration, {up, gate})


def test_masks(tmp_path: Path) -> None:
    building: dict[str, Any] = {"kind": "joint", "method": "magnitude", "levels": ("4", "4x0.5", "0.5")}
    case = Case.of(tmp_path, **building)
    configuration = case.tied(("4",)) | {OUTPUT: "4x0.5", DOWN: "0.5"}
    said = rf"{OUTPUT} \(and 1 more\), rule mask: it has a mask at level 4x0.5.*--kind quantization, or --allow-dense"
    _refused(case, configuration, said, tmp_path)
    out = export("compressed-tensors", case.source(configuration, allow_dense=True), str(tmp_path / "out"))
    _dense_weights(case, out, configuration, {OUTPUT, DOWN})
    logits = loaded(out)(input_ids=IDS_BT, use_cache=False).logits
    assert torch.equal(logits, case.logits(configuration, torch.bfloat16))


def test_sparse_and_imported_stores_have_nothing_to_pack(plain: Case, tmp_path: Path) -> None:
    building: dict[str, Any] = {"kind": "sparsity", "method": "magnitude", "levels": ("0.5",), "group_size": 128}
    sparse = Case.of(tmp_path, **building)
    imported = rewritten(plain, tmp_path / "imported", _dense)
    for case, level, rule in [(sparse, "0.5", "mask"), (imported, "4", "codes")]:
        configuration = case.tied((level,))
        for allow_dense in (False, True):
            said = rf"rule {rule}: .*\(--allow-dense is no help: no other layer can be packed\)"
            _refused(case, configuration, said, tmp_path, allow_dense=allow_dense)


def test_groups_that_do_not_divide(plain: Case, tmp_path: Path) -> None:
    def widened(variant: Variant) -> Variant:
        return replace(variant, meta={**variant.meta, "group_size": 48})

    case = rewritten(plain, tmp_path / "store", _for(OUTPUT, widened))
    said = "rule group-size: it has groups of 48, which don't divide its 64 columns; use evoray build --group-size"
    _refused(case, plain.tied(("4",)), said, tmp_path)


def test_scales_of_another_dtype_than_the_checkpoint(tmp_path: Path) -> None:
    case = Case.of(tmp_path, scale_dtype="float32")
    said = "rule scale-dtype: it has float32 scales, .* dtype, bfloat16; use evoray build --scale-dtype auto"
    for allow_dense in (False, True):
        _refused(case, case.tied(("4",)), said, tmp_path, allow_dense=allow_dense)


def test_layers_that_are_no_linear_modules(tmp_path: Path) -> None:
    case = Case.of(tmp_path, "gpt2")
    said = r"transformer.h.0.attn.c_attn \(and 10 more\), rule linear: it is a Conv1D.*use --format hf"
    _refused(case, case.tied(("4",)), said, tmp_path)


def test_dense_layers_are_not_rounded(plain: Case, tmp_path: Path) -> None:
    def finer(variant: Variant) -> Variant:
        weight_OI = dense_weight(variant, torch.float32) * (1 + 2**-12)
        return DenseWeight(weight_OI).to_variant(variant.layer, variant.level, 0.0)

    case = rewritten(plain, tmp_path / "store", _for(OUTPUT, finer))
    said = f"{OUTPUT}, level 4: its values have more digits than torch.bfloat16; use --format hf"
    _refused(case, plain.tied(("4",)), said, tmp_path, allow_dense=True)


def test_codes_that_do_not_decode(plain: Case, tmp_path: Path) -> None:
    def cut(variant: Variant) -> Variant:
        return replace(variant, columns={**variant.columns, "codes": variant.columns["codes"][:-4]})

    case = rewritten(plain, tmp_path / "store", _for(OUTPUT, cut))
    _refused(case, plain.tied(("4",)), f"{OUTPUT}, level 4: does not decode .*; build the store again", tmp_path)


def test_nothing_to_pack(plain: Case, tmp_path: Path) -> None:
    for configuration in ({}, {OUTPUT: "base"}, {FIRST: DROPPED, OUTPUT: "4"}):
        _refused(plain, configuration, "nothing to pack; use --format hf", tmp_path)


def test_other_forms_of_depth(plain: Case, tmp_path: Path) -> None:
    configuration = plain.tied(("4",)) | {FIRST: DROPPED}
    said = "--depth no-op is not for --format compressed-tensors; choose zeros or removed"
    _refused(plain, configuration, said, tmp_path, depth=Depth.no_op)


def test_a_library_that_is_missing_or_old(plain: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def padded(value: torch.Tensor, num_bits: int, packed_dim: int = 1) -> torch.Tensor:
        return torch.zeros(len(value), -(-value.shape[1] // (32 // num_bits)), dtype=torch.int32)

    monkeypatch.setattr(helpers, "pack_to_int32", padded)
    _refused(plain, plain.tied(("4",)), r"pads codes.*pip install 'evoray\[export\]'", tmp_path)
    monkeypatch.setitem(sys.modules, "compressed_tensors.compressors.pack_quantized.helpers", None)
    _refused(plain, plain.tied(("4",)), r"needs compressed-tensors 0.18 .*pip install 'evoray\[export\]'", tmp_path)


def test_allow_dense_changes_nothing_where_all_can_be_packed(plain: Case, tmp_path: Path) -> None:
    configuration = plain.tied(("3", "4"))
    out = export("compressed-tensors", plain.source(configuration, allow_dense=True), str(tmp_path / "out"))
    size = configuration_costs(plain.variants.manifest, configuration).size
    assert sum(tensor.nbytes for tensor in tensors_of(out).values()) == size


def _dense(variant: Variant) -> Variant:
    weight_OI = dense_weight(variant, torch.bfloat16)
    return DenseWeight(weight_OI).to_variant(variant.layer, variant.level, variant.error)


def _for(layer: str, change: Callable[[Variant], Variant]) -> Callable[[Variant], Variant]:
    return lambda variant: change(variant) if variant.layer == layer else variant
