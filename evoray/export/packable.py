"""Which layers of a configuration can be written as codes, by the rules of a format.

Holds: `Rule`, `Refusal`, `Packable`, `packable_layers`, `without_codes`, `decoded`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from evoray.configuration import BASE
from evoray.errors import UserError
from evoray.export.source import ExportSource
from evoray.formats.dense import DENSE
from evoray.formats.packed import PACKED, QuantizedWeight, decode
from evoray.space.costs import dropped_layers, more
from evoray.space.ties import tie
from evoray.store import Variant

_P = TypeVar("_P")


class Rule(StrEnum):
    """What a layer must keep to so that it can be packed."""

    bits = "bits"
    codes = "codes"
    fused = "fused"
    group_size = "group-size"
    linear = "linear"
    mask = "mask"
    scale_dtype = "scale-dtype"
    shape = "shape"
    zero_points = "zero-points"


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
class Packable(Generic[_P]):
    """What becomes of the layers. Those that are in neither keep their base weight, or are dropped.

    Attributes:
        packed: layer -> how.
        dense: layer -> why it keeps a dequantized weight.
        variants: layer -> variant, of both.
    """

    packed: Mapping[str, _P]
    dense: Mapping[str, Refusal]
    variants: Mapping[str, Variant]


def packable_layers(source: ExportSource, form: str, judge: Callable[[Variant], _P | Refusal]) -> Packable[_P]:
    """Decides for each layer.

    Args:
        source: what is exported. Layers that can't be packed stay dense with `options.allow_dense`.
        form: name of the format, for messages.
        judge: how a variant is packed, or why it can't be, whatever the others are.

    Raises:
        UserError: a layer can't be packed and may not stay dense, or no layer would be packed.
    """
    variants = source.needed_variants()
    gone = dropped_layers(source.configuration, source.facts.droppable)
    # In the order of the model, so that the result does not depend on the order of a file's lines.
    names = [layer.name for layer in source.facts.layers if layer.name not in gone]
    levels = {name: source.layers.get(name, BASE) for name in names}
    wanted = {name: level for name, level in levels.items() if level != BASE}
    if variants is None or not wanted:
        raise UserError("no layer of the configuration has a level, so there is nothing to pack; use --format hf")
    found = {name: variants.read(name, level) for name, level in wanted.items()}
    packed: dict[str, _P] = {}
    refused: dict[str, Refusal] = {}
    for name, variant in found.items():
        answer = judge(variant)
        if isinstance(answer, Refusal):
            refused[name] = answer
        else:
            packed[name] = answer
    # A refused layer counts as what it would be, dense: what engines fuse with it must be dense, too.
    for group in tie(names):
        if len({packed.get(name) for name in group}) > 1:
            said = ", ".join(f"{name.rpartition('.')[2]} at {levels[name]}" for name in group)
            apart = Refusal(
                Rule.fused,
                f"is one of {said}, which engines load as one matrix and which must be packed alike",
                "use evoray search --tie fused",
            )
            refused |= {name: apart for name in group if packed.pop(name, None) is not None}
    if refused and (not packed or not source.options.allow_dense):
        name, refusal = next(iter(refused.items()))
        raise UserError(
            f"--format {form} can't hold {name}{more(refused)}, rule {refusal.rule}: it {refusal.reason}; "
            + refusal.remedy
            + (", or --allow-dense here" if packed else " (--allow-dense is no help: no other layer can be packed)")
        )
    return Packable(packed, refused, found)


def without_codes(variant: Variant) -> Refusal | None:
    """Why a variant has no codes of all its weights; None where it has."""
    form = variant.meta.get("format")
    if form == DENSE:
        return Refusal(Rule.codes, "has an imported weight without codes", "use variants of evoray build --method gptq")
    if form != PACKED:
        reason = f"has a mask at level {variant.level}, and engines want codes of all weights"
        return Refusal(Rule.mask, reason, "use variants of evoray build --kind quantization")
    return None


def decoded(variant: Variant) -> QuantizedWeight:
    """The codes of a variant.

    Raises:
        UserError: it is damaged.
    """
    try:
        return decode(variant.columns, variant.meta)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"layer {variant.layer}, level {variant.level}: does not decode ({error}); build the store again"
        ) from error
