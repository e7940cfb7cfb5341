"""Which layers of a configuration can be packed for engines, and how: the rules of `--format compressed-tensors`.

The rules are those of vLLM's `pack-quantized` layers: codes of 2 to 8 bits, zero points at 4 and 8 bits only, and one
scheme for all layers that it loads as one matrix. Decided from the facts of the model and the store's descriptions of
its variants, before a weight is loaded.

Holds: `Scheme`, `Plan`, `plan`.
"""

from dataclasses import dataclass

from evoray.export.packable import Packable, Refusal, Rule, packable_layers, without_codes
from evoray.export.source import ExportSource
from evoray.store import Variant

WHOLE_ROW = -1
"""Group size of one scale per row."""

ZERO_POINT_BITS = (4, 8)
"""Bits of which vLLM takes zero points."""


@dataclass(frozen=True, order=True)
class Scheme:
    """How a layer is packed; layers with equal schemes share a config group.

    Attributes:
        bits: per code, 2 to 8.
        group_size: input columns per scale; `WHOLE_ROW` for one scale per row.
        symmetric: without zero points.
    """

    bits: int
    group_size: int
    symmetric: bool


@dataclass(frozen=True)
class Plan(Packable[Scheme]):
    """What becomes of the layers."""

    @property
    def groups(self) -> dict[Scheme, list[str]]:
        """Layers of each scheme, fewest bits first, in the order of the model."""
        schemes = sorted(set(self.packed.values()))
        return {scheme: [name for name, own in self.packed.items() if own == scheme] for scheme in schemes}


def plan(source: ExportSource) -> Plan:
    """Decides for each layer.

    Args:
        source: what is exported. Layers that can't be packed stay dense with `options.allow_dense`.

    Raises:
        UserError: a layer can't be packed and may not stay dense, or no layer would be packed.
    """
    transposed = {layer.name for layer in source.facts.layers if layer.transposed}

    def judge(variant: Variant) -> Scheme | Refusal:
        assert source.variants is not None
        refusal = _refusal(variant, variant.layer in transposed, source.facts.dtype)
        return refusal or _scheme(variant, source.variants.manifest.group_size)

    found = packable_layers(source, "compressed-tensors", judge)
    return Plan(found.packed, found.dense, found.variants)


def _refusal(variant: Variant, transposed: bool, dtype: str) -> Refusal | None:
    """Why a variant can't be packed, whatever the others are; None where it can.

    Args:
        variant: of a layer.
        transposed: its module is no `nn.Linear`.
        dtype: of the checkpoint.
    """
    meta = variant.meta
    if refusal := without_codes(variant):
        return refusal
    if transposed:
        return Refusal(Rule.linear, "is a Conv1D, and engines look for codes in nn.Linear only", "use --format hf")
    bits, group_size, (_, columns) = int(meta["bits"]), int(meta["group_size"]), meta["shape"]
    if not meta["symmetric"] and bits not in ZERO_POINT_BITS:
        reason = f"has zero points at {bits} bits, and vLLM takes them at 4 and 8 only"
        return Refusal(Rule.zero_points, reason, "use evoray build --symmetric")
    if group_size < 1 or columns % group_size:
        reason = f"has groups of {group_size}, which don't divide its {columns} columns"
        return Refusal(Rule.group_size, reason, "use evoray build --group-size with a number that divides them")
    if meta["scale_dtype"] != dtype:
        reason = f"has {meta['scale_dtype']} scales, and engines keep scales in the checkpoint's dtype, {dtype}"
        return Refusal(Rule.scale_dtype, reason, "use evoray build --scale-dtype auto")
    return None


def _scheme(variant: Variant, group_size: int) -> Scheme:
    """The scheme of a variant that can be packed; `group_size` is that of the store's header."""
    meta = variant.meta
    own = WHOLE_ROW if group_size == WHOLE_ROW else int(meta["group_size"])
    return Scheme(bits=int(meta["bits"]), group_size=own, symmetric=bool(meta["symmetric"]))
