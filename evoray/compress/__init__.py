"""From a model and a text to variants in a store.

What is in the room:
- `recipe`: `Recipe`, what every kind of variants says of itself, and `Compressor`, what makes them.
- `kinds`: finds the module of a kind by its name: `quantization`, `sparsity`, `joint`.
- `plan`: what can be settled from names and shapes: `check_group_size`, `store_header`, `layer_entry`.
- `builder`: `build`: all layers of a model, of any kind, going on where an interrupted build stopped.
- `work`, `crew`: what one worker of a build does, and who does it: this process, or many.
- `evopress`: takes a folder of variants that EvoPress made into a store.
- `hessian`: Hessians of one block's layers; which layers share an input is found by looking.
- `columns`: the loop over columns that GPTQ and SparseGPT share.
- `gptq`, `rtn`, `grid`: codes, scales and zero points.
- `sparsegpt`, `masks`, `zeros`: which weights go, at exact counts.
- `outliers`: outlier ratios of OWL.

A new kind of variants is one module here and at most one in `formats`. Plans come without torch; kinds, and with them
torch, are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evoray.compress.plan import check_group_size, layer_entry, store_header
from evoray.compress.recipe import HessianInputs, Recipe, Scales

if TYPE_CHECKING:
    from evoray.compress.builder import Progress, build
    from evoray.compress.joint import Joint
    from evoray.compress.quantization import Method, Quantization, parse_levels
    from evoray.compress.sparsity import Sparsity

__all__ = [
    "HessianInputs",
    "Joint",
    "Method",
    "Progress",
    "Quantization",
    "Recipe",
    "Scales",
    "Sparsity",
    "build",
    "check_group_size",
    "layer_entry",
    "parse_levels",
    "store_header",
]

_WITH_TORCH = {
    "Joint": "joint",
    "Method": "quantization",
    "Progress": "builder",
    "Quantization": "quantization",
    "Sparsity": "sparsity",
    "build": "builder",
    "parse_levels": "quantization",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
