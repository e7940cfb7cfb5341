import math
import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.space import (
    Budget,
    Measure,
    Tie,
    configuration_costs,
    judging_rows,
    layer_levels,
    quantization_space,
)


@dataclass(frozen=True)
class Level:
    code_bits: int
    bytes: int
    kept: int | None = None


@dataclass(frozen=True)
class Layer:
    name: str
    block: int
    out_features: int
    in_features: int
    dense_bytes: int
    record_bytes: int
    costs: dict[str, Level]


@dataclass(frozen=True)
class Manifest:
    levels: tuple[str, ...]
    dense_bytes: int
    layers: tuple[Layer, ...]
    kind: str = "quantization"
    settings: dict = field(default_factory=dict)


SHAPES = {"q_proj": (8, 32), "k_proj": (4, 32), "v_proj": (4, 32), "o_proj": (8, 32), "gate_proj": (12, 32),
          "up_proj": (12, 32), "down_proj": (8, 48)}  # fmt: skip


def manifest(blocks=2, levels=("2", "3", "4", "6", "8"), dense=1000, record=16, shapes=None):
    layers = []
    for block in range(blocks):
        for name, (out, into) in (SHAPES if shapes is None else shapes).items():
            # Rows padded to whole 32-bit words, one 2-byte scale a row, as a store would have it.
            costs = {n: Level(int(n) * out * into, out * 4 * math.ceil(into * int(n) / 32) + 2 * out) for n in levels}
            layers.append(Layer(f"m.{block}.{name}", block, out, into, 2 * out * into, record, costs))
    return Manifest(tuple(levels), dense, tuple(layers))


COUNTED = [Measure.BITS, Measure.BPW, Measure.SIZE]
WEIGHTS = 2 * sum(out * into for out, into in SHAPES.values())


def test_genes_tie_fused_layers_and_sum_their_costs():
    space = quantization_space(manifest(), Budget(Measure.BITS, 3.0))
    assert [gene.name for gene in space.genes[:4]] == [
        "m.0.q_proj+k_proj+v_proj", "m.0.o_proj", "m.0.gate_proj+up_proj", "m.0.down_proj",
    ]  # fmt: skip
    assert space.genes[0].costs == tuple(512 * bits for bits in (2, 3, 4, 6, 8))
    assert [gene.block for gene in space.genes] == [0] * 4 + [1] * 4
    assert space.limit == 3 * WEIGHTS
    assert space.uniform() == (1,) * 8
    assert len(quantization_space(manifest(), Budget(Measure.BITS, 3.0), Tie.NONE).genes) == 14


def test_a_whole_target_without_such_a_level_has_no_uniform_start():
    assert quantization_space(manifest(), Budget(Measure.BITS, 5.0)).uniform() is None
    assert quantization_space(manifest(), Budget(Measure.BITS, 3.0), levels=["2", "4"]).uniform() is None
    assert quantization_space(manifest(), Budget(Measure.BPW, 3.0 + 4)).uniform() is None


def test_levels_go_by_cost_and_labels_by_the_store():
    shuffled = manifest(levels=("8", "2", "4"))
    space = quantization_space(shuffled, Budget(Measure.BITS, 4.0), levels=["8", "2", "2"])
    assert space.genes[0].levels == ("2", "8")
    assert layer_levels(shuffled)[0] == space.labels[0] == ("8", "2", "4")
    assert set(space.rows([space.lowest()])[0].tolist()) == {1}
    # A layer's own list counts, whatever the order of the store's.
    turned = replace(shuffled, levels=("2", "4", "8"))
    assert layer_levels(turned)[0] == ("8", "2", "4")
    assert judging_rows(turned, {"m.0.q_proj": "8"})[0] == 0


@st.composite
def cases(draw):
    names = st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    shapes = draw(st.dictionaries(names, st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=5))
    levels = tuple(map(str, sorted(draw(st.sets(st.integers(2, 8), min_size=2, max_size=5)))))
    return manifest(draw(st.integers(1, 2)), levels, draw(st.integers(0, 500)), draw(st.integers(0, 16)), shapes)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(COUNTED), st.sampled_from(Tie), st.data())
def test_the_limit_is_exactly_the_measure_that_users_see(store, measure, tie, data):
    """A genotype is legal if and only if its summary, computed from the manifest alone, keeps the target."""

    def reported(configuration):
        costs = configuration_costs(store, configuration)
        weights = sum(layer.out_features * layer.in_features for layer in store.layers)
        bits = sum(
            layer.costs[configuration[layer.name]].code_bits for layer in store.layers if layer.name in configuration
        )
        return {
            Measure.BITS: Fraction(bits, weights),
            Measure.BPW: Fraction(8 * costs.bytes, weights),
            Measure.SIZE: costs.size,
        }[measure]

    ends = [reported({layer.name: store.levels[end] for layer in store.layers}) for end in (0, -1)]
    if measure is Measure.SIZE:
        target = data.draw(st.integers(*ends))
    else:
        low, high = math.ceil(ends[0] * 100), math.floor(ends[1] * 100)
        assume(low <= high)  # padding may leave no hundredth of a bit between lowest and highest
        target = data.draw(st.integers(low, high)) / 100
    space = quantization_space(store, Budget(measure, target), tie)
    for _ in range(5):
        genotype = tuple(data.draw(st.integers(0, len(gene.levels) - 1)) for gene in space.genes)
        configuration = space.configuration(genotype)
        assert space.is_legal(genotype) == (reported(configuration) <= Fraction(str(target)))
        assert space.summary(genotype) == configuration_costs(store, configuration)
        assert space.genotype(configuration) == genotype
        assert space.rows([genotype])[0].tolist() == judging_rows(store, configuration).tolist()


