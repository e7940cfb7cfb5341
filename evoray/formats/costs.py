"""What a compressed layer costs, in bits of codes and in bytes.

Holds `CostFormat`, `record_bytes`, `cost` (codes of all weights), `masked_cost` (a mask and values) and
`masked_codes_cost` (a mask and codes).

A cost format says how the bytes of quantized levels are counted. `compressed-tensors` counts what an exported
checkpoint holds: each row of codes padded to 32-bit words. `tight` counts every bit once, without padding, as papers
and other formats do. What has a mask lies in the store without padding, and is counted so: one bit per weight for the
mask, filled up to a byte.
"""

from __future__ import annotations

import math
from enum import StrEnum

from evoray.store.manifest import LevelCost

SCALE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


class CostFormat(StrEnum):
    """How bytes are counted."""

    COMPRESSED_TENSORS = "compressed-tensors"
    TIGHT = "tight"


def record_bytes(cost_format: CostFormat | str) -> int:
    """Bytes that every compressed layer takes beside codes, scales and zero points.

    compressed-tensors writes a `weight_shape` of two int64 for each; tight counts nothing.
    """
    return 16 if CostFormat(cost_format) is CostFormat.COMPRESSED_TENSORS else 0


def cost(
    out_features: int,
    in_features: int,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    scale_dtype: str,
    cost_format: CostFormat | str = CostFormat.COMPRESSED_TENSORS,
) -> LevelCost:
    """Exact cost of one layer at one bitwidth.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        bits: bits per code, 2 to 8.
        group_size: columns per scale; divides `in_features`.
        symmetric: without zero points.
        scale_dtype: "float16", "bfloat16" or "float32".
        cost_format: how bytes are counted.

    Returns:
        Code bits (bits * weights, without padding) and bytes of codes, scales and zero points.

    Raises:
        ValueError: where bits, group size, dtype or cost format are not among those above.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits per code; packed codes have 2 to 8")
    if group_size < 1 or in_features % group_size:
        raise ValueError(f"group size {group_size} does not divide the input width {in_features}")
    if scale_dtype not in SCALE_BYTES:
        raise ValueError(f"scale dtype '{scale_dtype}'; known are {', '.join(SCALE_BYTES)}")
    groups = in_features // group_size
    scales = out_features * groups * SCALE_BYTES[scale_dtype]
    match CostFormat(cost_format):
        case CostFormat.COMPRESSED_TENSORS:
            codes = out_features * 4 * math.ceil(in_features * bits / 32)
            zeros = 0 if symmetric else 4 * math.ceil(out_features * bits / 32) * groups
        case CostFormat.TIGHT:
            codes = math.ceil(out_features * in_features * bits / 8)
            zeros = 0 if symmetric else math.ceil(out_features * groups * bits / 8)
    return LevelCost(code_bits=out_features * in_features * bits, bytes=codes + scales + zeros)


BITMASK = "bitmask"
"""What stores without quantized levels name as their cost format."""


def masked_cost(weights: int, kept: int, dtype: str) -> LevelCost:
    """Exact cost of one layer of which some weights are kept as they are.

    Args:
        weights: of the layer.
        kept: of these.
        dtype: of the values: "float16", "bfloat16" or "float32".

    Returns:
        Code bits (those of the kept values) and bytes of mask and values.
    """
    size = SCALE_BYTES[dtype]
    return LevelCost(code_bits=8 * size * kept, bytes=math.ceil(weights / 8) + size * kept, kept=kept)


def masked_codes_cost(
    out_features: int, in_features: int, kept: int, *, bits: int, group_size: int, symmetric: bool, scale_dtype: str
) -> LevelCost:
    """Exact cost of one layer of which some weights are kept as codes.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        kept: weights that have codes.
        bits: bits per code, 2 to 8.
        group_size: columns per scale; divides `in_features`.
        symmetric: without zero points.
        scale_dtype: "float16", "bfloat16" or "float32".

    Returns:
        Code bits (those of the kept weights) and bytes of mask, codes, scales and zero points.
    """
    groups = out_features * (in_features // group_size)
    mask = math.ceil(out_features * in_features / 8)
    zeros = 0 if symmetric else math.ceil(groups * bits / 8)
    stored = mask + math.ceil(kept * bits / 8) + groups * SCALE_BYTES[scale_dtype] + zeros
    return LevelCost(code_bits=kept * bits, bytes=stored, kept=kept)
