"""What may be dropped: sublayers, blocks, or pairs of blocks, with or without the levels of a store beside it.

Holds: `depth_space`, `member_switches`, `Switches`, `drop_units`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evoray.configuration import BASE, DROPPED, KEPT
from evoray.errors import UserError
from evoray.space.budget import Measure
from evoray.space.costs import Totals, level_totals, weights_of
from evoray.space.gene import Gene
from evoray.space.priced import PricedDroppable, PricedManifest
from evoray.space.space import Space
from evoray.space.wanted import Wanted, check_reachable

BLOCK = "block"
"""The kind of a droppable that is a whole block; others are sublayers."""

Unit = tuple[PricedDroppable, ...]
"""What is dropped together by one gene."""


@dataclass(frozen=True)
class Switches:
    """The genes that drop something.

    Attributes:
        genes: one per unit, with levels dropped and kept.
        limits: of their own budgets, where what is dropped is counted by itself.
        freed: what is dropped frees its cost in the first budget.
        other_bytes: bytes beside the layers that go with all units.
    """

    genes: tuple[Gene, ...] = ()
    limits: tuple[int, ...] = ()
    freed: bool = False
    other_bytes: int = 0

    @property
    def sites(self) -> tuple[str, ...]:
        """What the genes decide for."""
        return tuple(site for gene in self.genes for site in gene.sites)


def drop_units(
    droppable: Sequence[PricedDroppable], *, whole_blocks: bool = False, pairs: bool = False
) -> tuple[Unit, ...]:
    """What one gene each may drop, of all that a model can do without.

    Args:
        droppable: sublayers and blocks.
        whole_blocks: blocks instead of their sublayers.
        pairs: the first and second block together, the third and fourth, and so on, as in the paper.

    Raises:
        UserError: pairs of an odd number of blocks, or nothing of that kind.
    """
    if not whole_blocks and not pairs:
        units: tuple[Unit, ...] = tuple((site,) for site in droppable if site.kind != BLOCK)
    else:
        blocks = [site for site in droppable if site.kind == BLOCK]
        size = 2 if pairs else 1
        if len(blocks) % size:
            raise UserError(
                f"{len(blocks)} blocks make no pairs; leave out --drop-two-consecutive, or give an even number"
            )
        units = tuple(tuple(blocks[first : first + size]) for first in range(0, len(blocks), size))
    if not units:
        raise UserError("the model has nothing of that kind to drop; try --drop-entire-block")
    return units


def depth_space(manifest: PricedManifest, wanted: Wanted) -> Space:
    """The space of a search that only drops: layers that stay keep their base weights.

    With `wanted.drop` a fixed number of each kind goes, in every legal genotype at least that many and never fewer; a
    mutation drops one and takes another back. Else the budget says how much, and kinds trade with each other.

    Args:
        manifest: of the base model.
        wanted: budget or number, and what may be dropped.

    Raises:
        UserError: more to drop than there is, or a target out of reach.
    """
    units = wanted.droppable
    if not units:
        raise UserError("no store and nothing to drop: give --store, or --drop-blocks")
    totals = {layer.name: level_totals(layer, BASE) for layer in manifest.layers}
    sizes = {layer.name: weights_of(layer) for layer in manifest.layers}
    gone = {layer for unit in units for site in unit for layer in site.layers}
    fixed = sum((each for name, each in totals.items() if name not in gone), Totals())
    weights = sum(sizes.values())
    other_bytes = manifest.dense_bytes - sum(site.other_bytes for unit in units for site in unit)
    genes = []
    for unit in units:
        layers = [layer for site in unit for layer in site.layers]
        held = sum((totals[layer] for layer in layers), Totals())
        size, other = sum(sizes[layer] for layer in layers), sum(site.other_bytes for site in unit)
        cost = 1 if wanted.budget is None else wanted.budget.unit_cost(held, size)
        if wanted.budget is not None and wanted.budget.measure is Measure.SIZE:
            cost += other
        genes.append(
            _switch(unit, cost=cost, code_bits=held.code_bits, stored_bytes=held.bytes, weights=size, other_bytes=other)
        )
    if wanted.budget is None:
        counted, limits = _counted(genes, units, wanted.drop, first=0)
        limit, further = limits[0], limits[1:]
    else:
        counted, further = tuple(genes), ()
        stays = wanted.budget.unit_cost(fixed, weights - sum(sizes[layer] for layer in gone))
        check_reachable(genes, wanted.budget, weights, other_bytes, fixed=stays)
        limit = wanted.budget.limit(weights=weights, other_bytes=other_bytes) - stays
    return Space(
        genes=counted,
        limit=limit,
        sites=tuple(site.name for unit in units for site in unit),
        labels=((DROPPED,),) * sum(map(len, units)),
        weights=weights,
        other_bytes=other_bytes,
        further=further,
        fixed=fixed,
    )


def member_switches(manifest: PricedManifest, wanted: Wanted, genes: Sequence[Gene]) -> Switches:
    """The genes that drop something beside genes that choose levels.

    Without `wanted.drop` there is one budget: what is dropped costs nothing, and others can use that. With it the
    number is a budget of its own, and the levels keep theirs, as if nothing were dropped: the paper's separate budgets.

    Args:
        manifest: of the store.
        wanted: budget or number, and what may be dropped.
        genes: over the levels of layers.

    Raises:
        UserError: more to drop than there is.
    """
    units = wanted.droppable
    if not units:
        return Switches()
    assert wanted.budget is not None
    layers = {layer.name: layer for layer in manifest.layers}
    shared = wanted.drop is None
    switches = []
    for unit in units:
        inside = {layer for site in unit for layer in site.layers}
        records = sum(layers[layer].record_bytes for layer in inside)
        other = sum(site.other_bytes for site in unit) + records
        cost = (other if wanted.budget.measure is Measure.SIZE else 0) if shared else 1
        members = tuple(gene.name for gene in genes if set(gene.sites) <= inside)
        size = sum(weights_of(layers[layer]) for layer in inside)
        # Codes and bytes of what is kept are those of its members.
        switches.append(_switch(unit, cost=cost, weights=size, other_bytes=other, members=members))
    limits: tuple[int, ...] = ()
    counted = tuple(switches)
    if not shared:
        counted, limits = _counted(switches, units, wanted.drop, first=1)
    return Switches(counted, limits, shared, sum(gene.other[1] for gene in switches))


def _switch(
    unit: Unit,
    *,
    cost: int,
    weights: int,
    other_bytes: int,
    code_bits: int = 0,
    stored_bytes: int = 0,
    members: tuple[str, ...] = (),
) -> Gene:
    """The gene of one unit; what it costs and holds while it is kept, and the weights that go when it is dropped."""
    return Gene(
        name="+".join([unit[0].name, *(site.name.rpartition(".")[2] for site in unit[1:])]),
        block=unit[0].block,
        sites=tuple(site.name for site in unit),
        levels=(DROPPED, KEPT),
        costs=(0, cost),
        code_bits=(0, code_bits),
        bytes=(0, stored_bytes),
        zeros=(weights, 0),
        other=(0, other_bytes),
        members=members,
    )


def _counted(
    genes: Sequence[Gene], units: Sequence[Unit], drop: int | None, *, first: int
) -> tuple[tuple[Gene, ...], tuple[int, ...]]:
    """The genes with a budget for each kind of unit, from number `first` on, and the limits: how many are kept."""
    kinds = list(dict.fromkeys(unit[0].kind for unit in units))
    held = {kind: sum(unit[0].kind == kind for unit in units) for kind in kinds}
    for kind, count in held.items():
        if drop is None or not 0 < drop <= count:
            each = f"{kind} sublayers" if kind != BLOCK else "blocks or pairs of them"
            raise UserError(f"--drop-blocks {drop}: {count} {each} may be dropped; give a number from 1 to {count}")
    budgets = {kind: first + number for number, kind in enumerate(kinds)}
    counted = tuple(replace(gene, budget=budgets[unit[0].kind]) for gene, unit in zip(genes, units, strict=True))
    return counted, tuple(held[kind] - (drop or 0) for kind in kinds)
