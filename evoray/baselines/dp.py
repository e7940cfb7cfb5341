"""The exact minimum of the sum of layer errors: a knapsack, as in SPDY (arXiv 2201.13096, Algorithm 1).

What the EvoPress paper argues against: such sums are no measure of the whole model.

Holds: `dp`, `lowest_sum`.

Legend: N states, R budgets, K levels of a gene.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoray.baselines.problem import Problem
from evoray.configuration import BASE, DROPPED, KEPT
from evoray.errors import UserError
from evoray.space import Gene, Genotype, Space


def dp(problem: Problem) -> Genotype:
    """The legal genotype of the least sum of layer errors.

    A dropped sublayer or block counts with an error of 1 for each layer inside, for its whole output is lost, and what
    its layers would have had as errors does not count.

    Raises:
        UserError: no layer errors, or not of all levels.
    """
    if problem.units_G.all():
        raise UserError(
            "dp needs layer errors, and a search that only drops has none: take cosine, kl or another scoring baseline"
        )
    return lowest_sum(problem.space, problem.errors)


def lowest_sum(space: Space, errors: Mapping[str, Mapping[str, float]]) -> Genotype:
    """Solves the knapsack of a space exactly, but for the rounding of sums in float64.

    Genes are taken one after the other. Of all partial choices those are kept that no other beats in both cost and
    error, so a gene costs O(states x levels x log). Costs are whole, so there are at most as many states as distinct
    totals, and those of real layers are multiples of a large number: for 224 layers of seven levels a few thousand.
    Budgets that no switch links are solved one by one. Where a number of sublayers is dropped beside levels, there are
    that many states for each count of dropped ones up to the number.

    Args:
        space: genes, limits, and which genes drop others.
        errors: layer -> level -> error; `base` has none.

    Raises:
        UserError: no errors, or not of all levels.
    """
    if not errors:
        raise UserError("dp needs layer errors, and this store holds none: build it with evoray build")
    genotype = [0] * len(space.genes)
    for budgets in _linked(space):
        for gene, level in _solve(space, budgets, errors).items():
            genotype[gene] = level
    return tuple(genotype)


@dataclass(frozen=True)
class _Front:
    """States of which none is beaten by another.

    Attributes:
        cost_N: int64, in the first of the budgets that are solved together.
        saved_NR: int64, in the others: what is saved against the dearest levels, and never more than must be.
        error_N: float64, sum of layer errors.
        levels: of a state, gene -> level.
    """

    cost_N: NDArray[np.int64]
    saved_NR: NDArray[np.int64]
    error_N: NDArray[np.float64]
    levels: Callable[[int], dict[int, int]]


def _linked(space: Space) -> list[list[int]]:
    """Budgets that must be solved together, because a gene of one silences genes of another."""
    group = list(range(len(space.limits)))
    for gene, owner in zip(space.genes, space.owner_G.tolist(), strict=True):
        if owner >= 0:
            old, new = sorted((group[gene.budget], group[space.genes[owner].budget]), reverse=True)
            group = [new if each == old else each for each in group]
    return [[budget for budget, each in enumerate(group) if each == name] for name in sorted(set(group))]


def _solve(space: Space, budgets: Sequence[int], errors: Mapping[str, Mapping[str, float]]) -> dict[int, int]:
    """Gene -> level of the best choice for all genes of some budgets."""
    genes, owner = space.genes, space.owner_G.tolist()
    here = [number for number, gene in enumerate(genes) if gene.budget in budgets]
    dearest = np.array([sum(genes[number].costs[-1] for number in here if genes[number].budget == b) for b in budgets])
    limits = np.array([space.limits[budget] for budget in budgets])
    needed_R = np.maximum(dearest - limits, 0)[1:]

    def front(number: int) -> _Front:
        """The levels of a gene."""
        gene = genes[number]
        costs_KR = np.array([[cost if gene.budget == b else 0 for b in budgets] for cost in gene.costs], dtype=np.int64)
        saved_KR = costs_KR[-1] - costs_KR
        error_K = [0.0, 0.0] if gene.levels == (DROPPED, KEPT) else _errors(gene, errors)
        return _Front(costs_KR[:, 0], saved_KR[:, 1:], np.array(error_K), lambda n: {number: n})

    def switch(number: int) -> _Front:
        """A gene that drops others: dropped, or kept with any choice of theirs."""
        inside = [member for member, each in enumerate(owner) if each == number]
        own = front(number)
        lost = float(sum(len(genes[member].sites) for member in inside))
        parts = [front(member) for member in inside]
        kept = _folded([_part(own, 1), *parts], needed_R, None)
        # Silent genes cost nothing, or what their cheapest levels do: they decide nothing either way.
        cost, saved_R = own.cost_N[0], own.saved_NR[0]
        for member, part in zip(inside, parts, strict=True):
            cost = cost + (0 if space.freed else part.cost_N[0])
            own_R = np.array([genes[member].costs[-1] if genes[member].budget == b else 0 for b in budgets[1:]])
            saved_R = saved_R + (own_R if space.freed else part.saved_NR[0])
        both = _Front(
            np.append(kept.cost_N, cost),
            np.vstack([kept.saved_NR, saved_R]),
            np.append(kept.error_N, lost),
            lambda n: kept.levels(n) if n < len(kept.cost_N) else dict.fromkeys((number, *inside), 0),
        )
        return both

    fronts = [switch(number) if genes[number].members else front(number) for number in here if owner[number] < 0]
    best = _folded(fronts, needed_R, int(limits[0]))
    legal_N = (best.cost_N <= limits[0]) & (best.saved_NR >= needed_R).all(axis=1)
    return best.levels(int(np.argmin(np.where(legal_N, best.error_N, np.inf))))


def _errors(gene: Gene, errors: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Of each level the sum over the gene's layers."""
    found = []
    for level in gene.levels:
        total = 0.0
        for site in gene.sites:
            error = 0.0 if level == BASE else errors.get(site, {}).get(level, math.nan)
            if not math.isfinite(error):
                raise UserError(
                    f"dp needs layer errors, and the store has none of {site} at level {level}: build that layer again"
                )
            total += error
        found.append(total)
    return found


