"""Packed codes against a bit-by-bit reference in Python integers, dequantizing against a plain loop."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoray.formats.packed import QuantizedWeight, decode, describe, encode, pack_codes, to_variant, unpack_codes

BITS = range(2, 9)
SCALES = (torch.float16, torch.bfloat16, torch.float32)


def random_codes(rows: int, columns: int, bits: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), dtype=np.uint8))


def random_weight(rows, groups, group_size, bits, symmetric, dtype, seed) -> QuantizedWeight:
    rng = np.random.default_rng([seed, 1])
    scale = torch.from_numpy(rng.uniform(1e-4, 0.3, (rows, groups)).astype(np.float32)).to(dtype)
    zero = None if symmetric else random_codes(rows, groups, bits, seed + 1)
    return QuantizedWeight(random_codes(rows, groups * group_size, bits, seed), scale, zero, bits, group_size)


def slow_row(codes: list[int], bits: int) -> bytes:
    """One row as a single big integer: element e at bit e * bits, little-endian, padded to whole words."""
    number = sum(code << (element * bits) for element, code in enumerate(codes))
    return number.to_bytes(4 * -(-len(codes) * bits // 32), "little")


@given(rows=st.integers(1, 5), columns=st.integers(1, 140), bits=st.sampled_from(BITS), seed=st.integers(0, 1 << 30))
def test_packing_equals_the_bit_by_bit_reference_and_comes_back(rows, columns, bits, seed):
    codes = random_codes(rows, columns, bits, seed)
    packed = pack_codes(codes, bits)
    assert packed.dtype is torch.int32
    assert packed.numpy().tobytes() == b"".join(slow_row(row, bits) for row in codes.tolist())
    assert torch.equal(unpack_codes(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", BITS)
def test_pieces_of_a_large_matrix_join_without_a_seam(bits):
    codes = random_codes(300, 4099, bits, 3)
    packed = pack_codes(codes, bits)
    rows = [0, 62, 63, 64, 65, 127, 128, 299]
    assert packed[rows].numpy().tobytes() == b"".join(slow_row(codes[row].tolist(), bits) for row in rows)
    assert torch.equal(unpack_codes(packed, bits, 4099), codes)


@pytest.mark.parametrize("bits", BITS)
def test_views_with_odd_strides_and_offsets_pack_like_copies(bits):
    base = random_codes(41, 37, bits, 5)
    for view in (base.T, base[3:, 5:], base[:, ::2], base[:, :1].T, base[:1].T):
        packed = pack_codes(view, bits)
        assert torch.equal(packed, pack_codes(view.clone(memory_format=torch.contiguous_format), bits))
        assert torch.equal(unpack_codes(packed.T.contiguous().T, bits, view.shape[1]), view)


def test_unpacked_codes_never_share_memory_with_the_packed():
    packed = pack_codes(random_codes(4, 32, 8, 0), 8)
    codes = unpack_codes(packed, 8, 32)
    codes.zero_()
    assert packed.any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="largest code is 8; 3 bits hold at most 7"):
        pack_codes(torch.tensor([[8]], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="1 bits per code"):
        pack_codes(torch.zeros(1, 1, dtype=torch.uint8), 1)
    with pytest.raises(ValueError, match=r"takes uint8 \[O, I\]"):
        pack_codes(torch.zeros(1, 1), 4)
    with pytest.raises(ValueError, match=r"take int32 \[O, 4\]"):
        unpack_codes(torch.zeros(2, 3, dtype=torch.int32), 4, 32)
    codes, scale = torch.zeros(2, 12, dtype=torch.uint8), torch.ones(2, 3)
    with pytest.raises(ValueError, match="group size 5 does not divide the input width 12"):
        QuantizedWeight(codes, scale, None, 4, 5)
    with pytest.raises(ValueError, match=r"must be .* \[2, 2\]"):
        QuantizedWeight(codes, scale, None, 4, 6)
    with pytest.raises(ValueError, match="zero points are"):
        QuantizedWeight(codes, scale, torch.zeros(2, 3, dtype=torch.int8), 4, 4)


@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_dequantizing_equals_a_plain_loop(bits, symmetric, dtype):
    weight = random_weight(5, 3, 7, bits, symmetric, dtype, seed=bits)
    wanted = torch.empty(5, 21, dtype=dtype)
    for row in range(5):
        for column in range(21):
            group = column // 7
            zero = 1 << (bits - 1) if weight.zero_OG is None else int(weight.zero_OG[row, group])
            whole = torch.tensor(int(weight.codes_OI[row, column]) - zero, dtype=dtype)
            wanted[row, column] = whole * weight.scale_OG[row, group]
    for result in (torch.float32, torch.bfloat16, torch.float16):
        dense = weight.dequantize(result)
        assert dense.dtype is result
        assert dense.is_contiguous()
        assert torch.equal(dense, wanted.to(result))


@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 5),
    group_size=st.integers(1, 33),
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    dtype=st.sampled_from(SCALES),
    seed=st.integers(0, 1 << 30),
)
def test_a_weight_comes_back_from_its_columns(rows, groups, group_size, bits, symmetric, dtype, seed):
    weight = random_weight(rows, groups, group_size, bits, symmetric, dtype, seed)
    # Read-only, as a store gives them.
    columns = {name: bytes(column) for name, column in encode(weight).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = decode(columns, describe(weight))
    assert (back.bits, back.group_size, back.symmetric) == (bits, group_size, symmetric)
    assert torch.equal(back.codes_OI, weight.codes_OI)
    assert back.scale_OG.dtype is dtype
    assert torch.equal(back.scale_OG, weight.scale_OG)
    if weight.zero_OG is not None:
        assert torch.equal(back.zero_OG, weight.zero_OG)
        # Zero points lie packed down the OUT dimension.
        words = -(-rows * bits // 32)
        packed = np.frombuffer(columns["zeros"], dtype="<u4").reshape(words, groups)
        for group in range(groups):
            assert packed[:, group].tobytes() == slow_row(weight.zero_OG[:, group].tolist(), bits)


def test_columns_that_do_not_fit_their_description_are_refused():
    weight = random_weight(4, 2, 16, 3, False, torch.float16, 0)
    columns, meta = encode(weight), describe(weight)
    with pytest.raises(ValueError, match="do not fit their description"):
        decode({**columns, "codes": bytes(columns["codes"])[:-4]}, meta)
    with pytest.raises(ValueError, match="do not fit their description"):
        decode({"codes": columns["codes"], "scales": columns["scales"]}, meta)
    with pytest.raises(ValueError, match="do not fit their description"):
        decode(columns, {**meta, "scale_dtype": "float8"})


def test_a_variant_carries_what_decoding_needs():
    weight = random_weight(4, 2, 16, 3, False, torch.bfloat16, 0)
    variant = to_variant("a.b", "3", weight, 0.5)
    assert (variant.layer, variant.level, variant.error) == ("a.b", "3", 0.5)
    assert variant.meta == {
        "format": "packed",
        "bits": 3,
        "group_size": 16,
        "shape": [4, 32],
        "scale_dtype": "bfloat16",
        "symmetric": False,
    }
