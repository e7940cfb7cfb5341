import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.evolve import LevelSwitch, OnePlusLambda, initial, rungs

SEEDS = st.integers(0, 2**32)


@settings(max_examples=120, deadline=None)
@given(st.data(), SEEDS, st.booleans(), st.integers(1, 3))
def test_starts_and_children_keep_every_limit_and_what_is_silent_stays(
    switched_space, data, seed, equal_steps, maximum
):
    space = data.draw(switched_space)
    rng = np.random.default_rng(seed)
    starts = initial(space, 4, rng)
    assert len(set(starts)) == len(starts)
    for parent in starts:
        assert space.is_legal(parent)
        if not space.freed:
            assert space.totals(parent)[2] == space.limits[2]
        for _ in range(5):
            child = LevelSwitch(equal_steps, maximum)(space, parent, rng)
            if child is None:
                continue
            assert space.is_legal(child)
            if equal_steps:
                assert space.totals(child) == space.totals(parent)
            if not space.freed:
                assert space.totals(child)[2] == space.limits[2]
            if maximum == 1:
                silent = zip(space.silent(parent), space.silent(child), parent, child, strict=True)
                assert all(old == new for before, after, old, new in silent if before and after)
            parent = child


@settings(max_examples=40, deadline=None)
@given(st.data(), SEEDS, st.integers(1, 3))
def test_offspring_of_a_population_are_legal_distinct_and_no_parents(switched_space, data, seed, population):
    space = data.draw(switched_space)
    strategy = OnePlusLambda(
        space,
        offspring=6,
        rungs=rungs([population], [8], population),
        mutation=LevelSwitch(),
        seed=seed,
        generations=3,
        population=population,
    )
    while not strategy.stop:
        race, parents = strategy.ask(), strategy.population
        asked = race.ask().genotypes
        assert asked[: len(parents)] == parents
        assert len(set(asked)) == len(asked)
        assert all(map(space.is_legal, asked))
        race.tell(np.array([[float(sum(space.totals(g)) + sum(g))] for g in asked]), np.array([1]))
        strategy.tell(strategy.outcome(race.result))
    assert 1 <= len(strategy.population) <= population
