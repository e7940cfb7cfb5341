"""Finds what a kind of store is made by: `Kind`, `find_kind`.

A kind is a module of this package, named as the kind is. There is no list of them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from evoray.errors import UserError

if TYPE_CHECKING:
    from evoray.compress.recipe import Recipe
    from evoray.model import Facts
    from evoray.settings import BuildSettings
    from evoray.store import LevelCost, StoreHeader


class Kind(Protocol):
    """What the module of a kind has."""

    def recipe(self, settings: BuildSettings, facts: Facts) -> Recipe:
        """The recipe that a user asks for.

        Raises:
            UserError: values that can't be.
        """

    def level_costs(self, out_features: int, in_features: int, header: StoreHeader) -> dict[str, LevelCost]:
        """Exact cost of each level that a layer of this shape has in a store, in the order of the header."""

    def record_bytes(self, header: StoreHeader) -> int:
        """Bytes that every compressed layer takes at any level, beside what `level_costs` counts."""


@functools.cache
def find_kind(kind: str) -> Kind:
    """The module of a kind.

    Raises:
        UserError: this evoray has none of that name.
    """
    # Only names of files in this package are imported: the name may come from a store that a stranger has made.
    if kind in {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}:
        module = importlib.import_module(f"{__package__}.{kind}")
        if all(hasattr(module, name) for name in ("recipe", "level_costs", "record_bytes")):
            return cast("Kind", module)
    raise UserError(f"this evoray can't build stores of kind '{kind}'; use a newer evoray")