def _part(front: _Front, state: int) -> _Front:
    """One state alone."""
    one = slice(state, state + 1)
    return _Front(front.cost_N[one], front.saved_NR[one], front.error_N[one], lambda n: front.levels(n + state))


def _unbeaten(
    cost_N: NDArray[np.int64], saved_NR: NDArray[np.int64], error_N: NDArray[np.float64], limit: int | None = None
) -> NDArray[np.int64]:
    """Positions of the states that no other one beats, and that cost no more than a limit."""
    # By what is saved, then cost, then error; of equals the first stays first.
    order_N = np.lexsort((error_N, cost_N, *saved_NR.T))
    if limit is not None:
        order_N = order_N[cost_N[order_N] <= limit]
    starts = np.flatnonzero((np.diff(saved_NR[order_N], axis=0) != 0).any(axis=1)) + 1
    kept = []
    for part_N in np.split(order_N, starts):
        falling_N = np.minimum.accumulate(error_N[part_N])
        kept.append(part_N[np.diff(falling_N, prepend=np.inf) < 0])
    return np.concatenate(kept)


def _folded(fronts: Sequence[_Front], needed_R: NDArray[np.int64], limit: int | None) -> _Front:
    """All choices of several fronts together.

    Args:
        fronts: one or more.
        needed_R: what must be saved in the further budgets.
        limit: the most that all may cost; None for any.
    """
    # What those that follow cost at the least.
    rest = np.cumsum([0, *(int(front.cost_N.min()) for front in reversed(fronts[1:]))])[::-1]
    chosen: list[NDArray[np.int32]] = []
    cost_N, saved_NR, error_N = fronts[0].cost_N, np.minimum(fronts[0].saved_NR, needed_R), fronts[0].error_N
    for front, following in zip(fronts[1:], rest[1:].tolist(), strict=True):
        cost_N = (cost_N[:, None] + front.cost_N).ravel()
        # What is saved beyond need counts for nothing.
        saved_NR = np.minimum((saved_NR[:, None] + front.saved_NR).reshape(len(cost_N), -1), needed_R)
        error_N = (error_N[:, None] + front.error_N).ravel()
        kept_N = _unbeaten(cost_N, saved_NR, error_N, None if limit is None else limit - following)
        cost_N, saved_NR, error_N = cost_N[kept_N], saved_NR[kept_N], error_N[kept_N]
        chosen.append(kept_N.astype(np.int32))

    def levels(state: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for front, chosen_N in zip(reversed(fronts[1:]), reversed(chosen), strict=True):
            state, option = divmod(int(chosen_N[state]), len(front.cost_N))
            found |= front.levels(option)
        return found | fronts[0].levels(state)

    return _Front(cost_N, saved_NR, error_N, levels)
