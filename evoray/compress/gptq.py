"""GPTQ (arXiv 2210.17323) for all levels of all layers that share an input, in one column loop: `gptq`.

GPTQ treats the rows of a weight independently under one Hessian H. So the rows of all levels of all layers with the
same input are stacked, and one loop over the input columns does them all. Column j is rounded, and what that changed
in the output is made up for by the columns that are still to come:

    q_j = nearest(w_j),  e_j = (w_j - q_j) / U_jj,  w_k -= U_jk e_j  for k > j,  with H^-1 = U^T U, U upper triangular.

Here a column is brought up to date when its turn comes, not after each of those before it:
w_j = w0_j - sum over i < j of U_ij e_i. The sum is split in three: blocks before this one (one matrix product per
block), earlier runs in the block (one per run), and earlier columns of the run (one matrix-vector product per column).
So nothing is kept but the errors E, and no row is copied per level.

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

from evoray.compress.grid import Grid, fit_grid, round_to_grid
from evoray.compress.recipe import Scales
from evoray.errors import EvorayError
from evoray.formats.packed import QuantizedWeight

# Columns of a block: enough for efficient matrix products.
_BLOCK = 128
# Columns of a run. Matrix-vector products are slow for what they compute, so they reach back 15 columns at most.
_RUN = 16

# Tenfold damping as often as this: a damping of 1e6 times the mean diagonal is beyond any matrix without NaN.
_DAMPING_TRIALS = 9


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
    factor_II, used = _inverse_factor(hessian_II[order_I][:, order_I], damping)
    if precision is None:
        precision = torch.float64 if device.type == "cpu" else torch.float32
    factor_II = factor_II.to(precision)

    stacked_OI = torch.cat([weight.to(torch.float32) for weight in weights.values()])
    grids = [
        fit_grid(
            stacked_OI, bits=bits, group_size=group_size, symmetric=symmetric, scales=scales, scale_dtype=scale_dtype
        )
        for bits in levels
    ]
    codes_IR = _column_loop(stacked_OI.T[order_I], factor_II, order_I // group_size, grids)
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


def _inverse_factor(hessian_II: Tensor, damping: float) -> tuple[Tensor, float]:
    """L = U^T, where (H + damping)^-1 = U^T U: lower triangular, float64 [I, I]; and the damping that it took.

    Columns that never had an input get a diagonal of 1. Nothing else changes there: they are rounded to nearest and
    have no part in the others.
    """
    hessian_II = hessian_II.to(torch.float64)
    dead_I = hessian_II.diagonal() <= 0
    hessian_II.diagonal()[dead_I] = 1.0
    live_I = hessian_II.diagonal()[~dead_I]
    mean = float(live_I.mean()) if len(live_I) else 1.0
    # H = R R^T with R upper triangular is the usual factor of H with rows and columns in reverse. Then
    # H^-1 = R^-T R^-1, so U = R^-1, without H^-1 itself: half the work, and none of its rounding.
    reversed_II = hessian_II.flip(0, 1)
    for _ in range(_DAMPING_TRIALS):
        trial_II = reversed_II.clone()
        trial_II.diagonal().add_(damping * mean)
        lower_II, failed = torch.linalg.cholesky_ex(trial_II)
        if not int(failed):
            break
        damping *= 10
    else:
        raise EvorayError(
            f"a Hessian of {len(hessian_II)} columns has no Cholesky factor, even with damping {damping:g}"
        )
    upper_II = lower_II.flip(0, 1)
    identity_II = torch.eye(len(upper_II), dtype=torch.float64, device=upper_II.device)
    return torch.linalg.solve_triangular(upper_II, identity_II, upper=True).T.contiguous(), damping


def _column_loop(weight_IO: Tensor, lower_II: Tensor, group_I: Tensor, grids: Sequence[Grid]) -> Tensor:
    """The loop over all columns.

    Args:
        weight_IO: float32 [I, O], columns in the order to take them: rows of all layers, one after the other.
        lower_II: U^T [I, I] in that order and in the loop's precision.
        group_I: group of each of these columns, int64 [I].
        grids: one per level.

    Returns:
        uint8 [I, R]: rows of all layers at the first level, then at the second, and so on.
    """
    columns, rows = weight_IO.shape
    stacked = rows * len(grids)
    device, precision = weight_IO.device, lower_II.dtype
    scale_dtype = grids[0].scale_OG.dtype
    scale_GR = torch.cat([grid.scale_OG for grid in grids]).T.to(torch.float32).contiguous()
    groups = len(scale_GR)
    lowest_GR = torch.cat([grid.lowest_OG().expand(rows, groups) for grid in grids]).T.contiguous()
    codes_R = torch.cat([torch.full((rows,), float((1 << grid.bits) - 1), device=device) for grid in grids])
    highest_GR = lowest_GR + codes_R
    # With float16 a miss is rare, costs an eighth of a scale at most, and the columns to come make up for most of that;
    # the second look would take as long as all the rest of the loop.
    exact = scale_dtype is torch.bfloat16
    diagonal = lower_II.diagonal().tolist()
    group = group_I.tolist()

    codes_IR = torch.empty(columns, stacked, dtype=torch.uint8, device=device)
    error_IR = torch.empty(columns, stacked, dtype=precision, device=device)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        weight_KR = weight_IO[start:end].to(precision).repeat(1, len(grids))
        if start:
            weight_KR.addmm_(lower_II[start:end, :start], error_IR[:start], alpha=-1)
        steps_KR = torch.empty(end - start, stacked, device=device)
        for run in range(start, end, _RUN):
            stop = min(run + _RUN, end)
            if run > start:
                weight_KR[run - start : stop - start].addmm_(
                    lower_II[run:stop, start:run], error_IR[start:run], alpha=-1
                )
            for column in range(run, stop):
                weight_R = weight_KR[column - start]
                if column > run:
                    weight_R.addmv_(error_IR[run:column].T, lower_II[column, run:column], alpha=-1)
                steps_R, value_R = round_to_grid(
                    weight_R.to(torch.float32),
                    scale_GR[group[column]],
                    lowest_GR[group[column]],
                    highest_GR[group[column]],
                    scale_dtype,
                    exact=exact,
                )
                steps_KR[column - start] = steps_R
                torch.sub(weight_R, value_R, out=error_IR[column]).div_(diagonal[column])
        codes_IR[start:end] = steps_KR.sub_(lowest_GR[group_I[start:end]]).to(torch.uint8)
    return codes_IR
