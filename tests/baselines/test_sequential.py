"""Dropping one by one, against the obvious loop."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.baselines import find_baseline
from evoray.errors import UserError

sequential = find_baseline("sequential")


def slow(space, loss, drop):
    genotype, left = list(space.highest()), dict(enumerate(drop))
    while any(left.values()):
        choices = [n for n, gene in enumerate(space.genes) if genotype[n] and left[gene.budget]]
        best = min(choices, key=lambda n: loss([*genotype[:n], 0, *genotype[n + 1 :]]))
        genotype[best] = 0
        left[space.genes[best].budget] -= 1
    return tuple(genotype)


@given(counts=st.lists(st.integers(2, 7), min_size=1, max_size=2), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None)
def test_each_drop_is_the_one_that_costs_least_where_it_is_taken(counts, seed, data, made):
    drop = [data.draw(st.integers(1, count)) for count in counts]
    space = made.depth(counts, drop)
    loss = made.losses_of(space, seed)
    found = sequential(made.problem(space, loss))
    assert found == slow(space, loss, drop)
    assert [sum(not index for gene, index in zip(space.genes, found, strict=True) if gene.budget == budget)
            for budget in range(len(counts))] == drop  # fmt: skip


def test_it_sees_what_single_scores_do_not(made):
    """Alone 0 and 1 cost least, but together they are ruin."""
    space = made.depth([4], [2])

    def loss(genotype):
        return sum((1.0, 1.1, 1.2, 9.0)[n] for n in range(4) if not genotype[n]) + 50 * (genotype[:2] == (0, 0))

    assert sequential(made.problem(space, lambda genotype: loss(tuple(genotype)))) == (0, 1, 0, 1)
    assert find_baseline("kl")(made.problem(space, lambda genotype: loss(tuple(genotype)))) == (0, 0, 1, 1)


def test_by_size_what_was_dropped_needlessly_comes_back(made):
    space = made.depth([3], 8, costs=[2, 3, 6])
    values = (1.0, 9.0, 6.0)
    found = sequential(made.problem(space, lambda g: sum(v for v, i in zip(values, g, strict=True) if not i)))
    # Unit 0 costs least for what it frees and is first to go; with unit 2 gone there is room for it again.
    assert found == (1, 1, 0)


def test_levels_are_refused(made):
    with pytest.raises(UserError, match="sequential scores sublayers or blocks: give --drop-blocks"):
        sequential(made.problem(made.joint([[1, 2]], [0], 2)))
