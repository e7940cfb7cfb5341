"""Genes over the levels of a store, whatever levels mean there.

Holds: `level_space`, `level_genes`.
"""

from collections.abc import Sequence
from itertools import pairwise

from evoray.configuration import DROPPED
from evoray.errors import UserError
from evoray.space import ties
from evoray.space.budget import Budget
from evoray.space.costs import level_totals, weights_of
from evoray.space.depth import member_switches
from evoray.space.gene import Gene
from evoray.space.priced import PricedLayer, PricedManifest, layer_levels
from evoray.space.space import Space
from evoray.space.wanted import Wanted, check_reachable


def level_space(
    manifest: PricedManifest, wanted: Wanted, *, level: str | None = None, center: str | None = None
) -> Space:
    """The space of a search in which every layer of the store gets one of its levels.

    Of levels that cost a gene exactly the same, the one with the most code bits is left to choose from.

    Args:
        manifest: names, shapes and exact costs; tied layers may take the levels that all of them have.
        wanted: budget, ties, levels and limits of the deviation.
        level: the label that meets the target exactly in every layer, if there is one.
        center: the label from which deviations count; None where the kind of store has none.

    Raises:
        UserError: levels that the store lacks, a limit that needs a center, or a target below the lowest or above the
            highest that these levels reach; the message names both.
    """
    budget = wanted.budget
    if budget is None:
        raise UserError("no budget for the levels of the store; give --target-bits, --target-bpw, --target-size or so")
    genes = level_genes(manifest, wanted, center)
    drops = member_switches(manifest, wanted, genes)
    weights = sum(map(weights_of, manifest.layers))
    other_bytes = manifest.dense_bytes + sum(layer.record_bytes for layer in manifest.layers)
    check_reachable(genes, budget, weights, other_bytes, can_be_freed=drops.freed)
    middle = None
    if wanted.max_deviation is not None:
        if center is None:
            raise _without_center("--max-total-deviation", wanted.max_deviation)
        # Dropping is counted by its own limit: a kept sublayer is where it was.
        middle = tuple(gene.levels.index(center) for gene in genes) + (1,) * len(drops.genes)
    return Space(
        genes=genes + drops.genes,
        limit=budget.limit(weights=weights, other_bytes=other_bytes - drops.other_bytes),
        sites=tuple(layer.name for layer in manifest.layers) + drops.sites,
        labels=layer_levels(manifest) + ((DROPPED,),) * len(drops.sites),
        weights=weights,
        other_bytes=other_bytes - drops.other_bytes,
        level=level,
        further=drops.limits,
        freed=drops.freed,
        center=middle,
        max_deviation=wanted.max_deviation,
    )


def level_genes(manifest: PricedManifest, wanted: Wanted, center: str | None = None) -> tuple[Gene, ...]:
    """The genes of `level_space`.

    Raises:
        UserError: levels that the store lacks.
    """
    if not manifest.layers:
        raise UserError("the store holds no layer; build it first with evoray build")
    asked = manifest.levels if wanted.levels is None else tuple(dict.fromkeys(wanted.levels))
    there = ", ".join(manifest.levels)
    if unknown := [level for level in asked if level not in manifest.levels]:
        raise UserError(f"the store has no level {', '.join(unknown)}; it holds {there}: choose of these or build more")
    if not asked:
        raise UserError(f"no level to choose from was given; the store holds {there}")
    layers = {layer.name: layer for layer in manifest.layers}
    assert wanted.budget is not None
    genes = tuple(
        _gene([layers[name] for name in group], asked, wanted.budget) for group in ties.tie(list(layers), wanted.tie)
    )
    if wanted.max_level is None:
        return genes
    return tuple(_near(gene, center, wanted.max_level) for gene in genes)


def _gene(layers: Sequence[PricedLayer], asked: Sequence[str], budget: Budget) -> Gene:
    parent, dot, _ = layers[0].name.rpartition(".")
    name = parent + dot + "+".join(layer.name.rpartition(".")[2] for layer in layers)
    there = [level for level in asked if all(level in layer.costs for layer in layers)]
    if not there:
        raise UserError(f"{name} has none of the levels {', '.join(asked)}; build the store with them")
    totals = {level: [level_totals(layer, level) for layer in layers] for level in there}
    cost = {
        level: sum(budget.unit_cost(each, weights_of(layer)) for each, layer in zip(parts, layers, strict=True))
        for level, parts in totals.items()
    }
    code_bits = {level: sum(each.code_bits for each in parts) for level, parts in totals.items()}
    levels = tuple(sorted(there, key=lambda level: (cost[level], code_bits[level])))
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
        sites=tuple(layer.name for layer in layers),
        levels=levels,
        costs=tuple(cost[level] for level in levels),
        code_bits=tuple(code_bits[level] for level in levels),
        bytes=tuple(sum(each.bytes for each in totals[level]) for level in levels),
        zeros=tuple(sum(each.zeros for each in totals[level]) for level in levels),
    )


def _near(gene: Gene, center: str | None, steps: int) -> Gene:
    """The gene with no level further from the center than so many steps."""
    if center is None:
        raise _without_center("--max-level", steps)
    if center not in gene.levels:
        raise UserError(f"{gene.name} lacks the level {center} from which --max-level {steps} counts; leave it out")
    middle = gene.levels.index(center)
    near = slice(max(0, middle - steps), middle + steps + 1)
    kept = {name: getattr(gene, name)[near] for name in ("levels", "costs", "code_bits", "bytes", "zeros")}
    return Gene(name=gene.name, block=gene.block, sites=gene.sites, **kept)


def _without_center(flag: str, value: int) -> UserError:
    return UserError(
        f"{flag} {value} counts steps from the level at the target, and no level of this store stands there; "
        "give a target that is a level, or leave it out"
    )
