"""Losses of candidates on the same blocks, compared block by block.

Holds: `Difference`, `difference`, `Tally`.

Legend: N genotypes, B token blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evoray.evolve.race import Known
from evoray.space import Genotype


@dataclass(frozen=True)
class Difference:
    """How much higher one loss is than another on the same blocks.

    Attributes:
        mean: nats per token; infinite where only the first has no loss, minus infinite where only the second has none.
        error: standard error of the mean, with blocks as the sampling unit; infinite below two blocks.
        blocks: that it is over.
    """

    mean: float
    error: float
    blocks: int

    @property
    def doubt(self) -> float:
        """The probability of a mean as low as this, or lower, were the expected difference 0: Student's t test.

        The quantile comes from Wallace's normal approximation (Bell System Technical Journal 38, 1959); its absolute
        error is below 0.01 at one degree of freedom and below 0.001 from four on.
        """
        if math.isinf(self.mean):
            return 0.0 if self.mean < 0 else 1.0
        if not self.error or math.isinf(self.error):
            # Blocks that all say the same leave no doubt; a single block leaves all.
            return float(self.mean >= 0) if not self.error else 0.5
        freedom = self.blocks - 1
        t = self.mean / self.error
        z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
        return NormalDist().cdf(math.copysign(z, t))

    def best(self, errors: float = 2.0) -> float:
        """The lowest that the difference may well be."""
        return self.mean - errors * self.error if math.isfinite(self.mean) else self.mean


def difference(losses_B: NDArray[np.float64], other_B: NDArray[np.float64], tokens_B: NDArray[np.int64]) -> Difference:
    """The first minus the second, as a ratio of sums over blocks (Cochran, Sampling Techniques, section 6.3).

    Args:
        losses_B: float64 [B], sums per block in nats.
        other_B: the same of the other.
        tokens_B: int64 [B], tokens each sum is over.

    Raises:
        ValueError: no token.
    """
    total = int(tokens_B.sum())
    if total < 1:
        raise ValueError("losses over no token can't be compared")
    blocks = len(tokens_B)
    mine, others = bool(np.isfinite(losses_B).all()), bool(np.isfinite(other_B).all())
    if not mine or not others:
        # Two without a loss are equal, which only ties can settle.
        return Difference(0.0 if mine == others else (-math.inf if mine else math.inf), 0.0, blocks)
    apart_B = losses_B - other_B
    mean = float(apart_B.sum()) / total
    if blocks < 2:
        return Difference(mean, math.inf, blocks)
    rest_B = apart_B - mean * tokens_B
    return Difference(mean, math.sqrt(float((rest_B**2).sum()) * blocks / (blocks - 1)) / total, blocks)


class Tally:
    """What was measured of each candidate on the blocks of one draw, from its beginning."""

    def __init__(self) -> None:
        self._losses: dict[Genotype, NDArray[np.float64]] = {}
        self._asked: dict[Genotype, int] = {}
        self._tokens_B: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(
        self,
        genotypes: Sequence[Genotype],
        losses_NB: NDArray[np.float64],
        tokens_B: NDArray[np.int64],
        asked: int | None = None,
    ) -> None:
        """Takes losses on the blocks behind those that each of the genotypes has; all must have equally many.

        Args:
            genotypes: N of them.
            losses_NB: float64 [N, B], sums in nats.
            tokens_B: int64 [B], tokens each sum is over.
            asked: on how many tokens they were measured, where that is not the sum of these.

        Raises:
            ValueError: shapes that don't fit, or blocks that were cut otherwise for others: no losses to compare.
        """
        losses_NB = np.asarray(losses_NB, dtype=np.float64)
        if losses_NB.shape != (len(genotypes), len(tokens_B)):
            raise ValueError(f"losses {losses_NB.shape} must be [genotypes, blocks]: {len(genotypes)}, {len(tokens_B)}")
        first = self.blocks(genotypes[0]) if len(genotypes) else 0
        there_B = self._tokens_B[first : first + len(tokens_B)]
        if not np.array_equal(there_B, tokens_B[: len(there_B)]):
            raise ValueError(f"blocks of {list(tokens_B[: len(there_B)])} tokens, where others had {list(there_B)}")
        for genotype, losses_B in zip(genotypes, losses_NB, strict=True):
            if self.blocks(genotype) != first:
                raise ValueError("genotypes of one measurement must have been measured on equally many blocks before")
            before_B = self._losses.get(genotype, np.zeros(0))
            self._losses[genotype] = np.concatenate([before_B, np.where(np.isnan(losses_B), np.inf, losses_B)])
            self._asked[genotype] = self.asked(genotype) + (int(tokens_B.sum()) if asked is None else asked)
        self._tokens_B = np.concatenate([self._tokens_B[:first], tokens_B, self._tokens_B[first + len(tokens_B) :]])

    def blocks(self, genotype: Genotype) -> int:
        """On how many blocks a genotype was measured."""
        return len(self._losses.get(genotype, ()))

    def asked(self, genotype: Genotype) -> int:
        """On how many tokens."""
        return self._asked.get(genotype, 0)

    def mean(self, genotype: Genotype, blocks: int | None = None) -> float:
        """Its loss in nats per token on its first blocks, by default all; infinite where it has none."""
        losses_B = self._losses.get(genotype, np.zeros(0))[:blocks]
        tokens = int(self._tokens_B[: len(losses_B)].sum())
        return float(losses_B.sum()) / tokens if tokens and np.isfinite(losses_B).all() else math.inf

    def apart(self, genotype: Genotype, other: Genotype) -> Difference:
        """The first's loss minus the second's on the blocks that both have.

        Raises:
            ValueError: they share none.
        """
        blocks = min(self.blocks(genotype), self.blocks(other))
        mine_B, others_B = self._losses.get(genotype, np.zeros(0)), self._losses.get(other, np.zeros(0))
        return difference(mine_B[:blocks], others_B[:blocks], self._tokens_B[:blocks])

    def known(self, genotype: Genotype, skip: int = 0) -> Known:
        """All that there is of a genotype, behind so many blocks of the draw."""
        losses_B = self._losses.get(genotype, np.zeros(0))
        return Known(losses_B, self._tokens_B[: len(losses_B)], self.asked(genotype), skip)
