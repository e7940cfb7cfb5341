"""The knapsack against exhaustive search, ties and switches included."""

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.baselines import find_baseline
from evoray.configuration import DROPPED, KEPT
from evoray.errors import UserError
from evoray.space import Gene, Space

dp = find_baseline("dp")


def error_of(space, genotype, errors):
    """The slow sum: a dropped unit counts 1 for each layer inside, a silent layer nothing."""
    total = 0.0
    for gene, index, silent in zip(space.genes, genotype, space.silent(genotype), strict=True):
        if gene.levels == (DROPPED, KEPT):
            inside = sum(len(each.sites) for each in space.genes if each.name in gene.members)
            total += inside * (index == 0)
        elif not silent:
            total += sum(errors[site][gene.levels[index]] for site in gene.sites)
    return total


def drawn_errors(data, space):
    parts = st.integers(0, 128).map(lambda whole: whole / 64)
    return {
        site: {level: data.draw(parts) for level in gene.levels}
        for gene in space.genes
        if gene.levels != (DROPPED, KEPT)
        for site in gene.sites
    }


def drawn_costs(data, genes):
    steps = st.lists(st.integers(1, 4), min_size=1, max_size=4)
    return [list(accumulate(data.draw(steps))) for _ in range(genes)]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_legal_genotype_has_a_smaller_sum(data, made):
    costs = drawn_costs(data, data.draw(st.integers(1, 5)))
    limit = data.draw(st.integers(sum(each[0] for each in costs), sum(each[-1] for each in costs) + 1))
    genes, split = [], data.draw(st.integers(0, len(costs)))
    for number, each in enumerate(costs):
        sites = (f"{number}.a", f"{number}.b")[: 1 + number % 2]
        levels, budget = tuple("abcd"[: len(each)]), int(number >= split > 0)
        genes.append(Gene(f"g{number}", number, sites, levels, *(tuple(each),) * 3, budget=budget))
    further = ()
    if any(gene.budget for gene in genes):
        held = [gene.costs for gene in genes if gene.budget]
        further = (data.draw(st.integers(sum(each[0] for each in held), sum(each[-1] for each in held))),)
    sites = {site: gene.levels for gene in genes for site in gene.sites}
    space = Space(tuple(genes), limit, tuple(sites), tuple(sites.values()), weights=9, further=further)
    errors = drawn_errors(data, space)
    found = dp(made.problem(space, errors=errors))
    assert error_of(space, found, errors) == min(error_of(space, each, errors) for each in made.every(space))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_it_is_exact_where_blocks_can_be_dropped(data, made):
    costs = drawn_costs(data, data.draw(st.integers(1, 5)))
    blocks = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(costs), max_size=len(costs))))
    number = data.draw(st.none() | st.integers(1, len(set(blocks))))
    lowest = 0 if number is None else sum(each[0] for each in costs)
    limit = data.draw(st.integers(lowest, sum(each[-1] for each in costs)))
    space = made.joint(costs, blocks, limit, number=number)
    errors = drawn_errors(data, space)
    found = dp(made.problem(space, errors=errors))
    assert error_of(space, found, errors) == min(error_of(space, each, errors) for each in made.every(space))


def test_it_needs_errors_of_every_level(made):
    space = made.joint([[1, 2]], [0], 2)
    with pytest.raises(UserError, match="dp needs layer errors, and this store holds none"):
        dp(made.problem(space))
    with pytest.raises(UserError, match="none of g0 at level 1"):
        dp(made.problem(space, errors={"g0": {"0": 1.0}}))
    with pytest.raises(UserError, match="a search that only drops has none"):
        dp(made.problem(made.depth([3], [1])))
