"""What a configuration costs, by each of the ways to count.

Holds: `Costs`, `Totals`, `costs_from_totals`, `configuration_costs`, `check_configuration`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evoray.configuration import BASE, DROPPED, KEPT
from evoray.errors import UserError
from evoray.space.priced import PricedDroppable, PricedLayer, PricedManifest


@dataclass(frozen=True)
class Costs:
    """The figures that stand beside every result.

    Attributes:
        bits: code bits per compressible weight, as papers print it. What is dropped has none.
        bpw: bits per compressible weight of all that is stored for the layers: codes, scales, zero points, masks.
        bytes: bytes of all that is stored for the layers.
        size: bytes of the whole checkpoint: the layers, the records the format adds to each compressed layer,
            and everything that is no layer (embeddings, head, norms, biases).
        sparsity: share of the compressible weights that are zero or dropped, 0 to 1.
    """

    bits: float
    bpw: float
    bytes: int
    size: int
    sparsity: float = 0.0


@dataclass(frozen=True)
class Totals:
    """Whole sums over layers.

    Attributes:
        code_bits: bits of codes.
        bytes: codes, scales, zero points, masks and values.
        zeros: weights that are zero by their level, or dropped.
    """

    code_bits: int = 0
    bytes: int = 0
    zeros: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.code_bits + other.code_bits, self.bytes + other.bytes, self.zeros + other.zeros)


NOTHING = Totals()


def costs_from_totals(totals: Totals, *, weights: int, other_bytes: int) -> Costs:
    """Makes `Costs` of whole totals.

    Args:
        totals: over all layers.
        weights: compressible weights.
        other_bytes: all else in the checkpoint.
    """
    return Costs(
        totals.code_bits / weights,
        8 * totals.bytes / weights,
        totals.bytes,
        totals.bytes + other_bytes,
        totals.zeros / weights,
    )


def weights_of(layer: PricedLayer) -> int:
    """How many weights a layer has."""
    return layer.out_features * layer.in_features


def level_totals(layer: PricedLayer, level: str) -> Totals:
    """One layer at one level; `base` counts with its dense bytes, 8 bits each."""
    if level == BASE:
        return Totals(8 * layer.dense_bytes, layer.dense_bytes)
    cost = layer.costs[level]
    return Totals(cost.code_bits, cost.bytes, 0 if cost.kept is None else weights_of(layer) - cost.kept)


def dropped_layers(configuration: Mapping[str, str], droppable: Iterable[PricedDroppable]) -> set[str]:
    """Layers that go with the sites a configuration drops."""
    return {layer for site in droppable if configuration.get(site.name) == DROPPED for layer in site.layers}


def configuration_costs(
    manifest: PricedManifest, configuration: Mapping[str, str], droppable: Sequence[PricedDroppable] = ()
) -> Costs:
    """Costs of any configuration over a store, legal in some space or not.

    A layer at its base weight (not named, or named with level `base`) counts with its dense bytes, 8 bits each. A
    layer of a dropped site counts with nothing, whatever its level.

    Args:
        manifest: of the store, or of the base model alone.
        configuration: site -> level.
        droppable: the model's sites that can be dropped.

    Raises:
        UserError: sites or levels that there are not.
    """
    check_configuration(manifest, configuration, droppable)
    gone = dropped_layers(configuration, droppable)
    dropped = [site for site in droppable if configuration.get(site.name) == DROPPED]
    # A sublayer in a dropped block is counted with the block.
    inside = {site.name for site in dropped for outer in dropped if site.name.startswith(outer.name + ".")}
    other_bytes = manifest.dense_bytes - sum(site.other_bytes for site in dropped if site.name not in inside)
    totals = Totals()
    for layer in manifest.layers:
        level = configuration.get(layer.name, BASE)
        if layer.name in gone:
            totals += Totals(zeros=weights_of(layer))
            continue
        totals += level_totals(layer, level)
        other_bytes += 0 if level == BASE else layer.record_bytes
    return costs_from_totals(totals, weights=sum(map(weights_of, manifest.layers)), other_bytes=other_bytes)


def check_configuration(
    manifest: PricedManifest, configuration: Mapping[str, str], droppable: Sequence[PricedDroppable] = ()
) -> None:
    """Sees that every site and level of a configuration exists; `base` is a level of every layer.

    Raises:
        UserError: naming the first site or level that does not, how many more there are, and what there is.
    """
    layers = {layer.name: layer for layer in manifest.layers}
    sites = {site.name for site in droppable}
    unknown = [name for name in configuration if name not in layers and name not in sites]
    if unknown:
        raise UserError(
            f"the configuration names {unknown[0]}{more(unknown)}, which the store lacks; "
            f"its {len(layers)} layers run from {manifest.layers[0].name} to {manifest.layers[-1].name}"
        )
    wrong = [
        (name, level)
        for name, level in configuration.items()
        if (level not in (DROPPED, KEPT) if name in sites else level != BASE and level not in layers[name].costs)
    ]
    if wrong:
        name, level = wrong[0]
        there = [DROPPED, KEPT] if name in sites else [*layers[name].costs, BASE]
        raise UserError(f"{name} has no level {level!r}{more(wrong)}; choose {', '.join(there[:-1])} or {there[-1]}")


def more(items: Sequence[object]) -> str:
    """` and 3 more` for a message that names the first of several."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
