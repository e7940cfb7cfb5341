"""Which weights go, at an exact count: `lowest`, `magnitude_mask`, `wanda_masks`.

Shape letters: O out, I in, N scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evoray.compress.zeros import share

# On a CPU, rows are ranked in pieces of this many weights, because ranks take eight bytes each.
_CPU_PIECE = 1 << 22


def lowest(score_N: Tensor, count: int) -> Tensor:
    """The lowest scores; of equal ones those that come first.

    Args:
        score_N: [N], none of them NaN.
        count: how many, 0 to N.

    Returns:
        bool [N], `count` of them true.
    """
    if count <= 0 or count >= len(score_N):
        return torch.full(score_N.shape, count > 0, device=score_N.device)
    threshold = score_N.kthvalue(count).values
    below_N = score_N < threshold
    equal_N = score_N == threshold
    # Sums of whole numbers, so no order of adding them matters.
    missing = count - below_N.sum()
    return below_N.logical_or_(equal_N & (equal_N.cumsum(0, dtype=torch.int32) <= missing))


def magnitude_mask(weight_OI: Tensor, zeros: int) -> Tensor:
    """Keeps the largest weights of the whole layer.

    Args:
        weight_OI: [O, I].
        zeros: weights to go.

    Returns:
        bool [O, I], true where a weight is kept.
    """
    return ~lowest(weight_OI.abs().reshape(-1), zeros).view(weight_OI.shape)


def wanda_masks(weight_OI: Tensor, hessian_II: Tensor, zeros: Sequence[int]) -> list[Tensor]:
    """Keeps, in each row, the weights with the largest |w| * ||x|| (Wanda, arXiv 2306.11695).

    Rows lose equally many, but for what rounding leaves, which is carried from row to row.

    Args:
        weight_OI: float32 [O, I].
        hessian_II: X^T X of the layer's input, up to a factor.
        zeros: weights to go, for each mask.

    Returns:
        bool [O, I] for each, true where a weight is kept.
    """
    rows, columns = weight_OI.shape
    norm_I = hessian_II.diagonal().clamp(min=0).sqrt().to(weight_OI.dtype)
    each_O = [
        torch.tensor([share(count, row, row + 1, rows) for row in range(rows)], device=weight_OI.device)
        for count in zeros
    ]
    masks = [torch.empty(rows, columns, dtype=torch.bool, device=weight_OI.device) for _ in zeros]
    step = max(1, _CPU_PIECE // columns) if weight_OI.device.type == "cpu" else rows
    place_I = torch.arange(columns, device=weight_OI.device)
    for first in range(0, rows, step):
        piece = slice(first, first + step)
        # Stable, so that of equal scores the first goes first.
        order_OI = (weight_OI[piece].abs() * norm_I).argsort(dim=1, stable=True)
        for mask_OI, each in zip(masks, each_O, strict=True):
            mask_OI[piece].scatter_(1, order_OI, place_I >= each[piece].unsqueeze(1))
    return masks
