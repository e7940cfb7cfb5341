"""What a user asks of a space, and whether it can be had.

Holds: `Wanted`, `check_reachable`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from evoray.errors import UserError
from evoray.space.budget import Budget, Measure
from evoray.space.gene import Gene
from evoray.space.priced import PricedDroppable
from evoray.space.ties import Tie


@dataclass(frozen=True)
class Wanted:
    """What a user asks of a space. Each kind of store takes what concerns it, and refuses what it can't do.

    Attributes:
        budget: what must be kept; None for a search that only drops.
        tie: which layers share a level.
        levels: labels to choose from; None for all of the store's.
        max_level: the most steps from the level at the target that a gene may be away.
        max_deviation: the same, over all genes.
        droppable: sites that may be dropped, one gene each; a tuple of several is dropped together.
        drop: how many of them to drop of each kind; None for as many as the budget asks for.
    """

    budget: Budget | None = None
    tie: Tie = Tie.FUSED
    levels: tuple[str, ...] | None = None
    max_level: int | None = None
    max_deviation: int | None = None
    droppable: tuple[tuple[PricedDroppable, ...], ...] = ()
    drop: int | None = None


def check_reachable(
    genes: Sequence[Gene],
    budget: Budget,
    weights: int,
    other_bytes: int,
    *,
    fixed: int = 0,
    can_be_freed: bool = False,
) -> None:
    """Sees that a target lies between the lowest and the highest total of the genes.

    Args:
        genes: of one budget.
        budget: the target.
        weights: compressible weights.
        other_bytes: bytes of the checkpoint beside them.
        fixed: what layers cost that no gene decides, in the budget's unit.
        can_be_freed: all genes' layers may be dropped.

    Raises:
        UserError: naming both ends.
    """
    lowest = fixed + (0 if can_be_freed else sum(gene.costs[0] for gene in genes))
    highest = sum(gene.costs[-1] for gene in genes) + fixed
    allowance = budget.allowance(weights=weights, other_bytes=other_bytes)
    if lowest <= allowance <= highest:
        return
    low = budget.describe(lowest, weights=weights, other_bytes=other_bytes, up=True)
    high = budget.describe(highest, weights=weights, other_bytes=other_bytes, up=False)
    where = "below the lowest" if allowance < lowest else "above the highest"
    if budget.measure is Measure.SPARSITY:
        where, low, high = "above the highest" if allowance < lowest else "below the lowest", high, low
    raise UserError(
        f"target {budget} is {where} that these levels reach: from {low} to {high}; choose one between, or other levels"
    )
