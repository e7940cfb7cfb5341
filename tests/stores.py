"""A real store of round-to-nearest variants of a tiny model, for tests of everything that reads one.

`tiny_store` writes it through `StoreWriter`, with a quantizer of its own: rounding to the nearest step, the largest
weight of a group deciding the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evoray.formats.costs import cost, record_bytes
from evoray.formats.packed import QuantizedWeight, to_variant
from evoray.model import ModelAdapter
from evoray.store import LayerEntry, StoreHeader, StoreWriter


def round_to_nearest(weight_OI: Tensor, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
    """Each weight to its nearest step; scales in float32."""
    rows, columns = weight_OI.shape
    top = (1 << bits) - 1
    grouped = weight_OI.float().reshape(rows, columns // group_size, group_size)
    if symmetric:
        zero = torch.full(grouped.shape[:2], float(1 << (bits - 1)))
        scale = grouped.abs().amax(2) / ((1 << (bits - 1)) - 0.5)
    else:
        low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
        scale = (high - low) / top
        zero = torch.round(-low / scale.clamp(min=1e-12)).clamp(0, top)
    scale = scale.clamp(min=1e-12)
    codes = (torch.round(grouped / scale[..., None]) + zero[..., None]).clamp(0, top)
    return QuantizedWeight(
        codes_OI=codes.to(torch.uint8).reshape(rows, columns),
        scale_OG=scale,
        zero_OG=None if symmetric else zero.to(torch.uint8),
        bits=bits,
        group_size=group_size,
    )


def tiny_store(
    folder: str | Path,
    adapter_or_model: ModelAdapter | PreTrainedModel,
    levels: Sequence[str] = ("2", "3", "4"),
    *,
    group_size: int = 32,
    symmetric: bool = True,
    model: str = "tiny",
    weights_digest: str = "tiny",
    order: Sequence[str] | None = None,
) -> str:
    """Writes and finishes a store.

    Args:
        folder: where to; it may not hold another store.
        adapter_or_model: the base model. One given as a model can be given to a `ModelAdapter` afterwards.
        levels: bits, as labels.
        group_size: input columns per scale; layers that it does not divide take the greatest common divisor.
        symmetric: without zero points.
        model: name of the base model, as the manifest says it.
        weights_digest: of the base weights, as the manifest says it.
        order: of the layers in the manifest; by default by block.

    Returns:
        The folder.
    """
    given = isinstance(adapter_or_model, ModelAdapter)
    adapter = adapter_or_model if given else ModelAdapter(adapter_or_model, allow_partial=True)
    parameters = {id(p): p.numel() * p.element_size() for p in adapter.model.parameters()}
    header = StoreHeader(
        model=model,
        weights_digest=weights_digest,
        dtype=str(adapter.dtype).removeprefix("torch."),
        kind="quantization",
        method="rtn",
        levels=tuple(levels),
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype="float32",
        cost_format="compressed-tensors",
        dense_bytes=sum(parameters.values()) - sum(ref.base.nbytes for ref in adapter.layers.values()),
    )
    writer = StoreWriter(folder, header)
    for name, ref in adapter.layers.items():
        group = math.gcd(group_size, ref.in_features)
        weight_OI = adapter.weight_OI(name)
        shape = (ref.out_features, ref.in_features)
        costs, variants = {}, []
        for level in levels:
            bits = int(level)
            costs[level] = cost(*shape, bits=bits, group_size=group, symmetric=symmetric, scale_dtype="float32")
            quantized = round_to_nearest(weight_OI, bits, group, symmetric)
            error = float((quantized.dequantize(torch.float32) - weight_OI.float()).square().sum())
            variants.append(to_variant(name, level, quantized, error))
        entry = LayerEntry(
            name=name,
            block=ref.block,
            out_features=ref.out_features,
            in_features=ref.in_features,
            dense_bytes=ref.base.nbytes,
            record_bytes=record_bytes(header.cost_format),
            costs=costs,
        )
        writer.write(entry, variants)
    writer.finish(order)
    if not given:
        adapter.close()
    return str(folder)
