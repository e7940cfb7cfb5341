"""Masked codes against a bit stream in Python integers, and through their bytes and back."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.formats import dense_weight, masked_codes
from evoray.formats.costs import masked_codes_cost
from evoray.formats.masked_codes import MaskedCodes, decode
from evoray.formats.packed import QuantizedWeight
from evoray.store import Variant

SCALES = (torch.float16, torch.bfloat16, torch.float32)


def random_weight(rows, groups, group_size, bits, symmetric, dtype, share, seed) -> MaskedCodes:
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, 1 << bits, (rows, groups * group_size), dtype=np.uint8))
    scale = torch.from_numpy(rng.uniform(1e-3, 0.3, (rows, groups)).astype(np.float32)).to(dtype)
    zero = None if symmetric else torch.from_numpy(rng.integers(0, 1 << bits, (rows, groups), dtype=np.uint8))
    keep = torch.from_numpy(rng.random(codes.shape) < share)
    return MaskedCodes.of(QuantizedWeight(codes, scale, zero, bits, group_size), keep)


def read_only(variant: Variant, **changes: bytes) -> Variant:
    columns = {name: bytes(column) for name, column in variant.columns.items()} | changes
    return Variant(variant.layer, variant.level, columns, variant.meta, variant.error)


def slow_stream(codes: list[int], bits: int) -> bytes:
    number = sum(code << (place * bits) for place, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@given(
    rows=st.integers(1, 12),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 9),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    dtype=st.sampled_from(SCALES),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1 << 30),
)
def test_a_weight_comes_back_from_its_bytes(rows, groups, group_size, bits, symmetric, dtype, share, seed):
    weight = random_weight(rows, groups, group_size, bits, symmetric, dtype, share, seed)
    variant = read_only(weight.to_variant("a.b", "4x0.5", 0.5))
    assert variant.columns["codes"] == slow_stream(weight.weight.codes_OI[weight.keep_OI].tolist(), bits)
    if not symmetric:
        assert variant.columns["zeros"] == slow_stream(weight.weight.zero_OG.view(-1).tolist(), bits)
    cost = masked_codes_cost(
        rows, groups * group_size, weight.kept, bits=bits, group_size=group_size, symmetric=symmetric,
        scale_dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    assert sum(len(column) for column in variant.columns.values()) == cost.bytes
    assert (cost.code_bits, cost.kept) == (bits * weight.kept, weight.kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = decode(variant)
        assert torch.equal(back.keep_OI, weight.keep_OI)
        assert torch.equal(back.weight.codes_OI, weight.weight.codes_OI)
        assert torch.equal(back.weight.scale_OG, weight.weight.scale_OG)
        for result in SCALES:
            assert torch.equal(dense_weight(variant, result), weight.dequantize(result))


def test_what_is_not_kept_is_zero_and_the_rest_as_without_a_mask():
    for symmetric in (True, False):
        weight = random_weight(9, 3, 8, 4, symmetric, torch.float16, 1.0, 3).weight
        keep = torch.from_numpy(np.random.default_rng(4).random((9, 24)) < 0.5)
        dense = MaskedCodes.of(weight, keep).dequantize(torch.float32)
        assert torch.equal(dense, weight.dequantize(torch.float32) * keep)


def test_rows_of_a_long_stream_join_without_a_seam(monkeypatch):
    weight = random_weight(20, 4, 16, 3, False, torch.float16, 0.7, 5)
    whole = weight.to_variant("a.b", "3x0.3", 0.0)
    monkeypatch.setattr(masked_codes, "_ROW", 64)
    parts = read_only(weight.to_variant("a.b", "3x0.3", 0.0))
    assert parts.columns["codes"] == bytes(whole.columns["codes"])
    assert torch.equal(dense_weight(parts, torch.float32), weight.dequantize(torch.float32))


def test_what_does_not_fit_is_refused():
    weight = random_weight(4, 2, 8, 3, False, torch.float16, 0.5, 6)
    with pytest.raises(ValueError, match=r"must be bool \[4, 16\]"):
        MaskedCodes(torch.ones(4, 8, dtype=torch.bool), weight.weight)
    variant = weight.to_variant("a.b", "3x0.5", 0.0)
    for column in ("mask", "codes", "scales", "zeros"):
        short = read_only(variant, **{column: bytes(variant.columns[column])[:-2]})
        with pytest.raises(UserError, match=r"layer a\.b, level 3x0\.5: does not decode"):
            dense_weight(short, torch.float32)
