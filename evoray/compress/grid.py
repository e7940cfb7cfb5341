"""Scales and zero points of groups, and the codes nearest to a weight: `Grid`, `fit_grid`, `nearest_codes`.

A group is `group_size` consecutive input columns of one row. A code c of b bits stands for (c - zero) * scale:

- symmetric (the convention of compressed-tensors): zero is 2^(b-1), so c - zero goes from -2^(b-1) to 2^(b-1) - 1;
  scale = amax / ((2^b - 1) / 2), amax the largest magnitude in the group.
- asymmetric: scale = (max - min) / (2^b - 1), the range widened to hold 0; zero = round(-min / scale).

That is `Scales.MINMAX`. `Scales.MSE` tries other ranges too: that range times factors in even ratios from a widest to a
narrowest, 12 to 32 of them depending on the bits (`_FACTORS`). It keeps the one with the smallest squared error of
round-to-nearest with the rounded scale; of equal errors the widest. The fewer codes, the more it pays to clip the
outermost weights. Symmetric ranges may also grow: there is one positive code fewer than negative ones, with 2 bits one
instead of two.

Scales are rounded to the dtype they are stored in before any code is chosen, and codes are chosen by what
`QuantizedWeight.dequantize` makes of them.

Shape letters: O out, I in, G groups, N groups of several rows, S columns of one group, F factors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from evoray.compress.recipe import Scales
from evoray.formats.packed import QuantizedWeight

# Bits -> number of factors, narrowest, widest of symmetric ranges (asymmetric ones never grow). On Gaussian, Laplacian
# and Student-t (3 degrees of freedom) groups the squared error is within 4% (32 weights) or 1.5% (128 to 1024) of
# a search in steps of 0.01 from 0.02 to 1.5.
_FACTORS = {
    2: (32, 0.1, 1.5),
    3: (28, 0.2, 1.17),
    4: (24, 0.4, 1.15),
    5: (20, 0.6, 1.15),
    6: (16, 0.8, 1.15),
    7: (12, 0.9, 1.15),
    8: (12, 0.95, 1.15),
}

_FLOAT16_SUBNORMAL = 2.0**-24

# On a CPU, pieces of this many weights keep the temporaries of a search in the second-level cache.
_CPU_PIECE = 1 << 17


@dataclass(frozen=True)
class Grid:
    """Scales and zero points of all groups of a weight.

    Attributes:
        scale_OG: [O, G] in the dtype it is stored in; positive and finite.
        zero_OG: uint8 [O, G]; None when symmetric.
        bits: bits per code.
        group_size: input columns per group.
    """

    scale_OG: Tensor
    zero_OG: Tensor | None
    bits: int
    group_size: int

    def lowest_OG(self) -> Tensor:
        """What code 0 stands for, in scales: float32 [O, G], or [1, 1] when symmetric."""
        if self.zero_OG is None:
            return torch.full((1, 1), -float(1 << (self.bits - 1)), device=self.scale_OG.device)
        return -self.zero_OG.to(torch.float32)

    def with_codes(self, codes_OI: Tensor) -> QuantizedWeight:
        """The quantized weight of these codes, uint8 [O, I]."""
        return QuantizedWeight(codes_OI, self.scale_OG, self.zero_OG, self.bits, self.group_size)


def fit_grid(
    weight_OI: Tensor, *, bits: int, group_size: int, symmetric: bool, scales: Scales, scale_dtype: torch.dtype
) -> Grid:
    """Chooses scales and zero points for a weight.

    Args:
        weight_OI: float32 [O, I], finite; any device.
        bits: bits per code, 2 to 8.
        group_size: input columns per group; divides I.
        symmetric: without zero points.
        scales: how ranges are chosen.
        scale_dtype: dtype that scales are stored in.
    """
    rows, columns = weight_OI.shape
    groups_NS = weight_OI.reshape(-1, group_size)
    count = len(groups_NS)
    scale_N = torch.empty(count, dtype=torch.float32, device=weight_OI.device)
    zero_N = torch.empty(count, dtype=torch.float32, device=weight_OI.device)
    step = max(1, _CPU_PIECE // group_size) if weight_OI.device.type == "cpu" else count
    for first in range(0, count, step):
        piece = slice(first, first + step)
        # Transposed, so that what belongs to a group runs along the first axis and all operations are long ones.
        group_SN = groups_NS[piece].T.contiguous()
        scale_N[piece], zero_N[piece] = _fit(group_SN, bits, symmetric, scales, scale_dtype)
    shape = (rows, columns // group_size)
    return Grid(
        scale_OG=scale_N.to(scale_dtype).view(shape),
        zero_OG=None if symmetric else zero_N.to(torch.uint8).view(shape),
        bits=bits,
        group_size=group_size,
    )


def nearest_codes(weight_OI: Tensor, grid: Grid) -> Tensor:
    """For each weight the code whose dequantized value is nearest to it.

    Args:
        weight_OI: float32 [O, I].
        grid: of the same shape.

    Returns:
        uint8 [O, I].
    """
    rows, columns = weight_OI.shape
    lowest_OG = grid.lowest_OG().expand(rows, columns // grid.group_size)
    step = max(1, _CPU_PIECE // columns) if weight_OI.device.type == "cpu" else rows
    codes_OI = torch.empty(rows, columns, dtype=torch.uint8, device=weight_OI.device)
    for first in range(0, rows, step):
        piece = slice(first, first + step)
        scale = grid.scale_OG[piece].to(torch.float32).unsqueeze(-1)
        lowest = lowest_OG[piece].unsqueeze(-1)
        highest = lowest + ((1 << grid.bits) - 1)
        weight = weight_OI[piece].reshape(-1, columns // grid.group_size, grid.group_size)
        steps, _ = round_to_grid(weight, scale, lowest, highest, grid.scale_OG.dtype, exact=True)
        codes_OI[piece] = (steps - lowest).to(torch.uint8).view(-1, columns)
    return codes_OI


def round_to_grid(
    weight: Tensor, scale: Tensor, lowest: Tensor, highest: Tensor, scale_dtype: torch.dtype, *, exact: bool
) -> tuple[Tensor, Tensor]:
    """For each weight the whole number of scales, code - zero, that dequantizes nearest to it.

    Args:
        weight: float32, any shape.
        scale: float32 of the rounded scales; like the next two, of a shape that broadcasts to the weight's.
        lowest: smallest number allowed, float32.
        highest: largest number allowed, float32.
        scale_dtype: dtype that products with the scale are rounded to.
        exact: look at the neighbour too. Without that, the number is nearest to weight / scale, and may miss the
            nearest product by as much as that is rounded: with 8 bits an eighth of a scale in float16, one scale in
            bfloat16.

    Returns:
        The numbers, and what they dequantize to; both float32.
    """
    steps = torch.clamp((weight / scale).round_(), lowest, highest)
    value = _dequantized(steps, scale, scale_dtype)
    if not exact or scale_dtype is torch.float32:
        return steps, value
    # The neighbour on the weight's side may be nearer, but no other: rounding keeps the order of values, and moves none
    # by more than half the distance between two of them.
    residual = weight - value
    neighbour = torch.clamp(steps + residual.sign(), lowest, highest)
    other = _dequantized(neighbour, scale, scale_dtype)
    nearer = (weight - other).abs_() < residual.abs_()
    return torch.where(nearer, neighbour, steps), torch.where(nearer, other, value)


def _dequantized(steps: Tensor, scale: Tensor, scale_dtype: torch.dtype) -> Tensor:
    """The value of whole numbers of scales, float32, as `QuantizedWeight.dequantize` rounds it."""
    # The product of a number of at most 9 bits and a half precision scale is exact in float32.
    value = steps * scale
    return value if scale_dtype is torch.float32 else value.to(scale_dtype).to(torch.float32)


def _fit(
    group_SN: Tensor, bits: int, symmetric: bool, scales: Scales, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scales and zero points, both float32 [N]; scales are values of `scale_dtype`."""
    highest_code = (1 << bits) - 1
    if symmetric:
        above_N = group_SN.abs().amax(0)
        below_N = -above_N
    else:
        above_N = group_SN.amax(0).clamp_(min=0)
        below_N = group_SN.amin(0).clamp_(max=0)
    span_N = above_N - below_N
    factors = _factors(bits, symmetric) if scales is Scales.MSE else (1.0,)
    factor_F1 = torch.tensor(factors, device=group_SN.device).unsqueeze(1)
    # The furthest value from zero, 2^(bits-1) or 2^bits - 1 scales, must be finite too.
    most = torch.finfo(scale_dtype).max / (1 << (bits - 1 if symmetric else bits))
    scale_FN = _storable(span_N * (factor_F1 / highest_code), span_N, scale_dtype, most)
    if symmetric:
        zero_FN = torch.full_like(scale_FN, float(1 << (bits - 1)))
    else:
        zero_FN = (-below_N * factor_F1 / scale_FN).round_().clamp_(0, highest_code)
    if scales is Scales.MINMAX:
        return scale_FN[0], zero_FN[0]
    lowest_FN, highest_FN = -zero_FN, highest_code - zero_FN
    error_FN = torch.empty_like(scale_FN)
    scratch_SN = torch.empty_like(group_SN)
    for trial, scale_N in enumerate(scale_FN):
        torch.div(group_SN, scale_N, out=scratch_SN).round_()
        torch.clamp(scratch_SN, lowest_FN[trial], highest_FN[trial], out=scratch_SN)
        # That the product is rounded to the scale's dtype is left out: it is much the same for all factors.
        error_FN[trial] = _sum_of_rows(scratch_SN.mul_(scale_N).sub_(group_SN).square_())
    # Trials before the first of the best: `argmin` does not promise which of equal ones it returns.
    best_1N = ((error_FN == error_FN.amin(0)).cumsum(0) == 0).sum(0, keepdim=True)
    return scale_FN.gather(0, best_1N)[0], zero_FN.gather(0, best_1N)[0]


