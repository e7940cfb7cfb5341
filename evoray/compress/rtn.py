"""Round to nearest: `rtn`. Needs no text.

Shape letters: O out, I in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evoray.compress.grid import fit_grid, nearest_codes
from evoray.compress.recipe import Scales
from evoray.formats.packed import QuantizedWeight


def rtn(
    weight_OI: Tensor,
    levels: Sequence[int],
    *,
    group_size: int,
    symmetric: bool,
    scales: Scales,
    scale_dtype: torch.dtype,
) -> dict[int, QuantizedWeight]:
    """Quantizes a weight at several levels, each weight to the nearest value of its group's grid.

    Args:
        weight_OI: [O, I], finite, any floating dtype and device.
        levels: bits per code.
        group_size: input columns per scale; divides I.
        symmetric: without zero points.
        scales: how ranges are chosen.
        scale_dtype: dtype that scales are stored in.

    Returns:
        Bits -> quantized weight, on the device of the weight.
    """
    weight_OI = weight_OI.to(torch.float32)
    found: dict[int, QuantizedWeight] = {}
    for bits in levels:
        grid = fit_grid(
            weight_OI, bits=bits, group_size=group_size, symmetric=symmetric, scales=scales, scale_dtype=scale_dtype
        )
        found[bits] = grid.with_codes(nearest_codes(weight_OI, grid))
    return found
