"""Which layers of a configuration can be packed for engines, and how: the rules of `--format compressed-tensors`.

The rules are those of vLLM's `pack-quantized` layers: codes of 2 to 8 bits, zero points at 4 and 8 bits only, and one
scheme for all layers that it loads as one matrix. Decided from the facts of the model and the store's descriptions of
its variants, before a weight is loaded.

Holds: `Scheme`, `Rule`, `Refusal`, `Plan`, `plan`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from evoray.configuration import BASE
from evoray.errors import UserError
from evoray.export.source import ExportSource
from evoray.formats.dense import DENSE
from evoray.formats.packed import PACKED
from evoray.space.costs import dropped_layers, more
from evoray.space.ties import tie
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


class Rule(StrEnum):
    """What a layer must keep to so that it can be packed."""

    codes = "codes"
    mask = "mask"
    linear = "linear"
    zero_points = "zero-points"
    group_size = "group-size"
    scale_dtype = "scale-dtype"
    fused = "fused"


@dataclass(frozen=True)
class Refusal:
    """Why a layer can't be packed.

    Attributes:
        rule: that it breaks.
        reason: what is so, and what should be.
        remedy: what would have avoided it.
    """

    rule: Rule
    reason: str
    remedy: str


@dataclass(frozen=True)
class Plan:
    """What becomes of the layers. Those that are in neither keep their base weight, or are dropped.

    Attributes:
        packed: layer -> scheme.
        dense: layer -> why it keeps a dequantized weight.
        variants: layer -> variant, of both.
    """

    packed: Mapping[str, Scheme]
    dense: Mapping[str, Refusal]
    variants: Mapping[str, Variant]

    @property
    def groups(self) -> dict[Scheme, list[str]]:
        """Layers of each scheme, fewest bits first, in the order of the model."""
        return {scheme: [name for name, own in self.packed.items() if own == scheme] for scheme in self._schemes}

    @property
    def _schemes(self) -> list[Scheme]:
        return sorted(set(self.packed.values()))


def plan(source: ExportSource) -> Plan:
    """Decides for each layer.

    Args:
        source: what is exported. Layers that can't be packed stay dense with `options.allow_dense`.

    Raises:
        UserError: a layer can't be packed and may not stay dense, or no layer would be packed.
    """
    variants = source.needed_variants()
    gone = dropped_layers(source.configuration, source.facts.droppable)
    layers = {layer.name: layer for layer in source.facts.layers}
    # In the order of the model, so that the result does not depend on the order of a file's lines.
    levels = {name: source.layers.get(name, BASE) for name in layers if name not in gone}
    levels = {name: level for name, level in levels.items() if level != BASE}
    if variants is None or not levels:
        raise UserError("no layer of the configuration has a level, so there is nothing to pack; use --format hf")
    found = {name: variants.read(name, level) for name, level in levels.items()}
    packed: dict[str, Scheme] = {}
    refused: dict[str, Refusal] = {}
    for name, variant in found.items():
        if refusal := _refusal(variant, layers[name].transposed, source.facts.dtype):
            refused[name] = refusal
        else:
            packed[name] = _scheme(variant, variants.manifest.group_size)
    # A refused layer counts as what it would be, dense: what engines fuse with it must be dense, too.
    for group in tie([name for name in layers if name not in gone]):
        if len({packed.get(name) for name in group}) > 1:
            said = ", ".join(f"{name.rpartition('.')[2]} at {levels.get(name, BASE)}" for name in group)
            apart = Refusal(
                Rule.fused,
                f"is one of {said}, which engines load as one matrix and which must be packed alike",
                "use evoray search --tie fused",
            )
            refused |= {name: apart for name in group if packed.pop(name, None)}
    if refused and (not packed or not source.options.allow_dense):
        name, refusal = next(iter(refused.items()))
        raise UserError(
            f"--format compressed-tensors can't hold {name}{more(refused)}, rule {refusal.rule}: it {refusal.reason}; "
            + refusal.remedy
            + (", or --allow-dense here" if packed else " (--allow-dense is no help: no other layer can be packed)")
        )
    return Plan(packed, refused, found)


def _refusal(variant: Variant, transposed: bool, dtype: str) -> Refusal | None:
    """Why a variant can't be packed, whatever the others are; None where it can.

    Args:
        variant: of a layer.
        transposed: its module is no `nn.Linear`.
        dtype: of the checkpoint.
    """
    meta = variant.meta
    if meta.get("format") == DENSE:
        return Refusal(Rule.codes, "has an imported weight without codes", "use variants of evoray build --method gptq")
    if meta.get("format") != PACKED:
        reason = f"has a mask at level {variant.level}, and engines want codes of all weights"
        return Refusal(Rule.mask, reason, "use variants of evoray build --kind quantization")
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
