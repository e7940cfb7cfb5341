"""Of all legal genotypes the one with the least sum of a loss per gene and level: a knapsack, many at once.

Holds: `cheapest`.

Legend: S sums to minimise, G genes, K levels, C units of cost.
"""

import math

import numpy as np
from numpy.typing import NDArray

from evoray.space.space import Space

MOST_UNITS = 4096
"""Costs are counted in at most so many units of a budget; finer ones are rounded up, which stays legal."""


def cheapest(space: Space, losses_SGK: NDArray[np.float64], *, whole: bool = False) -> NDArray[np.int64]:
    """Solves the knapsack of each table by dynamic programming over costs, as SPDY does (arXiv 2201.13096).

    Exact where a budget has no more than `MOST_UNITS` steps of the common divisor of its costs. Else costs are rounded
    up, and what that leaves of the budget goes to the steps that lower the sum most.

    Args:
        space: genes and limits; none of its genes silences others, and deviations are not looked at.
        losses_SGK: float64 [S, G, K]; what stands behind a gene's last level is not looked at.
        whole: budgets are used up, also by steps that lower no sum, as long as one fits.

    Returns:
        int64 [S, G]: level per gene. Of equal sums the lower levels of earlier genes.

    Raises:
        ValueError: a space whose genes silence others.
    """
    if space.switches_G.any():
        raise ValueError("a knapsack can't be filled where genes silence others")
    levels_SG = np.zeros(losses_SGK.shape[:2], dtype=np.int64)
    for budget, limit in enumerate(space.limits):
        genes = np.flatnonzero(space.budget_G == budget)
        if len(genes):
            levels_SG[:, genes] = _solve(space, genes, limit, losses_SGK[:, genes], whole)
    return levels_SG


def _solve(
    space: Space, genes: NDArray[np.int64], limit: int, losses_SGK: NDArray[np.float64], whole: bool
) -> NDArray[np.int64]:
    costs_GK = space.costs_GK[genes]
    there_GK = costs_GK >= 0
    above_GK = np.where(there_GK, costs_GK - costs_GK[:, :1], 0)
    free = limit - int(costs_GK[:, 0].sum())
    # No more is ever needed than all of the highest.
    free = min(free, int(above_GK.max(axis=1).sum()))
    divisor = max(1, int(np.gcd.reduce(above_GK, axis=None)))
    unit = divisor if free // divisor <= MOST_UNITS else math.ceil(free / MOST_UNITS)
    units_GK, capacity = -(-above_GK // unit), free // unit
    sums, count = len(losses_SGK), len(genes)
    best_SC = np.zeros((sums, capacity + 1))
    chosen_GSC = np.zeros((count, sums, capacity + 1), dtype=np.int8)
    for gene in range(count):
        new_SC = best_SC + losses_SGK[:, gene, :1]
        for level in range(1, int(there_GK[gene].sum())):
            cost = int(units_GK[gene, level])
            if cost > capacity:
                break
            with_SC = best_SC[:, : capacity + 1 - cost] + losses_SGK[:, gene, level, None]
            better_SC = with_SC < new_SC[:, cost:]
            new_SC[:, cost:] = np.where(better_SC, with_SC, new_SC[:, cost:])
            chosen_GSC[gene, :, cost:][better_SC] = level
        best_SC = new_SC
    levels_SG = np.zeros((sums, count), dtype=np.int64)
    left_S = np.full(sums, capacity)
    for gene in reversed(range(count)):
        levels_SG[:, gene] = chosen_GSC[gene, np.arange(sums), left_S]
        left_S -= units_GK[gene, levels_SG[:, gene]]
    if unit != divisor or whole:
        for levels_G, losses_GK in zip(levels_SG, losses_SGK, strict=True):
            _refill(levels_G, losses_GK, costs_GK, limit, whole)
    return levels_SG


def _refill(
    levels_G: NDArray[np.int64], losses_GK: NDArray[np.float64], costs_GK: NDArray[np.int64], limit: int, whole: bool
) -> None:
    """Takes the step up that lowers the sum most, as long as one fits and, unless all is to be used up, does."""
    genes = np.arange(len(levels_G))
    while True:
        slack = limit - int(costs_GK[genes, levels_G].sum())
        up_G = np.minimum(levels_G + 1, costs_GK.shape[1] - 1)
        paid_G = costs_GK[genes, up_G] - costs_GK[genes, levels_G]
        gain_G = losses_GK[genes, levels_G] - losses_GK[genes, up_G]
        gain_G = np.where((paid_G > 0) & (paid_G <= slack), gain_G, -np.inf)
        best = int(np.argmax(gain_G))
        if gain_G[best] == -np.inf or (gain_G[best] <= 0 and not whole):
            return
        levels_G[best] += 1
