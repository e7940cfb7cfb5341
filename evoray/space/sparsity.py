"""How many weights of which layer become zero, for one sparsity of the whole model.

Holds: `space`, `DEFAULTS`: what a kind of space says of itself (see `evoray.space.kinds`).
"""

from fractions import Fraction

from evoray.space.budget import Measure
from evoray.space.defaults import KindDefaults
from evoray.space.levels import level_space
from evoray.space.priced import PricedManifest
from evoray.space.space import Space
from evoray.space.ties import Tie
from evoray.space.wanted import Wanted

DEFAULTS = KindDefaults(tie=Tie.NONE)
"""As in the paper: layers are untied."""

AT_TARGET = "0"
"""The level of the target, in a store whose levels are steps away from it."""


def space(manifest: PricedManifest, wanted: Wanted) -> Space:
    """See `evoray.space.kinds.make_space`.

    The level that meets the target is the one of that sparsity, or step 0 of a store built in steps around it.
    Deviations count from there.
    """
    budget = wanted.budget
    met = budget.whole_level(manifest.levels) if budget is not None else None
    around = manifest.settings.get("target_sparsity")
    if around is not None and budget is not None:
        at_target = budget.measure is Measure.SPARSITY and Fraction(str(around)) == Fraction(str(budget.target))
        met = AT_TARGET if at_target else None
    return level_space(manifest, wanted, level=met, center=met)
