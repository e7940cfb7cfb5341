"""Which bitwidth for which layer, under one budget.

Holds: `quantization_space`, and what a kind of space says of itself (see `evoray.space.kinds`): `space`, `DEFAULTS`.
"""

from collections.abc import Sequence

from evoray.errors import UserError
from evoray.space.budget import Budget, Measure
from evoray.space.defaults import KindDefaults
from evoray.space.levels import level_space
from evoray.space.priced import PricedManifest
from evoray.space.space import Space
from evoray.space.ties import Tie
from evoray.space.wanted import Wanted

DEFAULTS = KindDefaults(tie=Tie.FUSED)


def space(manifest: PricedManifest, wanted: Wanted) -> Space:
    """See `evoray.space.kinds.make_space`. A whole target in bits is a level; deviations count from there."""
    budget = wanted.budget
    if budget is not None and budget.measure is Measure.SPARSITY and not wanted.droppable:
        raise UserError(
            f"target {budget} can't be met by a store of bitwidths, which make nothing zero; give --target-bits, "
            "or a store of evoray build --kind sparsity"
        )
    met = budget.whole_level(manifest.levels) if budget is not None else None
    return level_space(manifest, wanted, level=met, center=met)


def quantization_space(
    manifest: PricedManifest, budget: Budget, tie: Tie = Tie.FUSED, levels: Sequence[str] | None = None
) -> Space:
    """The space of a quantization search, for drivers of your own.

    Args:
        manifest: names, shapes and exact costs; tied layers may take the levels that all of them have.
        budget: what must be kept.
        tie: which layers share a level.
        levels: those to choose from; by default all of the store's.

    Raises:
        UserError: levels that the store lacks, or a target out of their reach; the message names both ends.
    """
    return space(manifest, Wanted(budget=budget, tie=tie, levels=None if levels is None else tuple(levels)))
