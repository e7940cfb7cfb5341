"""Random legal genotypes to start from.

Holds: `ceiling`, `random_legal`, `initial`.
"""

import numpy as np

from evoray.errors import UserError
from evoray.space import Genotype, Space

_REPEATS = 100
"""Genotypes seen before that are drawn in a row before a space counts as exhausted; those drawn for one near enough."""


def ceiling(space: Space, budget: int = 0) -> Genotype:
    """The genes of a budget at the lowest common level index whose total is above its limit; the highest where none is.

    For bitwidths 2, 3, 4, ... and 2.5 bits that is 3 everywhere. Genes with fewer levels stop at their last. Genes of
    other budgets, and what can be dropped beside the levels of layers, are at their highest.
    """
    highest = space.highest()
    for index in range(max(highest) + 1):
        genotype = tuple(
            last if gene.members or gene.budget != budget else min(index, last)
            for gene, last in zip(space.genes, highest, strict=True)
        )
        if space.totals(genotype)[budget] > space.limits[budget]:
            return genotype
    return highest


def random_legal(space: Space, rng: np.random.Generator, near: Genotype | None = None) -> Genotype:
    """A random genotype that keeps every limit; or a given one, brought to the limits by random steps.

    Where a space limits the deviation, those beyond are drawn again; after 100 in vain the center is taken, with
    what the last of them dropped.

    Raises:
        UserError: not even the center is legal.
    """
    genotype = _within_limits(space, rng, near)
    if space.max_deviation is None or space.center is None:
        return genotype
    for _ in range(_REPEATS):
        if space.is_legal(genotype):
            return genotype
        genotype = _within_limits(space, rng, near)
    pairs = zip(space.genes, genotype, space.center, strict=True)
    genotype = tuple(index if gene.members else middle for gene, index, middle in pairs)
    if not space.is_legal(genotype):
        raise UserError(
            f"no genotype within a deviation of {space.max_deviation} keeps the target; "
            "allow more, or give another target"
        )
    return genotype


def _within_limits(space: Space, rng: np.random.Generator, near: Genotype | None) -> Genotype:
    """Starts at the ceiling, or near, and takes random genes one level down until the total fits, as the paper does.

    What the last step freed beyond need is then given to random genes that can go up within it, for steps here
    may differ widely in cost and the paper's don't. One budget after the other; where sublayers may be dropped beside
    the levels of layers, none is while lower levels will do. Terminates in any space: each step down lowers the total,
    and the lowest genotype is legal.
    """
    levels_G = np.array(space.highest() if near is None else near, dtype=np.int64)
    for budget, limit in enumerate(space.limits):
        here_G = space.budget_G == budget
        if near is None:
            levels_G = np.where(here_G, np.array(ceiling(space, budget), dtype=np.int64), levels_G)
        slack = limit - space.totals(levels_G.tolist())[budget]
        while slack < 0:
            down_G = np.where(here_G, space.steps(levels_G)[0], 0)
            choices = np.flatnonzero((down_G > 0) & ~space.switches_G)
            lowered = rng.choice(choices if len(choices) else np.flatnonzero(down_G > 0))
            slack += int(down_G[lowered])
            levels_G[lowered] -= 1
        while True:
            up_G = space.steps(levels_G)[1]
            choices = np.flatnonzero(here_G & (up_G > 0) & (up_G <= slack))
            if not len(choices):
                break
            raised = rng.choice(choices)
            slack -= int(up_G[raised])
            levels_G[raised] += 1
    return tuple(levels_G.tolist())


def initial(space: Space, count: int, rng: np.random.Generator, near: Genotype | None = None) -> tuple[Genotype, ...]:
    """Distinct random legal genotypes.

    Args:
        space: what may be chosen.
        count: how many.
        rng: draws.
        near: a genotype, legal or not, from which random steps go down to the limits, or up to them; by default they
            go down from the ceiling.

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
        genotype = random_legal(space, rng, near)
        repeats = repeats + 1 if genotype in found else 0
        found[genotype] = None
    return tuple(found)
