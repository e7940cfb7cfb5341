"""The loop over input columns that GPTQ and SparseGPT share: `column_loop`, `ColumnRule`, `inverse_factor`.

Under one Hessian H the rows of a weight are independent. Column by column, a rule gives each weight its value, and what
that changed in the output is made up for by the columns that are still to come:

    e_j = (w_j - value_j) / U_jj,  w_k -= U_jk e_j  for k > j,  with H^-1 = U^T U, U upper triangular.

Here a column is brought up to date when its turn comes, not after each of those before it:
w_j = w0_j - sum over i < j of U_ij e_i. The sum is split in three: blocks before this one (one matrix product per
block), earlier runs in the block (one per run), and earlier columns of the run (one matrix-vector product per column).
So nothing is kept but the errors E, and no row is copied per level.

Shape letters: O rows of the weights, I in, R stacked rows, K columns of a block.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from evoray.errors import EvorayError

# Tenfold damping as often as this: a damping of 1e6 times the mean diagonal is beyond any matrix without NaN.
_DAMPING_TRIALS = 9


class ColumnRule(Protocol):
    """What becomes of the weights of a column, and keeps it."""

    def begin(self, start: int, weight_KR: Tensor) -> None:
        """A block begins.

        Args:
            start: its first column.
            weight_KR: its weights, up to date with all blocks before it; not to be written to, nor kept.
        """

    def value(self, column: int, weight_R: Tensor) -> Tensor:
        """The values that the weights of a column take, [R] of any floating dtype.

        Args:
            column: its place in the order of the loop.
            weight_R: its weights, up to date with all columns before it.
        """

    def finish(self, start: int, end: int) -> None:
        """The block of columns `start` to before `end` is done."""


def column_loop(weight_IO: Tensor, lower_II: Tensor, row_R: Tensor, rule: ColumnRule, *, block: int, run: int) -> None:
    """The loop over all columns.

    Args:
        weight_IO: float32 [I, O], columns in the order to take them: rows of all layers, one after the other.
        lower_II: U^T [I, I] in that order and in the loop's precision.
        row_R: for each stacked row the row of the weights that it is, int64 [R].
        rule: decides values, and keeps what it decided.
        block: columns of a block: enough for efficient matrix products.
        run: columns of a run. Matrix-vector products are slow for what they compute, so they reach back no further.
    """
    columns = len(weight_IO)
    precision = lower_II.dtype
    diagonal = lower_II.diagonal().tolist()
    error_IR = torch.empty(columns, len(row_R), dtype=precision, device=weight_IO.device)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        weight_KR = weight_IO[start:end].to(precision)[:, row_R]
        if start:
            weight_KR.addmm_(lower_II[start:end, :start], error_IR[:start], alpha=-1)
        rule.begin(start, weight_KR)
        for first in range(start, end, run):
            stop = min(first + run, end)
            if first > start:
                weight_KR[first - start : stop - start].addmm_(
                    lower_II[first:stop, start:first], error_IR[start:first], alpha=-1
                )
            for column in range(first, stop):
                weight_R = weight_KR[column - start]
                if column > first:
                    weight_R.addmv_(error_IR[first:column].T, lower_II[column, first:column], alpha=-1)
                value_R = rule.value(column, weight_R)
                torch.sub(weight_R, value_R, out=error_IR[column]).div_(diagonal[column])
        rule.finish(start, end)


def loop_precision(device: torch.device) -> torch.dtype:
    """Dtype of the loop's sums: float64 on a CPU, where it takes hardly longer and leaves no chance that a code depends
    on what else is stacked, float32 elsewhere."""
    return torch.float64 if device.type == "cpu" else torch.float32


def inverse_factor(hessian_II: Tensor, damping: float) -> tuple[Tensor, float]:
    """L = U^T, where (H + damping)^-1 = U^T U: lower triangular, float64 [I, I]; and the damping that it took.

    Columns that never had an input get a diagonal of 1. Nothing else changes there, and they have no part in the
    others.

    Args:
        hessian_II: X^T X of the input, up to a factor: symmetric [I, I]. It stays as it is.
        damping: share of the mean of the diagonal that is added to it.

    Raises:
        EvorayError: there is no such factor even with large damping.
    """
    hessian_II = hessian_II.to(torch.float64, copy=True)
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
