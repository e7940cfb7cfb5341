"""Levels that mix bitwidths and sparsities, under one budget of bytes or bits.

Holds: `space`, `DEFAULTS`: what a kind of space says of itself (see `evoray.space.kinds`).
"""

from evoray.space.defaults import KindDefaults
from evoray.space.levels import level_space
from evoray.space.priced import PricedManifest
from evoray.space.space import Space
from evoray.space.ties import Tie
from evoray.space.wanted import Wanted

DEFAULTS = KindDefaults(tie=Tie.FUSED)


def space(manifest: PricedManifest, wanted: Wanted) -> Space:
    """See `evoray.space.kinds.make_space`. Levels of a gene are ordered by what they cost, whatever they are."""
    budget = wanted.budget
    met = budget.whole_level(manifest.levels) if budget is not None else None
    return level_space(manifest, wanted, level=met, center=met)
