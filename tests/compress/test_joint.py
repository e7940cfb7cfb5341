"""Whole builds of joint variants of the tiny model: each level as its own kind makes it, exact counts and bytes."""

import pytest
import torch
from builds import built, check_interrupted

from evoray.compress import Joint
from evoray.compress.joint import JointLevel, parse_joint_levels
from evoray.errors import UserError
from evoray.formats import dense_weight
from evoray.formats.masked_codes import decode
from evoray.store import VariantStore

LEVELS = "4,0.5,4x0.5,2"


@pytest.mark.parametrize(("method", "symmetric"), [("sparsegpt", True), ("sparsegpt", False), ("magnitude", True)])
def test_levels_are_those_of_the_other_kinds(material, tmp_path, method, symmetric):
    scales = {"group_size": 32, "symmetric": symmetric}
    joint = built(material, tmp_path / "joint", kind="joint", method=method, levels=LEVELS, **scales)
    # In float32 a sparse half takes 17 bits a weight, and 4x0.5 three.
    assert joint.levels == ("2", "4x0.5", "4", "0.5")
    codes = built(
        material, tmp_path / "codes", method="gptq" if method == "sparsegpt" else "rtn", levels="2,4", **scales
    )
    sparse = built(material, tmp_path / "sparse", kind="sparsity", method=method, levels="0.5")
    stores = {name: VariantStore.open(tmp_path / name) for name in ("joint", "codes", "sparse")}
    for entry in joint.layers:
        weights = entry.out_features * entry.in_features
        for level, kind, other in (("2", "codes", codes), ("4", "codes", codes), ("0.5", "sparse", sparse)):
            variant, alike = (stores[name].read(entry.name, level) for name in ("joint", kind))
            assert variant.checksum == alike.checksum
            assert entry.costs[level] == other.layer(entry.name).costs[level]
        mixed, cost = stores["joint"].read(entry.name, "4x0.5"), entry.costs["4x0.5"]
        assert (cost.kept, cost.code_bits) == (weights // 2, 2 * weights)
        assert cost.bytes == sum(map(len, mixed.columns.values()))
        back = decode(mixed)
        assert int(back.keep_OI.sum()) == cost.kept
        # Scales are those of the weight as it was.
        assert bytes(mixed.columns["scales"]) == bytes(stores["codes"].read(entry.name, "4").columns["scales"])
        if method == "magnitude":
            half = dense_weight(stores["sparse"].read(entry.name, "0.5"), torch.float32) != 0
            whole = dense_weight(stores["codes"].read(entry.name, "4"), torch.float32)
            assert torch.equal(back.keep_OI, half)
            assert torch.equal(back.dequantize(torch.float32), whole * half)
        errors = joint.files[entry.name].errors
        assert errors["4x0.5"] > max(errors["4"], 0.9 * errors["0.5"])


@pytest.mark.parametrize(
    "given",
    [
        {"method": "sparsegpt", "hessian_inputs": "quantized", "hessian_level": "4x0.5"},
        {"method": "magnitude", "data": None},
    ],
)
def test_an_interrupted_build_ends_with_the_same_bytes(material, tmp_path, given):
    manifest = check_interrupted(material, tmp_path, (2, 9), kind="joint", levels=LEVELS, group_size=32, **given)
    assert manifest.settings.get("hessian_level") == given.get("hessian_level")


def test_the_usual_levels_stand_smallest_first():
    assert Joint().labels == ("2", "3", "4x0.5", "4", "0.5")
    assert Joint(value_dtype="float32", levels=parse_joint_levels(["0.9", "4"])).labels == ("4", "0.9")
    assert Joint(levels=parse_joint_levels(["4", "0.9"])).labels == ("0.9", "4")


@pytest.mark.parametrize(
    ("written", "label"), [("4", "4"), (" 4x0.50 ", "4x0.5"), (".5", "0.5"), (0.25, "0.25"), (3, "3")]
)
def test_a_level_has_one_name(written, label):
    assert JointLevel.parse(written).label == label
    assert JointLevel.parse(label) == JointLevel.parse(written)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        (["9"], "level 9: codes have 2 to 8 bits"),
        (["4x"], r"level '4x' is none; write bits \(4\), a sparsity \(0\.5\), or both \(4x0\.5\)"),
        (["x0.5"], "level 'x0.5' is none"),
        ([""], "level '' is none"),
        (["4x1"], "level 1: a sparsity is the share of zeros"),
        (["4x0"], "level '4x0' has no zeros; write its bits alone, or a sparsity above 0"),
        (["0.0"], "level '0.0' has no zeros"),
        (["half"], "level 'half' is no number of bits"),
        (["0.5", ".5"], r"level 0\.5 is named twice"),
        ([], "no levels to build"),
    ],
)
def test_what_is_no_level(levels, said):
    with pytest.raises(UserError, match=said):
        parse_joint_levels(levels)


def test_values_that_are_refused():
    with pytest.raises(UserError, match="group size -2: choose a positive one"):
        Joint(group_size=-2)
    with pytest.raises(UserError, match="group size 40 does not divide the input width of a"):
        Joint(group_size=40).check({"a": (10, 64)})
    with pytest.raises(UserError, match="hessian level 5 is not among the levels to build; choose one of 2, 3, 4x0"):
        Joint(hessian_level="5")
    with pytest.raises(UserError, match="dtype float64 is none for stored values"):
        Joint(value_dtype="float64")
