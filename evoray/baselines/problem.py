"""What a baseline is given, and what it is.

Holds: `Problem`, `Baseline`.

Legend: N genotypes, S spans, G genes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoray.configuration import DROPPED, KEPT
from evoray.errors import UserError
from evoray.space import Genotype, Space

Measurer = Callable[[Sequence[Genotype], str | None], NDArray[np.float64]]
"""Genotypes and the name of a fitness -> float64 [N], nats per token."""

Influencer = Callable[[tuple[tuple[str, ...], ...]], NDArray[np.float64]]
"""Spans of sites -> float64 [S, 4]."""


@dataclass(frozen=True)
class Problem:
    """One search for which a baseline finds a genotype, with all that may be measured.

    Attributes:
        space: what may be chosen, and the limits.
        errors: layer -> level -> layer error, of the store; empty without one.
        outliers: layer -> M ("3", "5", "7", "10") -> outlier ratio of OWL.
        blocks: layer -> block.
        weights: layer -> number of weights.
        measure: loss per token of genotypes, all on the same batches, by the fitness named: "kl", "perplexity", or
            the search's own for None.
        influences: for spans of sites that follow each other, the mean per token of what they change in the hidden
            state: columns "cosine" (1 - cos), "norm-ratio", "l2", "l2-normalised".
        seed: of all draws.
        candidates: random: how many are measured; brute-force: the most that it measures.
    """

    space: Space
    errors: Mapping[str, Mapping[str, float]]
    outliers: Mapping[str, Mapping[str, float]]
    blocks: Mapping[str, int]
    weights: Mapping[str, int]
    measure: Measurer
    influences: Influencer
    seed: int
    candidates: int

    def losses(self, genotypes: Sequence[Genotype], fitness: str | None = None) -> NDArray[np.float64]:
        """Measures genotypes; one whose loss is no number counts as infinitely bad.

        Returns:
            float64 [N], nats per token.
        """
        losses_N = np.asarray(self.measure(genotypes, fitness), dtype=np.float64)
        return np.where(np.isnan(losses_N), np.inf, losses_N)

    @property
    def units_G(self) -> NDArray[np.bool_]:
        """bool [G]: the genes that drop something."""
        return np.array([gene.levels == (DROPPED, KEPT) for gene in self.space.genes])

    def check_only_drops(self, name: str) -> None:
        """Sees that the space has nothing to choose but what is dropped.

        Raises:
            UserError: it has levels, too.
        """
        if not self.units_G.all():
            raise UserError(f"{name} scores sublayers or blocks: give --drop-blocks, and no --store")

    def check_only_levels(self, name: str) -> None:
        """Sees that the space has nothing to drop.

        Raises:
            UserError: it has.
        """
        if self.units_G.any():
            raise UserError(f"{name} chooses levels and drops nothing: leave out --drop-blocks, or take another one")


@dataclass(frozen=True)
class Baseline:
    """A way to choose a genotype that a search has to beat.

    Attributes:
        name: as users write it.
        choose: the way itself; raises `UserError` where it does not apply.
    """

    name: str
    choose: Callable[[Problem], Genotype]

    def __call__(self, problem: Problem) -> Genotype:
        """The baseline's genotype, within all limits.

        Raises:
            UserError: it does not apply to this space, or it finds nothing within the allowed deviation, which none
                of the baselines but brute force looks at.
        """
        found = self.choose(problem)
        if problem.space.is_legal(found):
            return found
        raise UserError(
            f"{self.name} deviates by {problem.space.deviation(found)} steps and --max-total-deviation is "
            f"{problem.space.max_deviation}: leave that out, or give more"
        )