@functools.cache
def _factors(bits: int, symmetric: bool) -> tuple[float, ...]:
    """The factors that are tried, falling."""
    count, narrowest, widest = _FACTORS[bits]
    if not symmetric:
        widest = 1.0
    factors = {widest * (narrowest / widest) ** (step / (count - 1)) for step in range(count)}
    if symmetric:
        # With these, amax is exactly the highest or the lowest code: weights that are on a grid already are found.
        half = ((1 << bits) - 1) / 2
        factors |= {half / ((1 << (bits - 1)) - 1), half / (1 << (bits - 1))}
    return tuple(sorted(factors, reverse=True))


def _sum_of_rows(values_SN: Tensor) -> Tensor:
    """The sum over the first axis, [N]; overwrites what it is given.

    Summed by halves, each step one operation between whole rows. `Tensor.sum` adds in an order that depends on how many
    groups lie side by side, and then a scale could depend on what is stacked.
    """
    count = len(values_SN)
    while count > 1:
        half = count // 2
        values_SN[:half].add_(values_SN[count - half : count])
        count -= half
    return values_SN[0]


def _storable(scale_FN: Tensor, span_N: Tensor, scale_dtype: torch.dtype, most: float) -> Tensor:
    """Scales rounded to the dtype they are stored in, as float32: positive, and `most` at most."""
    # Subnormal numbers of float16 are needed: 8-bit scales of small weights lie there (below 6e-5), and all devices
    # compute with them. Those of the other types are below 1e-38, and devices may take them for zero.
    least = _FLOAT16_SUBNORMAL if scale_dtype is torch.float16 else torch.finfo(scale_dtype).smallest_normal
    rounded_FN = scale_FN.clamp(least, most).to(scale_dtype).to(torch.float32)
    # A group of zeros: any scale will do.
    return torch.where(span_N > 0, rounded_FN, torch.ones_like(rounded_FN))
