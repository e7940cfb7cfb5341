"""Spaces and problems for baselines, with losses that are sums, or more than sums."""

from itertools import product

import numpy as np
import pytest

from evoray.baselines import Problem
from evoray.configuration import DROPPED, KEPT
from evoray.space import Gene, Space


def drop_gene(name, block, *, cost=1, budget=0, members=(), sites=None, weights=4):
    return Gene(
        name, block, sites or (name,), (DROPPED, KEPT), (0, cost), (0, 0), (0, 0), (weights, 0), (), members, budget
    )


def depth(counts, drop, *, costs=None):
    """Depth space: counts of units of each budget (their blocks 0, 1, ...), and how many of each must go.

    With costs there is one budget, and `drop` is the limit.
    """
    genes = [
        drop_gene(f"{block}.{budget}", block, cost=costs[block] if costs else 1, budget=budget)
        for block in range(max(counts))
        for budget, count in enumerate(counts)
        if block < count
    ]
    sites = tuple(site for gene in genes for site in gene.sites)
    limits = [drop] if costs else [count - each for count, each in zip(counts, drop, strict=True)]
    labels = ((DROPPED,),) * len(sites)
    return Space(tuple(genes), limits[0], sites, labels, weights=4 * len(genes), further=tuple(limits[1:]))


def joint(costs, blocks, limit, *, number=None):
    """Genes with levels, one switch for each block; with a number that many blocks must go, else they free cost."""
    genes, labels = [], []
    for place, (each, block) in enumerate(zip(costs, blocks, strict=True)):
        levels = tuple(map(str, range(len(each))))
        genes.append(Gene(f"g{place}", block, (f"g{place}",), levels, tuple(each), tuple(each), tuple(each)))
        labels.append(levels)
    for block in sorted(set(blocks)):
        members = tuple(f"g{place}" for place, each in enumerate(blocks) if each == block)
        budget, cost = (0, 0) if number is None else (1, 1)
        genes.append(drop_gene(f"b{block}", block, cost=cost, budget=budget, members=members))
        labels.append((DROPPED,))
    further = () if number is None else (len(set(blocks)) - number,)
    sites = tuple(site for gene in genes for site in gene.sites)
    return Space(tuple(genes), limit, sites, tuple(labels), weights=100, further=further, freed=number is None)


def levels(costs, limit):
    """Genes of one layer each, in a block each."""
    labels = tuple(tuple(map(str, range(len(each)))) for each in costs)
    genes = tuple(Gene(f"g{n}", n, (f"g{n}",), labels[n], *(tuple(each),) * 3) for n, each in enumerate(costs))
    return Space(genes, limit, tuple(gene.name for gene in genes), labels, weights=100)


def every(space):
    return [each for each in product(*(range(len(gene.levels)) for gene in space.genes)) if space.is_legal(each)]


class Measured:
    """A loss of one's own, that keeps what it measured."""

    def __init__(self, loss):
        self.loss, self.calls = loss, []

    def __call__(self, genotypes, fitness):
        self.calls.append((tuple(genotypes), fitness))
        return np.array([self.loss(genotype) for genotype in genotypes])

    @property
    def genotypes(self):
        return [genotype for genotypes, _ in self.calls for genotype in genotypes]


def losses_of(space, seed, *, interactions=True):
    """A loss that falls with every level, and by pairs of genes, too: multiples of 1/64, so that sums are exact."""
    rng = np.random.default_rng(seed)
    single = rng.integers(1, 640, len(space.genes)) / 64
    pairs = rng.integers(0, 640, (len(space.genes),) * 2) / 64 * interactions

    def loss(genotype):
        low = np.array([last - index for last, index in zip(space.highest(), genotype, strict=True)], dtype=float)
        return float(single @ low + low @ pairs @ low)

    return loss


def make_problem(space, loss=None, *, errors=None, outliers=None, influences=None, seed=0, candidates=20000):
    measured = loss if isinstance(loss, Measured) else Measured(loss or losses_of(space, 0))
    sites = [(site, gene.block) for gene in space.genes for site in gene.sites]
    weights = {site: 4 for site, _ in sites}
    return Problem(
        space, errors or {}, outliers or {}, dict(sites), weights, measured, influences or None, seed, candidates
    )


@pytest.fixture(scope="session")
def made():
    """All of the above under one name."""

    class Made:
        pass

    found = Made()
    for each in (drop_gene, depth, joint, levels, every, Measured, losses_of):
        setattr(found, each.__name__, each)
    found.problem = make_problem
    return found
