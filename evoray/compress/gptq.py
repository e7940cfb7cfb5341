"""GPTQ (arXiv 2210.17323) for all levels of all layers that share an input, in one column loop: `gptq`.

GPTQ treats the rows of a weight independently under one Hessian H. So the rows of all levels of all layers with the
same input are stacked, and one loop over the input columns does them all. Column j is rounded, and what that changed
in the output is made up for by the columns that are still to come:

    q_j = nearest(w_j),  e_j = (w_j - q_j) / U_jj,  w_k -= U_jk e_j  for k > j,  with H^-1 = U^T U, U upper triangular.

That loop is `columns.column_loop`; here stands what becomes of one column.

Groups are static: scales and zero points come from the original weight, in the original order of columns, before the
loop begins. The loop may then take the columns in any order (act-order: by the Hessian's diagonal, largest first)
and codes go back to their places: no index array in the result.

Shape letters: O out, I in, G groups, R stacked rows (levels x layers x O), K columns of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evoray.compress.columns import ColumnRule, column_loop, inverse_factor, loop_precision
from evoray.compress.grid import Grid, fit_grid, round_to_grid
from evoray.compress.recipe import Scales
from evoray.formats.packed import QuantizedWeight

# Columns of a block: enough for efficient matrix products.
_BLOCK = 128
# Columns of a run. Matrix-vector products are slow for what they compute, so they reach back 15 columns at most.
_RUN = 16


@dataclass(frozen=True)
class Solution:
    """What `gptq` found.

    Attributes:
        weights: layer -> bits -> quantized weight.
        damping: share of the mean diagonal that was added to the Hessian; more than asked for where that did not make
            it positive definite.
    """

    weights: dict[str, dict[int, QuantizedWeight]]
    damping: float


def gptq(
    weights: Mapping[str, Tensor],
    hessian_II: Tensor,
    levels: Sequence[int],
    *,
    group_size: int,
    symmetric: bool,
    scales: Scales,
    scale_dtype: torch.dtype,
    damping: float = 0.01,
    act_order: bool = True,
    precision: torch.dtype | None = None,
) -> Solution:
    """Quantizes layers that share an input, at several levels.

    Args:
        weights: layer -> weight [O, I], finite, any floating dtype; all on one device.
        hessian_II: X^T X of their input, up to a factor: symmetric [I, I]. Its scale does not matter.
        levels: bits per code.
        group_size: input columns per scale; divides I.
        symmetric: without zero points.
        scales: how ranges are chosen.
        scale_dtype: dtype that scales are stored in.
        damping: share of the mean of the Hessian's diagonal that is added to it.
        act_order: take columns by the Hessian's diagonal, largest first.
        precision: dtype of the loop's sums; by default float64 on a CPU, where it takes hardly longer and leaves no
            chance that a code depends on what else is stacked, float32 elsewhere. The Hessian is always factored in
            float64.

    Raises:
        EvorayError: the Hessian has no factor even with large damping.
    """
    columns = len(hessian_II)
    device = hessian_II.device
    diagonal = hessian_II.diagonal()
    # Stable, so that columns of equal weight keep their order on every machine.
    order_I = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=device)
    factor_II, used = inverse_factor(hessian_II[order_I][:, order_I], damping)
    factor_II = factor_II.to(precision or loop_precision(device))

    stacked_OI = torch.cat([weight.to(torch.float32) for weight in weights.values()])
    grids = [
        fit_grid(
            stacked_OI, bits=bits, group_size=group_size, symmetric=symmetric, scales=scales, scale_dtype=scale_dtype
        )
        for bits in levels
    ]
    rounding = _Rounding(grids, len(stacked_OI), order_I // group_size)
    row_R = torch.arange(len(stacked_OI), device=device).repeat(len(levels))
    column_loop(stacked_OI.T[order_I], factor_II, row_R, rounding, block=_BLOCK, run=_RUN)
    codes_IR = rounding.codes_IR
    codes_RI = torch.empty(codes_IR.shape[::-1], dtype=torch.uint8, device=device)
    codes_RI[:, order_I] = codes_IR.T

    found: dict[str, dict[int, QuantizedWeight]] = {name: {} for name in weights}
    first = 0
    for bits, grid in zip(levels, grids, strict=True):
        row = 0
        for name, weight in weights.items():
            rows = len(weight)
            part = slice(row, row + rows)
            found[name][bits] = QuantizedWeight(
                codes_OI=codes_RI[first : first + rows],
                scale_OG=grid.scale_OG[part],
                zero_OG=None if grid.zero_OG is None else grid.zero_OG[part],
                bits=bits,
                group_size=group_size,
            )
            first += rows
            row += rows
    return Solution(found, used)


class _Rounding(ColumnRule):
    """Rounds each column to the grids of its group.

    Args:
        grids: one per level.
        rows: of the layers together, O.
        group_I: group of each column in the order of the loop, int64 [I].

    Attributes:
        codes_IR: uint8 [I, R]: rows of all layers at the first level, then at the second, and so on.
    """

    def __init__(self, grids: Sequence[Grid], rows: int, group_I: Tensor) -> None:
        self._scale_dtype = grids[0].scale_OG.dtype
        self._scale_GR = torch.cat([grid.scale_OG for grid in grids]).T.to(torch.float32).contiguous()
        groups, stacked = self._scale_GR.shape
        device = self._scale_GR.device
        self._lowest_GR = torch.cat([grid.lowest_OG().expand(rows, groups) for grid in grids]).T.contiguous()
        codes_R = torch.cat([torch.full((rows,), float((1 << grid.bits) - 1), device=device) for grid in grids])
        self._highest_GR = self._lowest_GR + codes_R
        # With float16 a miss is rare, costs an eighth of a scale at most, and the columns to come make up for most of
        # that; the second look would take as long as all the rest of the loop.
        self._exact = self._scale_dtype is torch.bfloat16
        self._group_I = group_I
        self._group = group_I.tolist()
        self._start = 0
        self._steps_KR = torch.empty(0, stacked, device=device)
        self.codes_IR = torch.empty(len(group_I), stacked, dtype=torch.uint8, device=device)

    def begin(self, start: int, weight_KR: Tensor) -> None:
        self._start = start
        self._steps_KR = torch.empty(weight_KR.shape, device=weight_KR.device)

    def value(self, column: int, weight_R: Tensor) -> Tensor:
        group = self._group[column]
        steps_R, value_R = round_to_grid(
            weight_R.to(torch.float32),
            self._scale_GR[group],
            self._lowest_GR[group],
            self._highest_GR[group],
            self._scale_dtype,
            exact=self._exact,
        )
        self._steps_KR[column - self._start] = steps_R
        return value_R

    def finish(self, start: int, end: int) -> None:
        lowest_KR = self._lowest_GR[self._group_I[start:end]]
        self.codes_IR[start:end] = self._steps_KR.sub_(lowest_KR).to(torch.uint8)