def test_unreachable_targets_name_target_lowest_and_highest():
    for measure, target, says in [
        (Measure.BITS, 1.9, "target 1.9 bits is below the lowest .* from 2.0 bits to 8.0 bits"),
        (Measure.BITS, 8.5, "target 8.5 bits is above the highest .* from 2.0 bits to 8.0 bits"),
        (Measure.SIZE, 1300, "target 1300 bytes .* is below the lowest"),
        (Measure.SIZE, 900, "target 900 bytes is below the lowest"),
        (Measure.SIZE, 10**7, r"target 10000000 bytes \(10 MB\) is above the highest"),
        (Measure.BPW, 1.0, "target 1 bpw is below the lowest"),
    ]:
        with pytest.raises(UserError, match=says):
            quantization_space(manifest(), Budget(measure, target))


@pytest.mark.parametrize("measure", COUNTED)
def test_the_bounds_that_an_error_names_can_themselves_be_met(measure):
    with pytest.raises(UserError) as raised:
        quantization_space(manifest(), Budget(measure, 0.5))
    low, high = (float(text) for text in re.findall(r"(?:from|to) ([0-9.]+) ", str(raised.value)))
    assert quantization_space(manifest(), Budget(measure, low)).is_legal((0,) * 8)
    quantization_space(manifest(), Budget(measure, high))


def test_unknown_and_useless_levels_are_named():
    with pytest.raises(UserError, match="no level 5, 7; it holds 2, 3, 4, 6, 8"):
        quantization_space(manifest(), Budget(Measure.BITS, 3.0), levels=["3", "5", "7"])
    with pytest.raises(UserError, match="no level to choose"):
        quantization_space(manifest(), Budget(Measure.BITS, 3.0), levels=[])
    with pytest.raises(UserError, match="no layer"):
        quantization_space(manifest(blocks=0), Budget(Measure.BITS, 3.0))
    one = manifest(blocks=1, shapes={"o_proj": (8, 32)})
    twin = replace(one.layers[0], costs=one.layers[0].costs | {"4b": one.layers[0].costs["4"]})
    with pytest.raises(UserError, match="costs the same at levels 4 and 4b"):
        quantization_space(Manifest((*one.levels, "4b"), 0, (twin,)), Budget(Measure.BITS, 4.0))


def test_a_level_that_padding_makes_as_dear_as_a_better_one_is_not_offered():
    narrow = manifest(levels=("2", "3", "4", "5"), shapes={"dt_proj": (8, 16)})  # 16 weights: 1, 2, 2 and 3 words
    space = quantization_space(narrow, Budget(Measure.SIZE, 1200))
    assert space.genes[0].levels == ("2", "4", "5")
    assert quantization_space(narrow, Budget(Measure.BITS, 3.0)).genes[0].levels == ("2", "3", "4", "5")


def test_judging_takes_any_configuration_of_the_store():
    store = manifest(blocks=1)
    row = judging_rows(store, {"m.0.q_proj": "8", "m.0.k_proj": "2", "m.0.o_proj": "base"})
    assert row.tolist() == [4, 0, -1, -1, -1, -1, -1]
    for name, level in product(SHAPES, store.levels):
        position = list(SHAPES).index(name)
        assert judging_rows(store, {f"m.0.{name}": level})[position] == store.levels.index(level)


@pytest.mark.parametrize("ask", [judging_rows, configuration_costs])
def test_judging_names_what_the_store_lacks(ask):
    with pytest.raises(UserError, match=r"names nowhere \(and 1 more\).*7 layers run from m.0.q_proj to m.0.down_proj"):
        ask(manifest(blocks=1), {"nowhere": "2", "m.0.q_proj": "2", "else": "2"})
    with pytest.raises(UserError, match=r"m\.0\.q_proj has no level '5'; choose 2, 3, 4, 6, 8 or base"):
        ask(manifest(blocks=1), {"m.0.q_proj": "5"})


def test_base_layers_count_with_their_dense_bytes():
    store = manifest(blocks=1, dense=100, record=16)
    weights = sum(out * into for out, into in SHAPES.values())
    base = configuration_costs(store, {})
    assert (base.bits, base.bpw, base.bytes, base.size) == (16.0, 16.0, 2 * weights, 2 * weights + 100)
    one = configuration_costs(store, {"m.0.o_proj": "4", "m.0.q_proj": "base"})
    # o_proj: 8 rows of four words and a 2-byte scale, and a record, in place of 512 dense bytes
    assert one.bytes == 2 * weights - 512 + 8 * (16 + 2)
    assert one.size == one.bytes + 100 + 16
    assert one.bits == (16 * weights - 12 * 256) / weights


def test_bitwidths_make_nothing_zero():
    with pytest.raises(UserError, match="make nothing zero"):
        quantization_space(manifest(), Budget(Measure.SPARSITY, 0.5))
