"""Steps down by measured increase for freed cost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.baselines import find_baseline
from evoray.errors import UserError

greedy = find_baseline("greedy")


def slow(space, loss, costs, limit):
    """One step down at a time until the total fits, then steps up while one fits and helps."""
    at = list(space.highest())

    def moved(gene, by):
        return [*at[:gene], at[gene] + by, *at[gene + 1 :]]

    def total():
        return sum(each[index] for each, index in zip(costs, at, strict=True))

    while total() > limit:
        at = moved(
            min(
                (gene for gene in range(len(at)) if at[gene]),
                key=lambda gene: (
                    (loss(moved(gene, -1)) - loss(at)) / (costs[gene][at[gene]] - costs[gene][at[gene] - 1])
                ),
            ),
            -1,
        )
    while True:
        benefit = {
            gene: (loss(at) - loss(moved(gene, 1))) / (costs[gene][at[gene] + 1] - costs[gene][at[gene]])
            for gene in range(len(at))
            if at[gene] + 1 < len(costs[gene]) and costs[gene][at[gene] + 1] - costs[gene][at[gene]] <= limit - total()
        }
        if not benefit or max(benefit.values()) <= 0:
            return tuple(at)
        at = moved(max(benefit, key=benefit.get), 1)


@given(data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_with_few_genes_it_is_one_step_at_a_time(data, seed, made):
    count = data.draw(st.integers(1, 6))
    # Steps of 1, 2 or 4 and losses in 64ths: ratios are exact, so ties are too.
    steps = st.lists(st.sampled_from([1, 2, 4]), min_size=0, max_size=3)
    costs = []
    for _ in range(count):
        costs.append([1])
        for step in data.draw(steps):
            costs[-1].append(costs[-1][-1] + step)
    limit = data.draw(st.integers(count, sum(each[-1] for each in costs)))
    space = made.levels(costs, limit)
    # Without interactions steps up taken in one round are the same as one by one.
    loss = made.losses_of(space, seed, interactions=False)
    assert greedy(made.problem(space, loss)) == slow(space, loss, costs, limit)


@given(seed=st.integers(0, 99), limit=st.integers(20, 75), number=st.none() | st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_it_is_legal_with_drops_beside_levels(seed, limit, number, made):
    space = made.joint([[1, 2, 4, 5]] * 16, [n // 4 for n in range(16)], limit, number=number)
    found = greedy(made.problem(space, made.losses_of(space, seed)))
    assert space.is_legal(found)
    if number is not None:
        assert found[16:].count(0) == number


def test_an_eighth_of_the_genes_step_in_a_round(made):
    space = made.levels([[1, 2, 3]] * 32, 88)
    measured = made.Measured(made.losses_of(space, 0, interactions=False))
    found = greedy(made.problem(space, measured))
    assert space.cost(found) == 88
    # 8 steps in 2 rounds of 4, each with the present state.
    assert [len(genotypes) for genotypes, _ in measured.calls] == [33, 33]
    first = measured.calls[1][0][-1]
    values = sorted(range(32), key=lambda n: measured.loss(measured.genotypes[n]))
    assert [n for n, index in enumerate(first) if index == 1] == sorted(values[:4])


def test_a_step_costs_by_what_it_frees(made):
    space = made.levels([[1, 9], [1, 2]], 10)
    values = (4.0, 1.0)
    found = greedy(made.problem(space, lambda g: sum(v for v, i in zip(values, g, strict=True) if not i)))
    # Gene 0 loses half a nat for each unit it frees and gene 1 one; what is then left does not bring gene 0 back.
    assert found == (0, 1)


def test_only_drops_are_refused(made):
    with pytest.raises(UserError, match="in a search that only drops take sequential"):
        greedy(made.problem(made.depth([4], [1])))
