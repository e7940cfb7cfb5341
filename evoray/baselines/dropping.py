"""What is dropped, when every unit has a score.

Holds: `drop_lowest`.
"""

import numpy as np
from numpy.typing import NDArray

from evoray.space import Genotype, Space


def drop_lowest(space: Space, scores_G: NDArray[np.float64]) -> Genotype:
    """Drops the units of the least score per freed cost, in each budget until its total is within the limit.

    Where a number of units is to be dropped each frees the same, so it is those of the least scores, and exactly that
    many. Where units differ in size, the last one may free more than needed: then those come back that fit again, of
    the highest score per cost first. Of equal scores the first unit goes first.

    Args:
        space: of units alone, each with levels dropped and kept.
        scores_G: float64 [G], how much each unit matters.
    """
    levels = list(space.highest())
    for budget, limit in enumerate(space.limits):
        here = [number for number, gene in enumerate(space.genes) if gene.budget == budget]
        costs = {number: space.genes[number].costs[1] for number in here}
        order = sorted(here, key=lambda number: scores_G[number] / costs[number])
        slack = limit - sum(costs.values())
        dropped = []
        for number in order:
            if slack >= 0:
                break
            slack += costs[number]
            dropped.append(number)
        for number in dropped:
            levels[number] = 0
        for number in reversed(dropped):
            # What the model is better without stays out.
            if costs[number] <= slack and scores_G[number] > 0:
                slack -= costs[number]
                levels[number] = 1
    return tuple(levels)
