"""One level everywhere.

Holds: `uniform`.
"""

from evoray.space import Genotype, Space


def uniform(space: Space) -> Genotype:
    """The best uniform choice within the budget: the dearest level that all genes have and that is legal.

    Where the target lies between two levels it costs less than the target allows. Without a level that all genes
    share within the budget it is every gene's cheapest.
    """
    met = space.uniform()
    if met is not None:
        return met
    shared = [level for level in space.genes[0].levels if all(level in gene.levels for gene in space.genes)]
    legal = [genotype for level in shared if (genotype := space.uniform(level)) is not None]
    return max(legal, key=space.cost, default=space.lowest())
