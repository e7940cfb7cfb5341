"""Masks against a bit-by-bit reference in Python integers, masked weights through their bytes and back."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.formats import dense_weight, masked
from evoray.formats.costs import masked_cost
from evoray.formats.masked import MaskedWeight, pack_mask, unpack_mask
from evoray.store import Variant

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random_masked(rows: int, columns: int, dtype: torch.dtype, share: float, seed: int) -> MaskedWeight:
    """With some kept zeros, positive and negative."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.normal(size=(rows, columns)).astype(np.float32))
    weight[torch.from_numpy(rng.random((rows, columns)) < 0.2)] = 0.0
    weight[torch.from_numpy(rng.random((rows, columns)) < 0.1)] = -0.0
    return MaskedWeight.of(weight, torch.from_numpy(rng.random((rows, columns)) < share), dtype)


def read_only(variant: Variant) -> Variant:
    columns = {name: bytes(column) for name, column in variant.columns.items()}
    return Variant(variant.layer, variant.level, columns, variant.meta, variant.error)


@given(bits=st.lists(st.booleans(), max_size=200))
def test_the_first_weight_is_the_lowest_bit(bits):
    packed = pack_mask(torch.tensor(bits, dtype=torch.bool))
    number = sum(1 << place for place, bit in enumerate(bits) if bit)
    assert packed.numpy().tobytes() == number.to_bytes(-(-len(bits) // 8), "little")
    assert unpack_mask(packed, len(bits)).tolist() == bits


def test_pieces_of_a_large_mask_join_without_a_seam(monkeypatch):
    keep = torch.from_numpy(np.random.default_rng(0).random(1001) < 0.5)
    whole = pack_mask(keep)
    monkeypatch.setattr(masked, "_PIECE_BYTES", 7)
    assert torch.equal(pack_mask(keep), whole)


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 1 << 30),
)
def test_a_weight_comes_back_from_its_bytes(rows, columns, dtype, share, seed):
    weight = random_masked(rows, columns, dtype, share, seed)
    variant = read_only(weight.to_variant("a.b", "0.5", 0.25))
    assert (variant.layer, variant.level, variant.error, variant.meta["format"]) == ("a.b", "0.5", 0.25, "masked")
    assert variant.meta["kept"] == int(weight.keep_OI.sum())
    # Kept zeros are stored, with their sign, so the bytes are those of the count.
    cost = masked_cost(rows * columns, weight.kept, str(dtype).removeprefix("torch."))
    assert sum(len(column) for column in variant.columns.values()) == cost.bytes
    assert cost.code_bits == 8 * dtype.itemsize * weight.kept
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in DTYPES:
            back = dense_weight(variant, result)
            assert back.dtype is result
            expected = weight.weight_OI.to(result)
            assert torch.equal(back, expected)
            assert torch.equal(back.signbit(), expected.signbit())
            assert torch.equal(back, weight.dequantize(result))


def test_values_are_rounded_and_stay_finite():
    weight = torch.tensor([[1e6, -1e6, 0.1, 7.0]])
    kept = MaskedWeight.of(weight, torch.tensor([[True, True, True, False]]), torch.float16)
    assert kept.weight_OI.tolist() == [[65504.0, -65504.0, float(torch.tensor(0.1).half()), 0.0]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must be bool \[2, 3\]"):
        MaskedWeight(torch.ones(3, 2, dtype=torch.bool), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"values are torch\.float64; they must be float16, bfloat16, float32"):
        MaskedWeight(torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.float64))
    variant = read_only(random_masked(4, 6, torch.float16, 0.5, 1).to_variant("a.b", "0.5", 0.0))
    for columns in (
        {**variant.columns, "mask": variant.columns["mask"][:-1]},
        {**variant.columns, "values": variant.columns["values"][:-2]},
        {"mask": variant.columns["mask"]},
    ):
        with pytest.raises(UserError, match=r"layer a\.b, level 0\.5: does not decode"):
            dense_weight(Variant("a.b", "0.5", columns, variant.meta, 0.0), torch.float32)
