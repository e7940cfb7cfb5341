"""From the highest levels down, step by step, each measured where it would be taken.

Holds: `greedy`, `sequential`.

Legend: N genotypes, G genes.
"""

import numpy as np
from numpy.typing import NDArray

from evoray.baselines.problem import Problem
from evoray.errors import UserError
from evoray.space import Genotype, Space

_SHARE = 8
"""Greedy takes one in so many of the possible steps a round: one at a time would measure all genes for every step, and
for 224 layers of five levels and a middle target that is 100000 genotypes; so it is about 4000."""


def greedy(problem: Problem) -> Genotype:
    """Takes levels down where that raises the loss least for the cost it frees.

    From every gene at its highest level; in each round every gene's step down is measured in the present state, and
    the best eighth of them, at least one, is taken, or as many as it needs to be within the limits. What the last step
    frees beyond need goes to steps up, by measured benefit for their cost, as long as there is one.

    Raises:
        UserError: nothing but drops to choose from: that is `sequential`.
    """
    if problem.units_G.all():
        raise UserError("greedy takes levels down; in a search that only drops take sequential, which drops one by one")
    return _stepped(problem, _SHARE)


def sequential(problem: Problem) -> Genotype:
    """Drops one unit after another, each time the one without which the loss is least (SLEB, arXiv 2402.09025).

    Every unit still there, of the budgets that are above their limits, is measured beside those already dropped, by
    the search's own fitness. Where units differ in size it is the increase for the freed cost that counts, and what
    the last drop frees beyond need may bring others back.

    Raises:
        UserError: the space has levels, too.
    """
    problem.check_only_drops("sequential")
    return _stepped(problem, None)


def _stepped(problem: Problem, share: int | None) -> Genotype:
    """Steps down until all limits are kept, then up with what is left.

    Args:
        problem: of any space.
        share: one step in so many is taken in a round; None for one step.
    """
    space = problem.space
    levels_G = np.array(space.highest(), dtype=np.int64)
    loss: float | None = None
    while (over_R := _slack(space, levels_G) < 0).any():
        freed_G = np.where(over_R[space.budget_G], space.steps(levels_G)[0], 0)
        genes_N = np.flatnonzero(freed_G > 0)
        losses_N, loss = _measured(problem, levels_G, genes_N, -1, loss)
        order_N = np.argsort((losses_N - loss) / freed_G[genes_N], kind="stable")
        count = 1 if share is None else max(1, len(genes_N) // share)
        taken = 0
        for gene in genes_N[order_N[:count]].tolist():
            # A step may have gone with a switch, or its budget may be within the limit by now.
            if space.steps(levels_G)[0][gene] > 0 and _slack(space, levels_G)[space.budget_G[gene]] < 0:
                _step(space, levels_G, gene, -1)
                taken += 1
        loss = float(losses_N[order_N[0]]) if taken == 1 and np.isfinite(losses_N[order_N[0]]) else None
    while True:
        up_G = space.steps(levels_G)[1]
        genes_N = np.flatnonzero((up_G > 0) & (up_G <= _slack(space, levels_G)[space.budget_G]))
        if not len(genes_N):
            return tuple(levels_G.tolist())
        losses_N, loss = _measured(problem, levels_G, genes_N, 1, loss)
        benefit_N = (loss - losses_N) / up_G[genes_N]
        taken = 0
        for number in np.argsort(-benefit_N, kind="stable").tolist():
            gene = int(genes_N[number])
            up = int(space.steps(levels_G)[1][gene])
            if benefit_N[number] > 0 and 0 < up <= _slack(space, levels_G)[space.budget_G[gene]]:
                _step(space, levels_G, gene, 1)
                taken += 1
        if not taken:
            return tuple(levels_G.tolist())
        loss = None


def _measured(
    problem: Problem, levels_G: NDArray[np.int64], genes_N: NDArray[np.int64], by: int, loss: float | None
) -> tuple[NDArray[np.float64], float]:
    """Losses with one gene a step away, and the loss of the present state, which is measured with them if unknown."""
    moved = []
    for gene in genes_N.tolist():
        step_G = levels_G.copy()
        _step(problem.space, step_G, gene, by)
        moved.append(tuple(step_G.tolist()))
    present = [] if loss is not None else [tuple(levels_G.tolist())]
    losses_N = problem.losses([*moved, *present])
    if loss is None:
        # Any finite number does where the present state has no loss: only differences are compared.
        loss = float(losses_N[-1]) if np.isfinite(losses_N[-1]) else 0.0
    return losses_N[: len(moved)], loss


def _step(space: Space, levels_G: NDArray[np.int64], gene: int, by: int) -> None:
    """Moves a gene, in place. Where what is dropped frees nothing, its layers go to their cheapest levels."""
    levels_G[gene] += by
    if space.switches_G[gene] and levels_G[gene] == 0 and not space.freed:
        levels_G[space.owner_G == gene] = 0


def _slack(space: Space, levels_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [R]: what each budget has left; below 0 above the limit."""
    return np.array(space.limits, dtype=np.int64) - np.array(space.totals(levels_G.tolist()), dtype=np.int64)
