"""The uniform baseline: the dearest shared level within the budget."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import Material

from evoray.baselines import uniform
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore


@pytest.mark.parametrize("tie", [Tie("fused"), Tie("none")])
@pytest.mark.parametrize(("target", "level"), [(2, "2"), (2.5, "2"), (2.99, "2"), (3, "3"), (3.7, "3"), (4, "4")])
def test_it_is_the_dearest_level_within_the_budget(material: Material, tie: Tie, target: float, level: str) -> None:
    space = quantization_space(VariantStore.open(material.store).manifest, Budget(Measure.BITS, target), tie, None)
    assert set(space.configuration(uniform(space)).values()) == {level}
    assert space.summary(uniform(space)).bits <= target


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=2), data=st.data())
@settings(max_examples=60, deadline=None)
def test_exactly_the_number_is_dropped_and_gaps_hardly_differ(
    counts: list[int], data: st.DataObject, made: Any
) -> None:
    drop = [data.draw(st.integers(1, count)) for count in counts]
    space = made.depth(counts, drop)
    found = uniform(space)
    assert space.is_legal(found)
    for budget, (count, number) in enumerate(zip(counts, drop, strict=True)):
        kept = [index for gene, index in zip(space.genes, found, strict=True) if gene.budget == budget]
        gone = [place for place, index in enumerate(kept) if not index]
        assert len(gone) == number
        gaps = {after - before for before, after in pairwise(gone)}
        assert max(gaps, default=0) - min(gaps, default=0) <= 1
        assert abs(gone[0] - (count - 1 - gone[-1])) <= 1


def test_beside_levels_nothing_is_dropped_that_need_not_be(made: Any) -> None:
    costs, blocks = [[1, 2, 4]] * 4, [0, 0, 1, 1]
    assert uniform(made.joint(costs, blocks, 9)) == (1, 1, 1, 1, 1, 1)
    assert uniform(made.joint(costs, blocks, 9, number=1)) == (1, 1, 1, 1, 1, 0)
    # No level is within the budget: the lowest, with one block gone.
    assert uniform(made.joint(costs, blocks, 3)) == (0, 0, 0, 0, 1, 0)


def test_by_size_no_fewer_evenly_spread_units_would_do(made: Any) -> None:
    assert uniform(made.depth([4], 8, costs=[3, 3, 3, 3])) == (1, 0, 1, 0)
