"""Which space a store makes: one module of this package for each kind of store, and no list of them.

Holds: `kind_defaults`, `make_space`.

A kind is a module here, named as the store's manifest names its kind, with `space(manifest, wanted) -> Space` and
`DEFAULTS`. Sublayers can be dropped beside the levels of any kind; without a store there is nothing else to choose.
"""

import importlib
import pkgutil
from types import ModuleType

from evoray.errors import UserError
from evoray.space.defaults import KindDefaults
from evoray.space.depth import depth_space
from evoray.space.priced import PricedManifest
from evoray.space.space import Space
from evoray.space.wanted import Wanted


def kind_defaults(kind: str) -> KindDefaults:
    """The defaults of a kind of store.

    Raises:
        UserError: a kind that this evoray does not know.
    """
    found: KindDefaults = _module(kind).DEFAULTS
    return found


def make_space(manifest: PricedManifest, wanted: Wanted) -> Space:
    """The space that a user asks for, over a store or over the base model alone.

    Args:
        manifest: of the store; a `BareManifest` for a search that only drops.
        wanted: budget, ties, levels, and what may be dropped.

    Raises:
        UserError: what can't be had from this store, before anything else is done.
    """
    if not manifest.kind:
        return depth_space(manifest, wanted)
    made: Space = _module(manifest.kind).space(manifest, wanted)
    return made


def _module(kind: str) -> ModuleType:
    # Only modules of this package are imported: the name comes from a store that a stranger may have made.
    room = importlib.import_module("evoray.space")
    if kind in {module.name for module in pkgutil.iter_modules(room.__path__)}:
        module = importlib.import_module(f"{room.__name__}.{kind}")
        if hasattr(module, "DEFAULTS"):
            return module
    raise UserError(f"the store holds variants of kind {kind!r}, which this evoray can't search; use a newer evoray")
