"""Sublayers and blocks dropped by a score of each: what EvoPress compares with (arXiv 2410.14649, depth pruning).

Holds: `INFLUENCES`, `by_influence`, `by_loss`, `by_window`.

Legend: S spans, G genes.
"""

from collections.abc import Callable

import numpy as np

from evoray.baselines.dropping import drop_lowest
from evoray.baselines.problem import Problem
from evoray.errors import UserError
from evoray.space import Genotype

INFLUENCES = ("cosine", "norm-ratio", "l2", "l2-normalised")
"""Columns of `Problem.influences`; the same as `evoray.fitness.INFLUENCES`, which needs torch."""


def by_influence(name: str) -> Callable[[Problem], Genotype]:
    """The baseline that drops what changes the hidden state the least, by one of `INFLUENCES`."""

    def choose(problem: Problem) -> Genotype:
        problem.check_only_drops(name)
        spans = tuple(gene.sites for gene in problem.space.genes)
        return drop_lowest(problem.space, problem.influences(spans)[:, INFLUENCES.index(name)])

    return choose


def by_loss(fitness: str) -> Callable[[Problem], Genotype]:
    """The baseline that drops those units of which each, dropped alone, raises a loss the least.

    Args:
        fitness: "kl" or "perplexity".
    """

    def choose(problem: Problem) -> Genotype:
        problem.check_only_drops(fitness)
        whole = problem.space.highest()
        alone = [(*whole[:number], 0, *whole[number + 1 :]) for number in range(len(whole))]
        losses_N = problem.losses([whole, *alone], fitness)
        return drop_lowest(problem.space, losses_N[1:] - (losses_N[0] if np.isfinite(losses_N[0]) else 0.0))

    return choose


def by_window(problem: Problem) -> Genotype:
    """Drops consecutive blocks: those between whose ends the direction of the hidden state changes the least.

    From each first block the window is as long as the budget needs; with a number to drop all are that long.

    Raises:
        UserError: units that are no whole blocks under one budget.
    """
    problem.check_only_drops("cosine-window")
    space = problem.space
    blocks = [gene.block for gene in space.genes]
    # Whole blocks: none shares its block with another, and together they hold all weights.
    whole = len(set(blocks)) == len(blocks) and sum(gene.zeros[0] for gene in space.genes) == space.weights
    if len(space.limits) > 1 or not whole:
        raise UserError("cosine-window drops consecutive blocks: give --drop-entire-block, or take cosine")
    windows: list[tuple[int, int]] = []
    for first in range(len(blocks)):
        slack = space.limit - sum(gene.costs[1] for gene in space.genes)
        last = first
        while slack < 0 and last < len(blocks):
            slack += space.genes[last].costs[1]
            last += 1
        if slack >= 0:
            windows.append((first, last))
    if windows[0] == (0, 0):
        return space.highest()
    spans = tuple(tuple(site for gene in space.genes[first:last] for site in gene.sites) for first, last in windows)
    best = int(np.argmin(problem.influences(spans)[:, INFLUENCES.index("cosine")]))
    first, last = windows[best]
    return tuple(0 if first <= number < last else 1 for number in range(len(blocks)))
