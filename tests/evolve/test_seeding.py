import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.evolve import initial, random_legal
from evoray.evolve.seeding import ceiling

SEEDS = st.integers(0, 2**32)


@settings(max_examples=150, deadline=None)
@given(st.data(), SEEDS, st.integers(1, 20))
def test_starts_are_legal_distinct_and_leave_no_slack_that_a_step_fits(any_space, data, seed, count):
    space = data.draw(any_space)
    found = initial(space, count, np.random.default_rng(seed))
    assert 1 <= len(found) <= count
    assert len(set(found)) == len(found)
    for genotype in found:
        assert space.is_legal(genotype)
        slack = space.limit - space.cost(genotype)
        for gene, index in zip(space.genes, genotype, strict=True):
            assert index + 1 == len(gene.costs) or gene.costs[index + 1] - gene.costs[index] > slack


def test_the_ceiling_is_the_level_above_the_target(space_of):
    costs = [[size * bits for bits in (2, 3, 4, 6, 8)] for size in (1, 3, 10)]
    assert ceiling(space_of(costs, int(2.5 * 14))) == (1, 1, 1)
    assert ceiling(space_of(costs, 4 * 14)) == (3, 3, 3)
    assert ceiling(space_of(costs, 8 * 14)) == (4, 4, 4)
    assert ceiling(space_of([[1, 2], [1, 2, 3, 4]], 5)) == (1, 3)


def test_a_dense_corner_has_one_genotype(space_of):
    space = space_of([[2, 3], [4, 7], [1, 9]], 7)
    assert initial(space, 5, np.random.default_rng(0)) == ((0, 0, 0),)
    assert initial(space_of([[2, 3], [4, 7]], 10), 5, np.random.default_rng(0)) == ((1, 1),)


def test_every_maximal_genotype_can_be_drawn(space_of):
    space = space_of([[0, 1, 2]] * 3, 3)
    rng = np.random.default_rng(0)
    drawn = {random_legal(space, rng) for _ in range(400)}
    assert drawn == {g for g in np.ndindex(3, 3, 3) if sum(g) == 3}


def test_no_candidates_are_refused(space_of):
    with pytest.raises(UserError, match="0 initial candidates"):
        initial(space_of([[1, 2]], 2), 0, np.random.default_rng(0))


@given(st.data(), SEEDS, st.integers(1, 10))
def test_near_starts_go_only_down_or_only_up_from_what_is_given(any_space, data, seed, count):
    space = data.draw(any_space)
    near = tuple(data.draw(st.integers(0, last)) for last in space.highest())
    found = initial(space, count, np.random.default_rng(seed), near=near)
    assert len(set(found)) == len(found)
    for genotype in found:
        assert space.is_legal(genotype)
        lowered = [index < old for index, old in zip(genotype, near, strict=True)]
        if space.is_legal(near):
            assert not any(lowered), "what fits is never lowered"
        slack = space.limit - space.cost(genotype)
        _, up_G = space.steps(np.array(genotype))
        assert not any(0 < up <= slack for up in up_G.tolist())
