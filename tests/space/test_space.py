import numpy as np
import pytest

from evoray.errors import UserError
from evoray.space import Costs, Gene, Space


def gene(name, layers, levels, costs):
    return Gene(name, 0, layers, levels, costs, tuple(8 * c for c in costs), tuple(c + 1 for c in costs))


@pytest.fixture
def space():
    return Space(
        genes=(gene("ac", ("a", "c"), ("2", "4"), (20, 40)), gene("b", ("b",), ("2", "3", "4"), (6, 9, 12))),
        limit=46,
        sites=("a", "b", "c", "d"),
        labels=(("4", "3", "2"), ("2", "3", "4"), ("2", "4"), ("2",)),
        weights=10,
        other_bytes=100,
        level="4",
    )


def test_costs_and_legality(space):
    assert space.cost((0, 2)) == 32
    assert space.is_legal((1, 0))
    assert not space.is_legal((1, 1))
    assert not space.is_legal((2, 0))
    assert not space.is_legal((-1, 0))
    assert not space.is_legal((0,))
    assert space.lowest() == (0, 0)
    assert space.highest() == (1, 2)


def test_uniform_needs_the_level_in_every_gene_and_the_budget(space):
    assert space.uniform() is None  # 52 is above 46
    assert space.uniform("3") is None
    assert space.uniform("2") == (0, 0)


def test_rows_point_into_each_sites_own_list_and_leave_others_at_base(space):
    rows = space.rows([(0, 1), (1, 2)])
    assert rows.dtype == np.int8
    assert rows.tolist() == [[2, 1, 0, -1], [0, 2, 1, -1]]
    assert space.rows([]).shape == (0, 4)
    for genotype, row in zip([(0, 1), (1, 2)], rows, strict=True):
        named = {s: labels[i] for s, labels, i in zip(space.sites, space.labels, row.tolist(), strict=True) if i >= 0}
        assert named == space.configuration(genotype)


def test_configurations_go_both_ways(space):
    assert space.configuration((1, 0)) == {"a": "4", "b": "2", "c": "4"}
    for genotype in [(0, 0), (0, 2), (1, 1)]:
        assert space.genotype(space.configuration(genotype)) == genotype


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"a": "2", "b": "2", "c": "2", "x": "2", "y": "2"}, r"x \(and 1 more\)"),
        ({"a": "2", "b": "2", "c": "2", "d": "2"}, "names d"),
        ({"a": "2", "c": "2"}, "no level to b"),
        ({"a": "2", "b": "2", "c": "4"}, "a 2, c 4"),
        ({"a": "2", "b": "5", "c": "2"}, "b has no level '5'.*2, 3, 4"),
    ],
)
def test_configurations_of_another_space_are_named(space, configuration, says):
    with pytest.raises(UserError, match=says):
        space.genotype(configuration)


def test_step_costs_match_the_genes(space):
    assert space.steps_GK.tolist() == [[0, 20, 0, 0], [0, 3, 3, 0]]
    assert [array.tolist() for array in space.step_groups] == [[0, 0], [3, 20], [1, 1]]
    with pytest.raises(ValueError, match="read-only"):
        space.steps_GK[0, 0] = 1


def test_summary_counts_by_hand(space):
    # code bits 8 * (40 + 6), bytes (40 + 1) + (6 + 1), 10 weights, 100 other bytes
    assert space.summary((1, 0)) == Costs(bits=36.8, bpw=8 * 48 / 10, bytes=48, size=148)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limit": 25}, "below the lowest total 26"),
        ({"genes": ()}, "at least one gene"),
        ({"sites": ("a", "b", "c")}, "labels"),
        ({"sites": ("a", "b", "z", "d")}, "c of gene ac"),
        ({"labels": (("4",), ("2", "3", "4"), ("2", "4"), ("2",))}, "lacks levels"),
    ],
)
def test_spaces_that_contradict_themselves_are_refused(space, change, says):
    fields = {name: getattr(space, name) for name in space.__dataclass_fields__}
    with pytest.raises(ValueError, match=says):
        Space(**(fields | change))


@pytest.mark.parametrize("costs", [(3, 3), (4, 3), (-1, 3)])
def test_genes_need_rising_costs(costs):
    with pytest.raises(ValueError, match="rise"):
        gene("g", ("a",), ("2", "3"), costs)


def test_genes_need_levels_and_lists_that_fit():
    with pytest.raises(ValueError, match="no level"):
        gene("g", ("a",), (), ())
    with pytest.raises(ValueError, match="length"):
        gene("g", ("a",), ("2", "3"), (1, 2, 3))
    with pytest.raises(ValueError, match="twice"):
        gene("g", ("a",), ("2", "2"), (1, 2))
