"""Everything there is, measured.

Holds: `brute_force`.
"""

import math
from collections.abc import Iterator
from itertools import combinations, islice, product

import numpy as np

from evoray.baselines.problem import Problem
from evoray.errors import UserError
from evoray.space import Genotype, Space

_CHUNK = 512
"""Genotypes handed over at once: enough for all workers, and only the best so far is kept."""


def brute_force(problem: Problem) -> Genotype:
    """The genotype of the least loss of all that use the budget; of equals the first in order.

    Where a number of units is dropped these are all choices of exactly that many. Of levels, and of units under a
    budget, all legal genotypes in which no gene can go a step up: what leaves more of the budget unused is not
    measured.

    Raises:
        UserError: more of them than `candidates` (before anything is measured), or none.
    """
    space = problem.space
    count = math.prod(_count(problem, budget) for budget in range(len(space.limits)))
    if count > problem.candidates:
        shown = f"{count}" if count < 10**15 else f"about 10^{len(str(count)) - 1}"
        raise UserError(
            f"brute-force would go through {shown} genotypes and may go through {problem.candidates}: raise "
            "--candidates, drop fewer or larger parts, or take sequential or random"
        )
    best, least = None, math.inf
    genotypes = _all(problem)
    while chunk := list(islice(genotypes, _CHUNK)):
        losses_N = problem.losses(chunk)
        place = int(np.argmin(losses_N))
        if best is None or losses_N[place] < least:
            best, least = chunk[place], float(losses_N[place])
    if best is None:
        raise UserError(
            f"no genotype is within the budget and --max-total-deviation {space.max_deviation}: give a larger one"
        )
    return best


def _genes(space: Space, budget: int) -> list[int]:
    return [number for number, gene in enumerate(space.genes) if gene.budget == budget]


def _dropped(problem: Problem, budget: int) -> int | None:
    """How many units of a budget must go; None for one that counts something else."""
    genes = _genes(problem.space, budget)
    if not all(problem.units_G[number] and problem.space.genes[number].costs[1] == 1 for number in genes):
        return None
    return max(0, len(genes) - problem.space.limits[budget])


def _count(problem: Problem, budget: int) -> int:
    genes, dropped = _genes(problem.space, budget), _dropped(problem, budget)
    if dropped is not None:
        return math.comb(len(genes), dropped)
    return math.prod(len(problem.space.genes[number].levels) for number in genes)


def _choices(problem: Problem, budget: int) -> Iterator[tuple[int, ...]]:
    """Level indices of a budget's genes, in their order."""
    genes, dropped = _genes(problem.space, budget), _dropped(problem, budget)
    if dropped is None:
        yield from product(*(range(len(problem.space.genes[number].levels)) for number in genes))
        return
    for gone in combinations(range(len(genes)), dropped):
        yield tuple(int(place not in gone) for place in range(len(genes)))


def _all(problem: Problem) -> Iterator[Genotype]:
    """All legal genotypes that use the budgets, each once."""
    space = problem.space
    places = [number for budget in range(len(space.limits)) for number in _genes(space, budget)]
    back = np.argsort(places).tolist()
    for parts in product(*(tuple(_choices(problem, budget)) for budget in range(len(space.limits)))):
        flat = [index for part in parts for index in part]
        genotype = tuple(flat[place] for place in back)
        if _uses(space, genotype):
            yield genotype


def _uses(space: Space, genotype: Genotype) -> bool:
    """Whether a genotype is legal, no step up from it is, and what is silent in it is at its lowest."""
    if not space.is_legal(genotype):
        return False
    if any(silent and index for silent, index in zip(space.silent(genotype), genotype, strict=True)):
        return False
    up_G = space.steps(np.array(genotype, dtype=np.int64))[1]
    return not any(
        space.is_legal((*genotype[:number], genotype[number] + 1, *genotype[number + 1 :]))
        for number in np.flatnonzero(up_G).tolist()
    )
