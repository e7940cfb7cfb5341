"""What can be settled before a weight is read: `check_group_size`, `check_text`, `store_header`, `layer_entry`.

Works on names and shapes alone, without torch, so that a user's mistake is told before a model is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from evoray.compress.kinds import find_kind
from evoray.compress.recipe import PER_ROW, HessianInputs, Recipe
from evoray.errors import UserError
from evoray.formats.costs import SCALE_BYTES
from evoray.store import LayerEntry, StoreHeader
from evoray.tokens import TokenText

if TYPE_CHECKING:
    from evoray.model import Facts

# Below this, scales take so much room that nobody wants such groups; they are not proposed.
_LEAST_PROPOSED = 8


def check_group_size(widths: Mapping[str, int], group_size: int) -> None:
    """Refuses a group size that does not divide the input width of every layer.

    Args:
        widths: layer -> input columns.
        group_size: input columns per scale; -1 or 0 for one group per row, which always fits.

    Raises:
        UserError: naming the kinds of layers it does not fit, with widths, and the sizes that fit all.
    """
    if group_size in (PER_ROW, 0):
        return
    if group_size < 0:
        raise UserError(f"group size {group_size}: choose a positive one, or -1 for one group per row")
    unfit: dict[tuple[str, int], set[str]] = {}
    for name, width in widths.items():
        if width % group_size:
            block, kind = _block_and_kind(name)
            unfit.setdefault((kind, width), set()).add(block)
    if not unfit:
        return
    kinds = ", ".join(
        f"{kind} (width {width}) in {len(blocks)} block{'s' * (len(blocks) > 1)}"
        for (kind, width), blocks in unfit.items()
    )
    common = math.gcd(*widths.values())
    sizes = [size for size in range(_LEAST_PROPOSED, common + 1) if common % size == 0]
    remedy = f"{', '.join(map(str, sizes))}, or -1 (one group per row)" if sizes else "only -1 (one group per row)"
    raise UserError(f"group size {group_size} does not divide the input width of {kinds}; sizes that fit all: {remedy}")


def _block_and_kind(name: str) -> tuple[str, str]:
    """ "model.layers.3.mlp.up_proj" -> ("model.layers.3", "mlp.up_proj")."""
    found = re.search(r"\.\d+\.", name)
    return (name[: found.end() - 1], name[found.end() :]) if found else ("", name)


def check_text(recipe: Recipe, text: TokenText | None) -> None:
    """Refuses to make Hessians without text.

    Raises:
        UserError: the method needs text, and there is none.
    """
    if recipe.needs_text and text is None:
        raise UserError(
            f"method {recipe.method} needs text for its Hessians; name some by --data, or use {recipe.textless[0]}"
        )


def store_header(
    facts: Facts,
    recipe: Recipe,
    text: TokenText | None,
    *,
    compute_dtype: str,
    device: str,
    attention: str | None = None,
) -> StoreHeader:
    """How the store of a model and a recipe is made. Reads no weights.

    Args:
        facts: of the checkpoint.
        recipe: how variants are made.
        text: the Hessian text; None where the method needs none.
        compute_dtype: dtype that the model is loaded in for building ("float32"), not "auto".
        device: kind of the device ("cpu", "cuda"): another kind gives other bits.
        attention: implementation that was asked for, which Hessians depend on; None for the model's usual one.

    Raises:
        UserError: the recipe does not fit the layers, the text is missing, or a dtype can't be the checkpoint's.
    """
    recipe.check({layer.name: (layer.out_features, layer.in_features) for layer in facts.layers})
    check_text(recipe, text)
    if recipe.hessian_inputs is HessianInputs.QUANTIZED and not recipe.needs_text:
        raise UserError(f"method {recipe.method} makes no Hessians; leave out --hessian-inputs, or use another method")
    text = text if recipe.needs_text else None
    settings = {**recipe.settings(), "compute_dtype": compute_dtype, "device": device}
    if text is not None:
        settings["sequence_length"] = text.sequence_length
        if attention is not None:
            settings["attn_implementation"] = attention
    return StoreHeader(
        model=facts.model,
        revision=facts.revision,
        weights_digest=facts.weights_digest,
        dtype=facts.dtype,
        kind=recipe.kind,
        method=str(recipe.method),
        levels=recipe.labels,
        group_size=recipe.group_size,
        symmetric=recipe.symmetric,
        scale_dtype=recipe.stored_dtype(facts.dtype),
        cost_format=str(recipe.cost_format),
        text_digest=text.digest if text is not None else None,
        documents=text.document_digests if text is not None else (),
        dense_bytes=facts.dense_bytes,
        settings=settings,
    )


def layer_entry(name: str, block: int, out_features: int, in_features: int, header: StoreHeader) -> LayerEntry:
    """A layer with its exact costs at every level that it has in a store.

    Args:
        name: module path.
        block: index of its block.
        out_features: rows of the weight.
        in_features: columns of the weight.
        header: of the store.

    Raises:
        UserError: the store is of a kind that this evoray does not know.
    """
    kind = find_kind(header.kind)
    return LayerEntry(
        name=name,
        block=block,
        out_features=out_features,
        in_features=in_features,
        dense_bytes=out_features * in_features * _bytes_per_weight(header.dtype),
        record_bytes=kind.record_bytes(header),
        costs=kind.level_costs(out_features, in_features, header),
    )


def _bytes_per_weight(dtype: str) -> int:
    return {**SCALE_BYTES, "float64": 8}[dtype]
