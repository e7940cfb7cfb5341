"""From a model and a text to variants in a store.

What is in the room:
- `recipe`: `Recipe`: everything that decides how variants are made; `Method`, `Scales`, `HessianInputs`.
- `plan`: what can be settled from names and shapes: `check_group_size`, `store_header`, `layer_entry`.
- `grid`: scales and zero points of groups, and the nearest codes.
- `rtn`: round to nearest.
- `gptq`: GPTQ, all levels and all layers with the same input in one column loop.
- `hessian`: Hessians of one block's layers; which layers share an input is found by looking.
- `builder`: `build`: all layers of a model, going on where an interrupted build stopped.

Recipes and plans come without torch; it is loaded with `build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evoray.compress.plan import check_group_size, layer_entry, store_header
from evoray.compress.recipe import HessianInputs, Method, Recipe, Scales, parse_levels

if TYPE_CHECKING:
    from evoray.compress.builder import Progress, build

__all__ = [
    "HessianInputs",
    "Method",
    "Progress",
    "Recipe",
    "Scales",
    "build",
    "check_group_size",
    "layer_entry",
    "parse_levels",
    "store_header",
]


def __getattr__(name: str) -> Any:
    if name in ("Progress", "build"):
        from evoray.compress import builder

        return getattr(builder, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
