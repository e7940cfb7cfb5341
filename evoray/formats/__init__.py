"""What a level is in the store, and how its weight comes back. One file per format, and no list of them.

A format is a module of this package with a function `dense_weight(variant, dtype, device) -> Tensor [O, I]`; the
module's name is what `meta["format"]` of its variants says. `dense_weight` here finds it. Nothing is imported before
it is needed, so costs can be counted without torch.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, cast

from evoray.errors import UserError
from evoray.store.variants import Variant

if TYPE_CHECKING:
    import torch

DenseWeight: TypeAlias = "Callable[[Variant, torch.dtype, torch.device | str], torch.Tensor]"


@functools.cache
def _decoder(name: str) -> DenseWeight | None:
    # Only names of files in this package are imported: the name comes from a store that a stranger may have made.
    if name not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return None
    return cast("DenseWeight | None", getattr(importlib.import_module(f"{__name__}.{name}"), "dense_weight", None))


def dense_weight(variant: Variant, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """The weight of a variant of any format.

    Args:
        variant: as a store gives it.
        dtype: of the result.
        device: where the result shall lie; decoding happens there.

    Returns:
        [O, I] in `dtype` on `device`.

    Raises:
        UserError: when this evoray does not know the variant's format, or the variant does not fit it.
    """
    name = str(variant.meta.get("format"))
    decoder = _decoder(name)
    if decoder is None:
        raise UserError(f"layer {variant.layer}, level {variant.level}: unknown format '{name}'; use a newer evoray")
    try:
        return decoder(variant, dtype, device)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"layer {variant.layer}, level {variant.level}: does not decode ({error}); build the store again"
        ) from error
