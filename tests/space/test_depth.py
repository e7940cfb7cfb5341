from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.evolve import LevelSwitch, random_legal
from evoray.space import (
    BareLayer,
    BareManifest,
    Budget,
    Measure,
    Wanted,
    configuration_costs,
    drop_units,
    judging_rows,
    make_space,
)

SEEDS = st.integers(0, 2**32)


@dataclass(frozen=True)
class Level:
    code_bits: int
    bytes: int
    kept: int | None = None


@dataclass(frozen=True)
class Site:
    name: str
    block: int
    kind: str
    layers: tuple[str, ...]
    other_bytes: int


def sites(blocks):
    subs = []
    for block in range(blocks):
        subs += [
            Site(f"m.{block}.attn", block, "attn", (f"m.{block}.attn.q_proj", f"m.{block}.attn.o_proj"), 6),
            Site(f"m.{block}.mlp", block, "mlp", (f"m.{block}.mlp.up_proj",), 4),
        ]
    whole = [Site(f"m.{b}", b, "block", sum((s.layers for s in subs if s.block == b), ()), 20) for b in range(blocks)]
    return (*subs, *whole)


def model(blocks, levels=()):
    layers = []
    for site in sites(blocks):
        for name in site.layers if site.kind != "block" else ():
            size = 16 + 8 * (site.kind == "mlp")
            costs = {n: Level(int(n) * size * 4, int(n) * size // 2 + 3) for n in levels}
            layers.append(BareLayer(name, site.block, size, 4, 8 * size, 5, costs))
    return BareManifest(tuple(layers), 1000, tuple(levels), "quantization" if levels else "")


def units(blocks, **how):
    return drop_units(sites(blocks), **how)


def dropped(space, genotype):
    return [name for name, level in space.configuration(genotype).items() if level == "dropped"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.data(), SEEDS, st.booleans())
def test_exactly_so_many_of_each_kind_are_dropped_in_every_genotype(blocks, data, seed, equal_steps):
    drop = data.draw(st.integers(1, blocks))
    space = make_space(model(blocks), Wanted(droppable=units(blocks), drop=drop))
    rng = np.random.default_rng(seed)
    genotype = random_legal(space, rng)
    for _ in range(8):
        gone = dropped(space, genotype)
        assert sum(name.endswith("attn") for name in gone) == sum(name.endswith("mlp") for name in gone) == drop
        configuration = space.configuration(genotype)
        assert space.genotype(configuration) == genotype
        assert space.summary(genotype) == configuration_costs(model(blocks), configuration, sites(blocks))
        row = space.rows([genotype])[0]
        assert row.tolist() == judging_rows(model(blocks), configuration, sites(blocks)[: 2 * blocks]).tolist()
        genotype = LevelSwitch(equal_steps)(space, genotype, rng) or genotype


@st.composite
def levelled(draw):
    """Levels with switches, freed or separate, by any of the measures."""
    blocks = draw(st.integers(1, 3))
    store = model(blocks, ("2", "3", "4"))
    chosen = units(blocks, whole_blocks=draw(st.booleans()))
    measure, target = draw(st.sampled_from([(Measure.BITS, 3.0), (Measure.BITS, 2.6), (Measure.SIZE, None)]))
    if target is None:
        target = configuration_costs(store, {layer.name: "3" for layer in store.layers}).size
    drop = draw(st.one_of(st.none(), st.integers(1, blocks)))
    return store, sites(blocks), make_space(store, Wanted(Budget(measure, target), droppable=chosen, drop=drop))


@settings(max_examples=60, deadline=None)
@given(levelled(), SEEDS, st.booleans())
def test_levels_with_switches_are_priced_mutated_and_read_back_exactly(case, seed, equal_steps):
    store, droppable, space = case
    rng = np.random.default_rng(seed)
    parent = random_legal(space, rng)
    for _ in range(6):
        assert space.is_legal(parent)
        configuration, silent = space.configuration(parent), space.silent(parent)
        assert space.summary(parent) == configuration_costs(store, configuration, droppable)
        row = dict(zip(space.sites, space.rows([parent])[0].tolist(), strict=True))
        for gene, off in zip(space.genes, silent, strict=True):
            assert not off or all(row[site] == -1 and site not in configuration for site in gene.sites)
            if gene.members:
                assert {row[site] for site in gene.sites} == {0 if configuration[gene.sites[0]] == "dropped" else -1}
        read = space.genotype(configuration)
        assert all(off or a == b for off, a, b in zip(silent, read, parent, strict=True))
        child = LevelSwitch(equal_steps, maximum=1)(space, parent, rng)
        if child is None:
            continue
        assert space.is_legal(child)
        still = [a and b for a, b in zip(silent, space.silent(child), strict=True)]
        assert all(not off or a == b for off, a, b in zip(still, parent, child, strict=True))
        if equal_steps:
            assert space.totals(child) == space.totals(parent)
        if not space.freed:
            assert len(dropped(space, child)) == len(dropped(space, parent))
        parent = child


@settings(max_examples=60, deadline=None)
@given(levelled(), st.data())
def test_steps_and_the_least_above_them_are_those_of_whole_totals(case, data):
    _, _, space = case
    genotype = tuple(data.draw(st.integers(0, len(gene.levels) - 1)) for gene in space.genes)
    levels_G = np.array(genotype)
    down_G, up_G = space.steps(levels_G)
    least_G, silent = space.least_up(levels_G), space.silent(genotype)
    for number, gene in enumerate(space.genes):
        for by, steps_G in ((-1, down_G), (1, up_G)):
            moved = list(genotype)
            moved[number] += by
            there = 0 <= moved[number] < len(gene.levels) and not silent[number]
            paid = by * (space.totals(moved)[gene.budget] - space.totals(genotype)[gene.budget]) if there else 0
            assert steps_G[number] == paid
        if genotype[number] + 1 < len(gene.levels):
            low = [0] * len(genotype)
            low[number] = genotype[number] + 1
            owner = int(space.owner_G[number])
            if owner >= 0 and space.freed:
                low[owner] = 1
            assert least_G[number] == space.totals(low)[gene.budget]


def test_a_size_is_met_by_dropping_whole_blocks_or_pairs():
    store, blocks = model(4), units(4, whole_blocks=True)
    size = configuration_costs(store, {"m.0": "dropped"}, sites(4)).size
    space = make_space(store, Wanted(Budget(Measure.SIZE, size), droppable=blocks))
    assert [space.is_legal(g) for g in [(0, 1, 1, 1), (1, 1, 1, 1)]] == [True, False]
    pairs = make_space(store, Wanted(droppable=units(4, pairs=True), drop=1))
    assert dropped(pairs, (0, 1)) == ["m.0", "m.1"]
    some = make_space(store, Wanted(droppable=blocks[1:3], drop=1))
    assert some.sites[-2:] == ("m.1", "m.2")


def test_what_cannot_be_dropped_is_named():
    with pytest.raises(UserError, match="3 blocks make no pairs"):
        units(3, pairs=True)
    with pytest.raises(UserError, match="--drop-blocks 3: 2 attn sublayers"):
        make_space(model(2), Wanted(droppable=units(2), drop=3))
    with pytest.raises(UserError, match="nothing to drop"):
        make_space(model(2), Wanted())
    with pytest.raises(UserError, match="'quantisation'"):
        make_space(replace(model(2), kind="quantisation"), Wanted())
    with pytest.raises(UserError, match="'levels'"):
        make_space(replace(model(2), kind="levels"), Wanted())
