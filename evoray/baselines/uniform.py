"""The same everywhere: one level for all layers, and what is dropped spread evenly.

Holds: `uniform`.
"""

from collections.abc import Sequence

from evoray.configuration import DROPPED, KEPT
from evoray.space import Genotype, Space


def uniform(space: Space) -> Genotype:
    """The best uniform choice within the budget: the dearest level that all genes have and that is legal.

    Where the target lies between two levels it costs less than the target allows. Without a level that all genes
    share within the budget it is every gene's cheapest.

    Nothing is dropped that need not be. Where a number of sublayers or blocks must go, or nothing else keeps the
    budget, those of each budget are spread evenly over the depth: k of n are the middles of k equal parts. Attention
    and MLP sublayers with numbers of their own so go from the same blocks.
    """
    met = space.uniform()
    if met is not None:
        return met
    units = [gene.levels == (DROPPED, KEPT) for gene in space.genes]
    chosen = [gene for gene, unit in zip(space.genes, units, strict=True) if not unit]
    shared = [level for level in (chosen[0].levels if chosen else ()) if all(level in gene.levels for gene in chosen)]
    starts = [
        tuple(1 if unit else gene.levels.index(level) for gene, unit in zip(space.genes, units, strict=True))
        for level in shared
    ]
    lowest = tuple(int(unit) for unit in units)
    # Numbers to drop are kept at any level; the budget of the levels is not helped by dropping while a level will do.
    numbers = [budget for budget in range(len(space.limits)) if budget not in {gene.budget for gene in chosen}]
    spread = [_spread(space, start, numbers) for start in starts]
    legal = [genotype for genotype in spread if space.is_legal(genotype)]
    return max(legal, key=space.cost) if legal else _spread(space, lowest, range(len(space.limits)))


def _spread(space: Space, start: Genotype, budgets: Sequence[int]) -> Genotype:
    """Drops, in each of the budgets, as few evenly spread units as bring its total within the limit."""
    genotype = start
    for budget in budgets:
        units = [
            number
            for number, gene in enumerate(space.genes)
            if gene.levels == (DROPPED, KEPT) and gene.budget == budget
        ]
        before = genotype
        for count in range(len(units) + 1):
            dropped = {units[(2 * part + 1) * len(units) // (2 * count)] for part in range(count)}
            genotype = tuple(0 if number in dropped else index for number, index in enumerate(before))
            if space.totals(genotype)[budget] <= space.limits[budget]:
                break
    return genotype
