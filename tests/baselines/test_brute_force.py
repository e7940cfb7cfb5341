"""Brute force against a plain search through every legal genotype."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.baselines import find_baseline
from evoray.errors import UserError

brute_force = find_baseline("brute-force")


@given(counts=st.lists(st.integers(2, 6), min_size=1, max_size=2), data=st.data())
@settings(max_examples=40, deadline=None)
def test_it_measures_every_choice_of_exactly_the_number_once(counts, data, made):
    drop = [data.draw(st.integers(1, count)) for count in counts]
    space = made.depth(counts, drop)
    loss = made.losses_of(space, 3)
    measured = made.Measured(loss)
    found = brute_force(made.problem(space, measured))
    exact = [each for each in made.every(space) if each.count(0) == sum(drop)]
    assert sorted(measured.genotypes) == sorted(exact)
    assert len(exact) == math.prod(map(math.comb, counts, drop))
    assert loss(found) == min(map(loss, exact))


@given(seed=st.integers(0, 99), limit=st.integers(5, 20), number=st.none() | st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_of_levels_it_finds_the_best_of_all_legal_genotypes(seed, limit, number, made):
    space = made.joint([[1, 2, 4], [1, 3], [2, 5], [1, 2, 3]], [0, 0, 1, 1], limit, number=number)
    every_loss = made.losses_of(space, seed)

    def loss(genotype):
        # What is silent decides nothing.
        silent = space.silent(genotype)
        return every_loss([0 if off else index for off, index in zip(silent, genotype, strict=True)])

    measured = made.Measured(loss)
    found = brute_force(made.problem(space, measured))
    assert len(set(measured.genotypes)) == len(measured.genotypes)
    assert loss(found) == min(map(loss, made.every(space)))


def test_too_many_are_refused_before_anything_is_measured(made):
    measured = made.Measured(lambda genotype: 0.0)
    with pytest.raises(UserError, match=f"through {math.comb(20, 8)} genotypes and may go through 20000") as raised:
        brute_force(made.problem(made.depth([20], [8]), measured))
    assert "\n" not in str(raised.value)
    assert not measured.calls
