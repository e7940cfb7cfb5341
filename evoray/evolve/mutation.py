"""Children of a parent: a few genes change levels, and the total stays within the limit.

Holds: `Mutation`, `LevelSwitch`.

Legend: G genes, S groups of equal steps. `down_G` is what each gene frees by one level down, `up_G` what it pays
for one level up, 0 where it can't. A switch of levels stays inside one budget of the space.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evoray.errors import UserError
from evoray.space import Genotype, Space


class Mutation(Protocol):
    """Makes a child. Strategies ask nothing else, so any function of this form will do."""

    def __call__(self, space: Space, parent: Genotype, rng: np.random.Generator) -> Genotype | None:
        """A legal genotype, perhaps the parent again, or None when none was found in this draw."""
        ...


@dataclass(frozen=True)
class LevelSwitch:
    """Level switches of EvoPress (arXiv 2410.14649, section 3): min(U{1..maximum}, U{1..maximum}) of them a child.

    With `equal_steps` a switch takes one gene a level down and another a level up, both steps of exactly the same
    cost, so the total never changes. The group (all steps of that cost) is drawn with a probability proportional to
    the number of genes in it, among groups that have such a pair; then the pair is uniform. With levels 2, 3, 4, ...
    and layers of one size to a group this is the paper's; so it is for sublayers, of which one is dropped for another.

    Without it, genes of all sizes trade with each other; where all steps cost the same, as when one sublayer is dropped
    for another, that is the rule above, and the total never changes either. Where a space has more than one budget,
    one is drawn first, with a probability proportional to its genes that can go up:

    1. A gene is drawn uniformly among those that could go up if all others went to their lowest, and goes up.
       Up comes first because the budget binds there: were pairs drawn and thrown away when over the limit, large
       genes would almost only go down, and a total just below the limit would freeze them.
    2. If that fits, half of the time it is the whole switch: an offspring may just fill the budget.
       (Half, because a parent with slack must still be able to trade.)
    3. Otherwise other random genes go down until the total fits; after `repairs` steps only genes that free
       enough at once are drawn, where there are any, so that raising a large gene doesn't scatter over many small.
    4. What that frees beyond need, as when a large gene went down for a small one, is given to random genes that
       can go up within it, at most `refills` steps: else children of unequal trades would lose by their waste, not
       by their choice, and large genes would hardly go down for small ones.

    On synthetic losses (additive with interactions, shapes of Llama-3-8B, tied or not, levels 2 to 6 or 2, 3, 4, 6, 8)
    one refill did as well as three or eight and better than none, and changes fewer layers in a child; one, three
    and eight repairs could not be told apart.

    Attributes:
        equal_steps: see above.
        maximum: the most switches in a child.
        repairs: steps down drawn freely after the first up.
        refills: the most steps up that use what is left.

    Raises:
        UserError: a count that makes no sense.
    """

    equal_steps: bool = False
    maximum: int = 3
    repairs: int = 3
    refills: int = 1

    def __post_init__(self) -> None:
        if self.maximum < 1:
            raise UserError(f"at most {self.maximum} switches a child can't change anything; give 1 or more")
        if self.repairs < 1 or self.refills < 0:
            raise UserError(f"repairs {self.repairs} must be 1 or more and refills {self.refills} 0 or more")

    def switches(self, rng: np.random.Generator) -> int:
        """How many switches the next child gets: small numbers more often, as in the paper."""
        return int(rng.integers(1, self.maximum + 1, size=2).min())

    def __call__(self, space: Space, parent: Genotype, rng: np.random.Generator) -> Genotype | None:
        """See `Mutation`. The switches of a child may undo each other, so it may equal its parent.

        Raises:
            ValueError: a parent that is not legal.
        """
        if not space.is_legal(parent):
            raise ValueError(f"the parent costs {space.cost(parent)}, above the limit {space.limit}, or is misshapen")
        levels_G = np.array(parent, dtype=np.int64)
        switch = self._equal_switch if self.equal_steps else self._free_switch
        done = 0
        for _ in range(self.switches(rng)):
            if not switch(space, levels_G, rng):
                break
            done += 1
        child = tuple(int(level) for level in levels_G)
        # The switches keep the limit by construction; a space may know more rules than that.
        return child if done and space.is_legal(child) else None

    def _equal_switch(self, space: Space, levels_G: NDArray[np.int64], rng: np.random.Generator) -> bool:
        down_G, up_G = space.steps(levels_G)
        budgets_S, costs_S, genes_S = space.step_groups
        inside_SG = space.budget_G == budgets_S[:, None]
        if space.freed and (space.owner_G >= 0).any():
            # What a switch frees hangs on its members: dropping it and raising one of them would not be equal.
            down_G = np.where(space.switches_G, 0, down_G)
            up_G = np.where(space.switches_G, 0, up_G)
        down_SG, up_SG = inside_SG & (down_G == costs_S[:, None]), inside_SG & (up_G == costs_S[:, None])
        pairs_S = down_SG.sum(axis=1) * up_SG.sum(axis=1) - (down_SG & up_SG).sum(axis=1)
        weights_S = np.where(pairs_S > 0, genes_S, 0)
        if not weights_S.any():
            return False
        group = _draw(weights_S, rng)
        ups_G = up_SG[group]
        # Weighted by the partners each has, so that all pairs of different genes are equally likely.
        lowered = _draw(down_SG[group] * (ups_G.sum() - ups_G), rng)
        partners_G = ups_G.copy()
        partners_G[lowered] = False
        raised = _draw(partners_G, rng)
        levels_G[lowered] -= 1
        levels_G[raised] += 1
        return True

    def _free_switch(self, space: Space, levels_G: NDArray[np.int64], rng: np.random.Generator) -> bool:
        _, up_G = space.steps(levels_G)
        limits_R = np.array(space.limits, dtype=np.int64)
        candidates_G = (up_G > 0) & (space.least_up(levels_G) <= limits_R[space.budget_G])
        if not candidates_G.any():
            return False
        first = _draw(candidates_G, rng)
        budget = int(space.budget_G[first])
        slack = int(limits_R[budget]) - space.totals(levels_G.tolist())[budget] - int(up_G[first])
        levels_G[first] += 1
        if slack >= 0 and rng.integers(2):
            return True
        slack, lowered_G = self._lower(space, levels_G, first, slack, rng)
        self._refill(space, levels_G, lowered_G, budget, slack, rng)
        return True

    def _lower(
        self, space: Space, levels_G: NDArray[np.int64], first: int, slack: int, rng: np.random.Generator
    ) -> tuple[int, NDArray[np.bool_]]:
        """Takes genes other than `first` down, at least one step where one can, until there is no debt."""
        lowered_G = np.zeros(len(levels_G), dtype=np.bool_)
        others_G = space.budget_G == space.budget_G[first]
        others_G[first] = False
        if space.owner_G[first] >= 0:  # what `first` is part of must stay
            others_G[space.owner_G[first]] = False
        steps = 0
        while slack < 0 or steps == 0:
            down_G = np.where(others_G, space.steps(levels_G)[0], 0)
            enough_G = down_G >= max(1, -slack)
            choice_G = enough_G if steps >= self.repairs and enough_G.any() else down_G > 0
            if not choice_G.any():  # only without debt: `first` was drawn so that lowering the others covers it
                break
            lowered = _draw(choice_G, rng)
            slack += int(down_G[lowered])
            levels_G[lowered] -= 1
            lowered_G[lowered] = True
            steps += 1
        return slack, lowered_G

    def _refill(
        self,
        space: Space,
        levels_G: NDArray[np.int64],
        lowered_G: NDArray[np.bool_],
        budget: int,
        slack: int,
        rng: np.random.Generator,
    ) -> None:
        """Takes genes that were not lowered up, while the slack pays for it.

        What a dropped sublayer frees would be wasted by a step or two, so then there is no limit to the steps.
        """
        dropped = bool((lowered_G & (levels_G == 0) & space.switches_G).any())
        others_G = ~lowered_G & (space.budget_G == budget)
        steps = 0
        while dropped or steps < self.refills:
            up_G = space.steps(levels_G)[1]
            choice_G = (up_G > 0) & (up_G <= slack) & others_G
            if not choice_G.any():
                return
            raised = _draw(choice_G, rng)
            slack -= int(up_G[raised])
            levels_G[raised] += 1
            steps += 1


def _draw(weights: NDArray[np.bool_] | NDArray[np.int64], rng: np.random.Generator) -> int:
    """A position, with a probability exactly proportional to its whole weight."""
    sums = np.cumsum(weights, dtype=np.int64)
    return int(np.searchsorted(sums, rng.integers(int(sums[-1])), side="right"))
