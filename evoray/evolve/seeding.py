"""Random legal genotypes to start from.

Holds: `ceiling`, `random_legal`, `initial`.
"""

import numpy as np

from evoray.errors import UserError
from evoray.space import Genotype, Space

_REPEATS = 100
"""Genotypes seen before that are drawn in a row before a space counts as exhausted."""


def ceiling(space: Space) -> Genotype:
    """All genes at the lowest common level index whose total is above the limit; the highest where none is.

    For bitwidths 2, 3, 4, ... and 2.5 bits that is 3 everywhere. Genes with fewer levels stop at their last.
    """
    highest = space.highest()
    for index in range(max(highest) + 1):
        genotype = tuple(min(index, last) for last in highest)
        if space.cost(genotype) > space.limit:
            return genotype
    return highest


def random_legal(space: Space, rng: np.random.Generator) -> Genotype:
    """Starts at the ceiling and takes random genes one level down until the total fits, as the paper does.

    What the last step freed beyond need is then given to random genes that can go up within it, for steps here
    may differ widely in cost and the paper's don't. Terminates in any space: each step down lowers the total, and
    the lowest genotype is legal.
    """
    numbers_G = np.arange(len(space.genes))
    levels_G = np.array(ceiling(space), dtype=np.int64)
    slack = space.limit - space.cost(tuple(levels_G.tolist()))
    while slack < 0:
        lowered = rng.choice(np.flatnonzero(levels_G > 0))
        slack += int(space.steps_GK[lowered, levels_G[lowered]])
        levels_G[lowered] -= 1
    while True:
        up_G = space.steps_GK[numbers_G, levels_G + 1]
        choices = np.flatnonzero((up_G > 0) & (up_G <= slack))
        if not len(choices):
            return tuple(levels_G.tolist())
        raised = rng.choice(choices)
        slack -= int(up_G[raised])
        levels_G[raised] += 1


def initial(space: Space, count: int, rng: np.random.Generator) -> tuple[Genotype, ...]:
    """Distinct random legal genotypes.

    Returns:
        `count` of them; fewer, but at least one, where the space has hardly more.

    Raises:
        UserError: a count below 1.
    """
    if count < 1:
        raise UserError(f"{count} initial candidates are too few; give 1 or more")
    found: dict[Genotype, None] = {}
    repeats = 0
    while len(found) < count and repeats < _REPEATS:
        genotype = random_legal(space, rng)
        repeats = repeats + 1 if genotype in found else 0
        found[genotype] = None
    return tuple(found)
