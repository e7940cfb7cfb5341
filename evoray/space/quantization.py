"""Which bitwidth for which layer, under one budget.

Holds: `quantization_space`, `judging_rows`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evoray.configuration import BASE
from evoray.errors import UserError
from evoray.space import ties
from evoray.space.budget import Budget
from evoray.space.costs import check_configuration
from evoray.space.gene import Gene
from evoray.space.priced import PricedLayer, PricedManifest, layer_levels
from evoray.space.space import Space
from evoray.space.ties import Tie


def quantization_space(
    manifest: PricedManifest, budget: Budget, tie: Tie = Tie.FUSED, levels: Sequence[str] | None = None
) -> Space:
    """The space of a quantization search: every layer of the store gets one of its levels.

    Of levels that cost a gene exactly the same, the one with the most code bits is left to choose from.

    Args:
        manifest: names, shapes and exact costs; tied layers may take the levels that all of them have.
        budget: what must be kept.
        tie: which layers share a level.
        levels: those to choose from; by default all of the store's.

    Raises:
        UserError: levels that the store lacks, or a target below the lowest or above the highest that these
            levels reach; the message names both.
    """
    if not manifest.layers:
        raise UserError("the store holds no layer; build it first with evoray build")
    asked = manifest.levels if levels is None else tuple(dict.fromkeys(levels))
    there = ", ".join(manifest.levels)
    if unknown := [level for level in asked if level not in manifest.levels]:
        raise UserError(f"the store has no level {', '.join(unknown)}; it holds {there}: choose of these or build more")
    if not asked:
        raise UserError(f"no level to choose from was given; the store holds {there}")
    labels = layer_levels(manifest)
    layers = {layer.name: layer for layer in manifest.layers}
    genes = tuple(_gene([layers[name] for name in group], asked, budget) for group in ties.tie(list(layers), tie))
    weights = sum(layer.out_features * layer.in_features for layer in manifest.layers)
    other_bytes = manifest.dense_bytes + sum(layer.record_bytes for layer in manifest.layers)
    _check_reachable(genes, budget, weights, other_bytes)
    return Space(
        genes=genes,
        limit=budget.limit(weights=weights, other_bytes=other_bytes),
        sites=tuple(layers),
        labels=labels,
        weights=weights,
        other_bytes=other_bytes,
        level=budget.whole_level,
    )


def _gene(layers: Sequence[PricedLayer], asked: Sequence[str], budget: Budget) -> Gene:
    parent, dot, _ = layers[0].name.rpartition(".")
    name = parent + dot + "+".join(layer.name.rpartition(".")[2] for layer in layers)
    cost = {
        level: sum(budget.unit_cost(layer.costs[level]) for layer in layers)
        for level in asked
        if all(level in layer.costs for layer in layers)
    }
    if not cost:
        raise UserError(f"{name} has none of the levels {', '.join(asked)}; build the store with them")
    code_bits = {level: sum(layer.costs[level].code_bits for layer in layers) for level in cost}
    levels = tuple(sorted(cost, key=lambda level: (cost[level], code_bits[level])))
    for lower, higher in pairwise(levels):
        if (cost[lower], code_bits[lower]) == (cost[higher], code_bits[higher]):
            raise UserError(f"{name} costs the same at levels {lower} and {higher}; search with one of them (--levels)")
    # Rows are padded to whole words, so in narrow layers 3 bits may take the room of 4: then 4 is there for nothing.
    levels = tuple(
        level
        for level, higher in zip(levels, (*levels[1:], None), strict=True)
        if higher is None or cost[level] < cost[higher]
    )
    return Gene(
        name=name,
        block=layers[0].block,
        layers=tuple(layer.name for layer in layers),
        levels=levels,
        costs=tuple(cost[level] for level in levels),
        code_bits=tuple(code_bits[level] for level in levels),
        bytes=tuple(sum(layer.costs[level].bytes for layer in layers) for level in levels),
    )


def _check_reachable(genes: Sequence[Gene], budget: Budget, weights: int, other_bytes: int) -> None:
    lowest = sum(gene.costs[0] for gene in genes)
    highest = sum(gene.costs[-1] for gene in genes)
    allowance = budget.allowance(weights=weights, other_bytes=other_bytes)
    if lowest <= allowance <= highest:
        return
    low = budget.describe(lowest, weights=weights, other_bytes=other_bytes, up=True)
    high = budget.describe(highest, weights=weights, other_bytes=other_bytes, up=False)
    where = "below the lowest" if allowance < lowest else "above the highest"
    raise UserError(
        f"target {budget} is {where} that these levels reach: from {low} to {high}; choose one between, or other levels"
    )


def judging_rows(manifest: PricedManifest, configuration: Mapping[str, str]) -> NDArray[np.int8]:
    """The evaluator's row of any configuration over a store: untied, over budget or partial.

    Args:
        manifest: of the store.
        configuration: layer -> level; a layer that is not named, or has level `base`, keeps its base weight.

    Returns:
        int8 [L]: index into the layer's list in `layer_levels`, or -1 for the base weight.

    Raises:
        UserError: layers or levels that the store lacks.
    """
    check_configuration(manifest, configuration)
    chosen = [configuration.get(layer.name, BASE) for layer in manifest.layers]
    indexes = [
        -1 if level == BASE else levels.index(level)
        for level, levels in zip(chosen, layer_levels(manifest), strict=True)
    ]
    return np.array(indexes, dtype=np.int8)
