"""What a configuration costs, by each of the ways to count.

Holds: `Costs`, `costs_from_totals`, `configuration_costs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evoray.configuration import BASE
from evoray.errors import UserError
from evoray.space.priced import PricedManifest


@dataclass(frozen=True)
class Costs:
    """The figures that stand beside every result.

    Attributes:
        bits: code bits per compressible weight, as papers print it.
        bpw: bits per compressible weight of all that is stored for the layers: codes, scales, zero points.
        bytes: bytes of all that is stored for the layers.
        size: bytes of the whole checkpoint: the layers, the records the format adds to each compressed layer,
            and everything that is no layer (embeddings, head, norms, biases).
    """

    bits: float
    bpw: float
    bytes: int
    size: int


def costs_from_totals(*, weights: int, code_bits: int, stored_bytes: int, other_bytes: int) -> Costs:
    """Makes `Costs` of whole totals.

    Args:
        weights: compressible weights.
        code_bits: code bits of all layers.
        stored_bytes: codes, scales and zero points of all layers.
        other_bytes: all else in the checkpoint.
    """
    return Costs(code_bits / weights, 8 * stored_bytes / weights, stored_bytes, stored_bytes + other_bytes)


def configuration_costs(manifest: PricedManifest, configuration: Mapping[str, str]) -> Costs:
    """Costs of any configuration over a store, legal in some space or not.

    A layer at its base weight (not named, or named with level `base`) counts with its dense bytes, 8 bits each.

    Raises:
        UserError: layers or levels that the store lacks.
    """
    check_configuration(manifest, configuration)
    weights = code_bits = stored_bytes = 0
    other_bytes = manifest.dense_bytes
    for layer in manifest.layers:
        weights += layer.out_features * layer.in_features
        level = configuration.get(layer.name, BASE)
        if level == BASE:
            code_bits += 8 * layer.dense_bytes
            stored_bytes += layer.dense_bytes
        else:
            code_bits += layer.costs[level].code_bits
            stored_bytes += layer.costs[level].bytes
            other_bytes += layer.record_bytes
    return costs_from_totals(weights=weights, code_bits=code_bits, stored_bytes=stored_bytes, other_bytes=other_bytes)


def check_configuration(manifest: PricedManifest, configuration: Mapping[str, str]) -> None:
    """Sees that every layer and level of a configuration is in the store; `base` is a level of every layer.

    Raises:
        UserError: naming the first layer or level that is not, how many more there are, and what there is.
    """
    layers = {layer.name: layer for layer in manifest.layers}
    unknown = [name for name in configuration if name not in layers]
    if unknown:
        raise UserError(
            f"the configuration names {unknown[0]}{more(unknown)}, which the store lacks; "
            f"its {len(layers)} layers run from {manifest.layers[0].name} to {manifest.layers[-1].name}"
        )
    wrong = [(n, level) for n, level in configuration.items() if level != BASE and level not in layers[n].costs]
    if wrong:
        name, level = wrong[0]
        there = ", ".join(layers[name].costs)
        raise UserError(f"{name} has no level {level!r}{more(wrong)}; choose {there} or {BASE}")


def more(items: Sequence[object]) -> str:
    """` and 3 more` for a message that names the first of several."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
