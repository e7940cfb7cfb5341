"""Units dropped by scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray import fitness
from evoray.baselines import find_baseline
from evoray.baselines.scoring import INFLUENCES
from evoray.errors import UserError


def test_columns_are_those_that_evaluators_return():
    assert INFLUENCES == fitness.INFLUENCES


@pytest.mark.parametrize("name", INFLUENCES)
@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=2), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_lowest_of_each_budget_go(name, counts, seed, data, made):
    drop = [data.draw(st.integers(1, count)) for count in counts]
    space = made.depth(counts, drop)
    table = np.random.default_rng(seed).random((len(space.genes), 4))
    row = {gene.sites: table[number] for number, gene in enumerate(space.genes)}
    found = find_baseline(name)(made.problem(space, influences=lambda spans: np.stack([row[span] for span in spans])))
    for budget, number in enumerate(drop):
        here = [n for n, gene in enumerate(space.genes) if gene.budget == budget]
        lowest = sorted(here, key=lambda n: table[n, INFLUENCES.index(name)])[:number]
        assert [n for n in here if not found[n]] == sorted(lowest)


@pytest.mark.parametrize("name", ["kl", "perplexity"])
def test_each_is_measured_alone_by_that_fitness(name, made):
    space = made.depth([5, 5], [2, 1])
    values = np.random.default_rng(0).permutation(10) + 1.0
    measured = made.Measured(lambda g: 0.5 + sum(v for v, index in zip(values, g, strict=True) if not index))
    found = find_baseline(name)(made.problem(space, measured))
    assert {fitness for _, fitness in measured.calls} == {name}
    assert all(genotype.count(0) <= 1 for genotype in measured.genotypes)
    for budget, number in enumerate((2, 1)):
        here = [n for n, gene in enumerate(space.genes) if gene.budget == budget]
        assert {n for n in here if not found[n]} == set(sorted(here, key=lambda n: values[n])[:number])


@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=7), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None)
def test_by_size_it_is_legal_and_nothing_more_fits(costs, seed, data, made):
    space = made.depth([len(costs)], data.draw(st.integers(0, sum(costs))), costs=costs)
    table = np.random.default_rng(seed).random((len(costs), 4)) + 0.1
    found = find_baseline("cosine")(made.problem(space, influences=lambda spans: table))
    slack = space.limit - space.cost(found)
    assert slack >= 0
    assert all(cost > slack for cost, index in zip(costs, found, strict=True) if not index)


@given(blocks=st.integers(1, 8), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_window_is_the_one_whose_ends_differ_least(blocks, seed, data, made):
    number = data.draw(st.integers(1, blocks))
    space = made.depth([blocks], [number])
    ends = np.random.default_rng(seed).random((blocks + 1, blocks + 1))

    def influences(spans):
        places = [[int(site.split(".")[0]) for site in span] for span in spans]
        assert all(each == list(range(each[0], each[0] + number)) for each in places)
        return np.array([[ends[each[0], each[-1] + 1], 0, 0, 0] for each in places])

    found = find_baseline("cosine-window")(made.problem(space, influences=influences))
    first = min(range(blocks - number + 1), key=lambda start: ends[start, start + number])
    assert found == tuple(int(not first <= n < first + number) for n in range(blocks))


def test_a_window_needs_whole_blocks(made):
    with pytest.raises(UserError, match="cosine-window drops consecutive blocks: give --drop-entire-block"):
        find_baseline("cosine-window")(made.problem(made.depth([4, 4], [1, 1])))


@pytest.mark.parametrize("name", [*INFLUENCES, "cosine-window", "kl", "perplexity"])
def test_levels_are_refused(name, made):
    with pytest.raises(UserError, match=f"{name} scores sublayers or blocks: give --drop-blocks"):
        find_baseline(name)(made.problem(made.joint([[1, 2]], [0], 2)))
