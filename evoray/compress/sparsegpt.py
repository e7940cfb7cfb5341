"""SparseGPT (arXiv 2301.00774) for all levels of all layers that share an input, in one column loop: `sparsegpt`.

For each block of 128 columns the weights with the lowest score w^2 / U_jj^2 go, U the factor of the inverse Hessian,
w what the columns before have made of the weight. What that changed in the output is made up for by the columns that
are still to come (see `columns`). In the joint form the kept weights are rounded to a grid in the same loop, and what
that changed is made up for, too.

Counts are exact: of the zeros of a layer at a level each block takes its share, and what rounding leaves is carried to
the next block. Of equal scores the first weight in row-major order goes. Columns that never had an input matter to no
output, so their weights go first, the smallest of them first.

Levels and layers are stacked as rows; each of them, a segment, has thresholds of its own.

Shape letters: O out, I in, G groups, R stacked rows, K columns of a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from evoray.compress.columns import ColumnRule, column_loop, inverse_factor, loop_precision
from evoray.compress.grid import Grid, round_to_grid
from evoray.compress.masks import lowest
from evoray.compress.zeros import share
from evoray.formats.masked import MaskedWeight
from evoray.formats.masked_codes import MaskedCodes

BLOCK = 128
"""Columns that share a threshold, as in the paper."""

_RUN = 16

# Most elements of the error matrix of one loop, 1 or 2 GiB; beyond that, segments take several loops.
_MOST_ERRORS = 1 << 28


@dataclass(frozen=True)
class Wanted:
    """One layer at one level.

    Attributes:
        layer: its name.
        level: label of the level.
        zeros: weights to go.
        grid: the grid that kept weights are rounded to; None to keep their values.
    """

    layer: str
    level: str
    zeros: int
    grid: Grid | None = None


Found: TypeAlias = dict[str, dict[str, MaskedWeight | MaskedCodes]]
"""Layer -> level -> weight."""


def sparsegpt(
    weights: Mapping[str, Tensor],
    hessian_II: Tensor,
    wanted: Sequence[Wanted],
    *,
    value_dtype: torch.dtype,
    damping: float = 0.01,
    precision: torch.dtype | None = None,
) -> tuple[Found, float]:
    """Prunes layers that share an input, at several levels.

    Args:
        weights: layer -> weight [O, I], finite, any floating dtype; all on one device.
        hessian_II: X^T X of their input, up to a factor: symmetric [I, I]. Its scale does not matter.
        wanted: what to make; all grids have groups of the same width.
        value_dtype: dtype that kept values are stored in.
        damping: share of the mean of the Hessian's diagonal that is added to it.
        precision: dtype of the loop's sums, as in `gptq`.

    Returns:
        What was made, and the damping that it took.

    Raises:
        EvorayError: the Hessian has no factor even with large damping.
    """
    factor_II, used = inverse_factor(hessian_II, damping)
    factor_II = factor_II.to(precision or loop_precision(hessian_II.device))
    dead_I = hessian_II.diagonal() <= 0
    stacked_OI = torch.cat([weight.to(torch.float32) for weight in weights.values()])
    ends = list(itertools.accumulate(len(weight) for weight in weights.values()))
    rows_of = {name: range(end - len(weights[name]), end) for name, end in zip(weights, ends, strict=True)}
    found: Found = {name: {} for name in weights}
    for coded in (False, True):
        segments = [want for want in wanted if (want.grid is not None) is coded]
        for piece in _pieces(segments, rows_of, len(factor_II)):
            rule = _Coding(piece, rows_of, factor_II, dead_I) if coded else _Pruning(piece, rows_of, factor_II, dead_I)
            spans = [rows_of[want.layer] for want in piece]
            row_R = torch.cat([torch.arange(span.start, span.stop, device=hessian_II.device) for span in spans])
            column_loop(stacked_OI.T, factor_II, row_R, rule, block=BLOCK, run=_RUN)
            for index, want in enumerate(piece):
                found[want.layer][want.level] = rule.made(index, value_dtype)
    return found, used


def _pieces(segments: Sequence[Wanted], rows_of: Mapping[str, range], columns: int) -> Iterator[list[Wanted]]:
    piece: list[Wanted] = []
    rows = 0
    for want in segments:
        if piece and (rows + len(rows_of[want.layer])) * columns > _MOST_ERRORS:
            yield piece
            piece, rows = [], 0
        piece.append(want)
        rows += len(rows_of[want.layer])
    if piece:
        yield piece


class _Pruning(ColumnRule):
    """Takes the lowest scores of each segment and block out, and keeps the other weights as they are by then."""

    def __init__(
        self, wanted: Sequence[Wanted], rows_of: Mapping[str, range], lower_II: Tensor, dead_I: Tensor
    ) -> None:
        ends = list(itertools.accumulate(len(rows_of[want.layer]) for want in wanted))
        self._segments = [slice(end - len(rows_of[want.layer]), end) for want, end in zip(wanted, ends, strict=True)]
        self._zeros = [want.zeros for want in wanted]
        self._square_I = lower_II.diagonal().square()
        self._dead_I = dead_I
        self._start = 0
        self._keep_IR = torch.empty(len(lower_II), ends[-1], dtype=torch.bool, device=lower_II.device)
        # Sums are kept in the loop's precision until a weight is stored.
        self._value_IR = torch.empty(0) if wanted[0].grid else torch.empty_like(self._keep_IR, dtype=torch.float32)

    def begin(self, start: int, weight_KR: Tensor) -> None:
        columns, end = len(self._square_I), start + len(weight_KR)
        self._start = start
        score_KR = weight_KR.square().div_(self._square_I[start:end].unsqueeze(1))
        dead_K = self._dead_I[start:end]
        # Below every live score, and rising with the weight.
        score_KR[dead_K] = -1 / (1 + weight_KR[dead_K].square())
        for part, zeros in zip(self._segments, self._zeros, strict=True):
            score_OK = score_KR[:, part].T
            gone_OK = lowest(score_OK.reshape(-1), share(zeros, start, end, columns)).view(score_OK.shape)
            self._keep_IR[start:end, part] = ~gone_OK.T

    def value(self, column: int, weight_R: Tensor) -> Tensor:
        value_R = weight_R * self._keep_IR[column]
        self._value_IR[column] = value_R
        return value_R

    def finish(self, start: int, end: int) -> None:
        pass

    def made(self, segment: int, value_dtype: torch.dtype) -> MaskedWeight | MaskedCodes:
        """The weight of one segment."""
        part = self._segments[segment]
        return MaskedWeight.of(self._value_IR[:, part].T, self._keep_IR[:, part].T.contiguous(), value_dtype)


class _Coding(_Pruning):
    """The same, and rounds the kept weights to the grids of their segments."""

    def __init__(
        self, wanted: Sequence[Wanted], rows_of: Mapping[str, range], lower_II: Tensor, dead_I: Tensor
    ) -> None:
        super().__init__(wanted, rows_of, lower_II, dead_I)
        self._grids: list[Grid] = [want.grid for want in wanted if want.grid is not None]
        shapes = [(len(grid.scale_OG), grid.scale_OG.shape[1]) for grid in self._grids]
        self._group_size = self._grids[0].group_size
        self._scale_dtype = self._grids[0].scale_OG.dtype
        device = lower_II.device
        self._scale_GR = torch.cat([grid.scale_OG for grid in self._grids]).T.to(torch.float32).contiguous()
        self._lowest_GR = torch.cat(
            [grid.lowest_OG().expand(shape) for grid, shape in zip(self._grids, shapes, strict=True)]
        ).T.contiguous()
        most_R = torch.cat(
            [torch.full((rows,), (1 << g.bits) - 1.0) for g, (rows, _) in zip(self._grids, shapes, strict=True)]
        )
        self._highest_GR = self._lowest_GR + most_R.to(device)
        self._codes_IR = torch.empty_like(self._keep_IR, dtype=torch.uint8)

    def value(self, column: int, weight_R: Tensor) -> Tensor:
        group = column // self._group_size
        lowest_R = self._lowest_GR[group]
        steps_R, value_R = round_to_grid(
            weight_R.to(torch.float32),
            self._scale_GR[group],
            lowest_R,
            self._highest_GR[group],
            self._scale_dtype,
            exact=self._scale_dtype is torch.bfloat16,
        )
        keep_R = self._keep_IR[column]
        self._codes_IR[column] = (steps_R - lowest_R).to(torch.uint8)
        return value_R * keep_R

    def made(self, segment: int, value_dtype: torch.dtype) -> MaskedWeight | MaskedCodes:
        part = self._segments[segment]
        codes_OI = self._codes_IR[:, part].T.contiguous()
        return MaskedCodes.of(self._grids[segment].with_codes(codes_OI), self._keep_IR[:, part].T.contiguous())
