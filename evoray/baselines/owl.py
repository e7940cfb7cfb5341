"""Layers compressed by how many outliers their block has: OWL (arXiv 2310.05175).

Holds: `owl`, `owl_choices`, `LAMBDAS`.

Legend: G genes, K blocks.
"""

import numpy as np
from numpy.typing import NDArray

from evoray.baselines.problem import Problem
from evoray.errors import UserError
from evoray.space import Genotype, Space

LAMBDAS = (0.02, 0.05, 0.08, 0.1, 0.15, 0.2)
"""The most that a block's share may be away from the mean, up or down: the range that the paper tries."""


def owl(problem: Problem) -> Genotype:
    """Blocks with more outliers keep more; the best over lambda and M, all measured once.

    Raises:
        UserError: see `owl_choices`.
    """
    found = owl_choices(problem)
    return found[int(np.argmin(problem.losses(found)))]


def owl_choices(problem: Problem) -> list[Genotype]:
    """What OWL may choose, before anything is measured: distinct genotypes, of every lambda and every M of the store.

    The outlier ratio of a block is the mean over its layers. Ratios are scaled to 0 to 2 lambda over all blocks and
    centred; that is by how much a block's share of the dense cost is above the target's. A sparsity's dense cost is a
    layer's number of weights; of other measures that of its dearest level. Each gene takes the level nearest the cost
    it wants; then those furthest from what they want move until the limit is kept and used.

    Raises:
        UserError: no outlier ratios, not of all layers, or something to drop.
    """
    problem.check_only_levels("owl")
    ratios = _block_ratios(problem)
    made: dict[Genotype, None] = {}
    for ratio_of in ratios.values():
        ratio_K = np.array(list(ratio_of.values()))
        spread = ratio_K.max() - ratio_K.min()
        scaled_K = (ratio_K - ratio_K.min()) / spread if spread > 0 else np.zeros_like(ratio_K)
        for most in LAMBDAS:
            above_K = 2 * most * (scaled_K - scaled_K.mean())
            above = dict(zip(ratio_of, above_K.tolist(), strict=True))
            made[_nearest(problem, np.array([above[gene.block] for gene in problem.space.genes]))] = None
    return list(made)


def _block_ratios(problem: Problem) -> dict[str, dict[int, float]]:
    """M -> block -> mean outlier ratio of the layers that genes decide for."""
    if not any(problem.outliers.values()):
        raise UserError("owl needs outlier ratios, and this store holds none: build it with evoray build")
    sites = [site for gene in problem.space.genes for site in gene.sites]
    ratios: dict[str, dict[int, float]] = {}
    for m in dict.fromkeys(m for layer in problem.outliers.values() for m in layer):
        if missing := [site for site in sites if m not in problem.outliers.get(site, {})]:
            raise UserError(f"owl needs outlier ratios, and the store has none of {missing[0]}: build that layer again")
        layers: dict[int, list[float]] = {}
        for gene in problem.space.genes:
            layers.setdefault(gene.block, []).extend(problem.outliers[site][m] for site in gene.sites)
        ratios[m] = {block: float(np.mean(each)) for block, each in layers.items()}
    return ratios


def _nearest(problem: Problem, above_G: NDArray[np.float64]) -> Genotype:
    """The legal genotype nearest to target shares that differ by so much between genes."""
    space = problem.space
    dense_G = np.array(_dense(problem), dtype=np.float64)
    levels = [0] * len(space.genes)
    for budget, limit in enumerate(space.limits):
        genes = [number for number, gene in enumerate(space.genes) if gene.budget == budget]
        share = limit / dense_G[genes].sum()
        wanted = {number: dense_G[number] * (share + above_G[number]) for number in genes}
        for number in genes:
            levels[number] = int(np.argmin(np.abs(np.array(space.genes[number].costs) - wanted[number])))
        _repair(space, levels, wanted, dense_G, budget)
    return tuple(levels)


def _dense(problem: Problem) -> list[int]:
    """For each gene the cost of which targets are shares."""
    weights = [sum(problem.weights[site] for site in gene.sites) for gene in problem.space.genes]
    # Under a budget of sparsity a level costs the weights it leaves.
    sparsity = all(
        cost + zeros == held
        for gene, held in zip(problem.space.genes, weights, strict=True)
        for cost, zeros in zip(gene.costs, gene.zeros, strict=True)
    )
    return weights if sparsity else [gene.costs[-1] for gene in problem.space.genes]


def _repair(
    space: Space, levels: list[int], wanted: dict[int, float], dense_G: NDArray[np.float64], budget: int
) -> None:
    """Moves genes, in place, until a limit is kept and no step up fits any more.

    Down goes the gene that has most above what it wants, up the one that has least, as shares of the dense cost.
    """

    def excess(number: int) -> float:
        return float((space.genes[number].costs[levels[number]] - wanted[number]) / max(dense_G[number], 1.0))

    def up(number: int) -> int:
        costs = space.genes[number].costs
        return costs[levels[number] + 1] - costs[levels[number]] if levels[number] + 1 < len(costs) else 0

    slack = space.limits[budget] - sum(space.genes[number].costs[levels[number]] for number in wanted)
    while slack < 0:
        number = max((each for each in wanted if levels[each] > 0), key=excess)
        levels[number] -= 1
        slack += up(number)
    while fits := [each for each in wanted if 0 < up(each) <= slack]:
        number = min(fits, key=excess)
        slack -= up(number)
        levels[number] += 1
