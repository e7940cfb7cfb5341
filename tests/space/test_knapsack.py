import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.space import Gene, Space, cheapest, knapsack


def made(costs, limits, budgets):
    genes = []
    for number, (each, budget) in enumerate(zip(costs, budgets, strict=True)):
        levels = tuple(map(str, range(len(each))))
        genes.append(Gene(f"g{number}", number, (f"{number}",), levels, each, each, each, budget=budget))
    sites, labels = tuple(f"{number}" for number in range(len(costs))), tuple(gene.levels for gene in genes)
    return Space(tuple(genes), limits[0], sites, labels, weights=100, further=tuple(limits[1:]))


@st.composite
def problems(draw):
    count, parts = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    steps = st.lists(st.integers(1, 9), min_size=1, max_size=4)
    costs = [tuple(np.cumsum(draw(steps)).tolist()) for _ in range(count)]
    budgets = [number % parts for number in range(count)]
    limits = []
    for budget in range(parts):
        inside = [each for each, of in zip(costs, budgets, strict=True) if of == budget]
        limits.append(draw(st.integers(sum(each[0] for each in inside), sum(each[-1] for each in inside) + 3)))
    losses = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal((2, count, max(map(len, costs))))
    return made(costs, limits, budgets), losses


def total(losses_GK, genotype):
    return sum(losses_GK[gene, level] for gene, level in enumerate(genotype))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_it_is_the_best_of_all_legal_genotypes(problem):
    space, losses_SGK = problem
    every = [g for g in itertools.product(*(range(len(gene.levels)) for gene in space.genes)) if space.is_legal(g)]
    for losses_GK, found_G in zip(losses_SGK, cheapest(space, losses_SGK), strict=True):
        found = tuple(found_G.tolist())
        assert space.is_legal(found)
        assert total(losses_GK, found) == pytest.approx(min(total(losses_GK, g) for g in every), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_whole_budgets_leave_no_step_that_fits(problem):
    space, losses_SGK = problem
    for losses_GK, found_G in zip(losses_SGK, cheapest(space, losses_SGK, whole=True), strict=True):
        found = tuple(found_G.tolist())
        assert space.is_legal(found)
        higher = [(*found[:gene], found[gene] + 1, *found[gene + 1 :]) for gene in range(len(found))]
        assert not any(map(space.is_legal, higher))
        # Steps that lower the sum are taken as before.
        assert total(losses_GK, found) >= total(losses_GK, cheapest(space, losses_GK[None])[0].tolist()) - 1e-9
    falling_SGK = -np.sort(losses_SGK, axis=2)
    for losses_GK, found_G in zip(falling_SGK, cheapest(space, falling_SGK, whole=True), strict=True):
        best = cheapest(space, losses_GK[None])[0].tolist()
        assert total(losses_GK, found_G.tolist()) == pytest.approx(total(losses_GK, best), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 12))
def test_rounded_costs_stay_legal_and_leave_no_step_that_would_help(problem, units):
    space, losses_SGK = problem
    old, knapsack.MOST_UNITS = knapsack.MOST_UNITS, units
    try:
        solved = cheapest(space, losses_SGK)
    finally:
        knapsack.MOST_UNITS = old
    for losses_GK, found_G in zip(losses_SGK, solved, strict=True):
        found = tuple(found_G.tolist())
        assert space.is_legal(found)
        for number, gene in enumerate(space.genes):
            for level in range(found[number] + 1, min(found[number] + 2, len(gene.levels))):
                up = (*found[:number], level, *found[number + 1 :])
                assert not space.is_legal(up) or total(losses_GK, up) >= total(losses_GK, found)


def test_genes_that_silence_others_are_refused():
    inner = Gene("g", 0, ("a",), ("0", "1"), (1, 2), (1, 2), (1, 2))
    switch = Gene("s", 0, ("m",), ("dropped", "kept"), (0, 0), (0, 0), (0, 0), members=("g",))
    space = Space((inner, switch), 2, ("a", "m"), (("0", "1"), ("dropped",)), weights=10)
    with pytest.raises(ValueError, match="silence"):
        cheapest(space, np.zeros((1, 2, 2)))
