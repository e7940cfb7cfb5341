"""Luck: the best of many random genotypes.

Holds: `best_random`.
"""

import numpy as np

from evoray.baselines.problem import Problem
from evoray.evolve import initial
from evoray.space import Genotype

_STREAM = 102
"""Tells these draws from those of searches with the same seed, which have four numbers."""


def best_random(problem: Problem) -> Genotype:
    """The genotype of the least loss among `candidates` distinct random legal ones; of equals the first drawn.

    They are drawn as a search draws its start (`evoray.evolve.random_legal`).

    Raises:
        UserError: less than one candidate.
    """
    rng = np.random.default_rng([problem.seed, _STREAM])
    drawn = initial(problem.space, problem.candidates, rng)
    # Draws know nothing of a largest deviation.
    legal = [genotype for genotype in drawn if problem.space.is_legal(genotype)] or list(drawn[:1])
    return legal[int(np.argmin(problem.losses(legal)))]
