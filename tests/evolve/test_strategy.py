import json
from dataclasses import asdict
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.evolve import FixedRace, LevelSwitch, OnePlusLambda, Outcome, SequentialRace, Told, rungs

STAGES = rungs([4, 1], [8, 16])


def make(space, **changes):
    settings_of = {"offspring": 8, "rungs": STAGES, "mutation": LevelSwitch(), "seed": 0, "generations": 5}
    return OnePlusLambda(space, **(settings_of | changes))


def drive(strategy, loss_of, generations=10**9):
    """A user's driver. Returns what was told and every measurement asked for."""
    told, asked = [], []
    while not strategy.stop and len(told) < generations:
        race = strategy.ask()
        while (measurement := race.ask()) is not None:
            asked.append((strategy.generation, measurement))
            race.tell(np.array([[loss_of(g) * measurement.tokens] for g in measurement.genotypes]),
                      np.array([measurement.tokens]))  # fmt: skip
        told.append(strategy.outcome(race.result))
        strategy.tell(told[-1])
    return told, asked


def table_of(space, seed):
    """A loss that falls with every level up, by amounts that differ: additive, so the optimum is a knapsack's."""
    rng = np.random.default_rng(seed)
    drops = [np.concatenate([[0], np.cumsum(rng.random(len(gene.costs) - 1) * 2)]) for gene in space.genes]
    return lambda genotype: 20 - sum(float(drop[index]) for drop, index in zip(drops, genotype, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 2**32), st.booleans(), st.integers(1, 12))
def test_offspring_are_legal_distinct_and_not_the_parent(any_space, data, seed, equal_steps, count):
    space = data.draw(any_space)
    strategy = make(space, seed=seed, offspring=count, mutation=LevelSwitch(equal_steps), generations=3)
    told, asked = drive(strategy, table_of(space, seed))
    assert strategy.reason
    assert space.is_legal(strategy.parent)
    parents = {outcome.generation + 1: outcome.winner for outcome in told}
    for generation, measurement in asked:
        assert all(space.is_legal(g) for g in measurement.genotypes)
        assert len(set(measurement.genotypes)) == len(measurement.genotypes)
        assert len(measurement.genotypes) <= (32 if generation == 0 else count + 1)
        if measurement.rung == 0 and generation > 0:
            assert parents[generation] not in measurement.genotypes
    if equal_steps:
        assert len({space.cost(outcome.winner) for outcome in told}) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_exhaustive_optimum_of_a_tiny_space(space_of, seed):
    uneven = space_of([[size * bits for bits in (2, 3, 4, 6)] for size in (1, 1, 2, 3, 5)], 42)
    even = space_of([[2, 3, 4, 5]] * 5, 16)
    for space, equal_steps in ((uneven, False), (even, False), (even, True)):
        loss_of = table_of(space, seed)
        legal = [g for g in product(*(range(len(gene.costs)) for gene in space.genes)) if space.is_legal(g)]
        strategy = make(space, seed=seed, mutation=LevelSwitch(equal_steps), generations=60, offspring=16)
        drive(strategy, loss_of)
        assert strategy.parent == min(legal, key=loss_of)
        assert strategy.fitness == pytest.approx(loss_of(strategy.parent))


def test_fitness_never_rises_without_noise(space_of):
    space = space_of([[size * bits for bits in (2, 3, 4, 6, 8)] for size in [1, 3, 7] * 10], 500)
    told, _ = drive(make(space, generations=25), table_of(space, 1))
    fitness = [outcome.fitness for outcome in told]
    assert fitness == sorted(fitness, reverse=True)
    assert fitness[-1] < fitness[0]


def test_told_outcomes_restore_the_search_exactly(space_of):
    space = space_of([[size * bits for bits in (2, 3, 4, 6, 8)] for size in [1, 3, 7] * 5], 250)
    loss_of = table_of(space, 2)
    whole, asked = drive(make(space, generations=12), loss_of)
    for cut in (0, 1, 5, 13):
        resumed = make(space, generations=12)
        for outcome in whole[:cut]:
            line = json.dumps(asdict(outcome))  # through a journal and back
            resumed.tell(Outcome(**json.loads(line)))
        rest, asked_again = drive(resumed, loss_of)
        assert whole[:cut] + rest == whole
        assert asked_again == [(g, m) for g, m in asked if g >= cut]
        assert resumed.stop


def test_asking_again_gives_the_same_and_another_seed_another(space_of):
    space = space_of([[2, 3, 4]] * 12, 36, level="1")
    first = make(space).ask().ask()
    strategy = make(space)
    assert strategy.ask().ask() == strategy.ask().ask() == first
    assert make(space, seed=1).ask().ask() != first
    strategy.tell(Outcome(1, strategy.parent, 1.0))
    assert strategy.ask().ask() != first


def test_a_level_that_meets_the_target_is_the_start_and_needs_no_race(space_of):
    strategy = make(space_of([[2, 3, 4]] * 6, 18, level="1"))
    assert (strategy.generation, strategy.parent, strategy.fitness) == (1, (1,) * 6, None)
    given_start = make(space_of([[2, 3, 4]] * 6, 18, level="1"), start=(2, 0, 1, 1, 1, 1))
    assert (given_start.generation, given_start.parent) == (1, (2, 0, 1, 1, 1, 1))


def test_any_other_start_is_the_best_of_random_ones_on_the_first_rungs_tokens(space_of):
    space = space_of([[2, 3, 4]] * 20, 50)
    loss_of = table_of(space, 3)
    strategy = make(space, initial_candidates=32)
    assert (strategy.generation, strategy.parent, strategy.stop) == (0, None, False)
    told, asked = drive(strategy, loss_of, generations=1)
    [(_, measurement)] = asked
    assert (measurement.rung, measurement.tokens, len(measurement.genotypes)) == (0, 8, 32)
    assert told == [Outcome(0, min(measurement.genotypes, key=loss_of), told[0].fitness)]
    assert strategy.generation == 1


def test_few_neighbours_give_few_offspring_and_none_stop_the_search(space_of):
    few = make(space_of([[2, 3], [2, 3], [2, 3]], 7), start=(1, 0, 0))
    # Two are within the first rung's four survivors, so they meet the parent on the last at once.
    assert sorted(few.ask().ask().genotypes) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    for space in (space_of([[2, 3], [2, 3]], 4), space_of([[2, 3], [2, 3]], 6), space_of([[5]], 5)):
        alone = make(space)
        told, _ = drive(alone, lambda g: 1.0)
        assert len(told) == 1
        assert "no legal neighbour" in alone.reason
        with pytest.raises(RuntimeError, match="no legal neighbour"):
            alone.ask()


def test_generations_end_it(space_of):
    strategy = make(space_of([[2, 3, 4]] * 6, 18, level="1"), generations=2)
    told, _ = drive(strategy, sum)
    assert [outcome.generation for outcome in told] == [1, 2]
    assert strategy.reason == "all 2 generations are done"
    assert make(space_of([[2, 3, 4]] * 6, 18, level="1"), generations=0).stop


def test_a_policy_of_races_can_be_put_in(space_of):
    made = []

    def one_rung(offspring, parents, stages, known):
        made.append(parents)
        return FixedRace(offspring, parents, stages[-1:])

    strategy = make(space_of([[2, 3, 4]] * 6, 18, level="1"), race=one_rung)
    assert strategy.ask().ask().tokens == 16
    assert made == [(strategy.parent,)]


def test_misuse_is_named(space_of):
    space = space_of([[2, 3, 4]] * 6, 18, level="1")
    strategy = make(space)
    with pytest.raises(ValueError, match="generation 4 was told while 1"):
        strategy.tell(Outcome(4, strategy.parent, 1.0))
    with pytest.raises(ValueError, match="not legal"):
        strategy.tell(Outcome(1, (2,) * 6, 1.0))
    for change, says in [
        ({"offspring": 0}, "offspring 0"),
        ({"generations": -1}, "generations -1"),
        ({"initial_candidates": 0}, "candidates 0"),
        ({"seed": -1}, "seed -1"),
        ({"rungs": ()}, "at least one rung"),
        ({"start": (2,) * 6}, "costs 24, above the limit 18"),
    ]:
        with pytest.raises(UserError, match=says):
            make(space, **change)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 2**32), st.booleans(), st.integers(2, 4))
def test_populations_are_distinct_legal_and_never_get_worse(any_space, data, seed, equal_steps, population):
    space = data.draw(any_space)
    stages = rungs([population + 2, population], [8, 16], population)
    strategy = make(
        space, seed=seed, rungs=stages, mutation=LevelSwitch(equal_steps), generations=4, population=population
    )
    loss_of = table_of(space, seed)
    told, asked = drive(strategy, loss_of)
    assert told[0].generation == 0
    assert strategy.population == told[-1].population
    for outcome in told:
        assert len(set(outcome.population)) == len(outcome.population) <= population
        assert outcome.winner == outcome.population[0]
        assert all(map(space.is_legal, outcome.population))
        losses = list(map(loss_of, outcome.population))
        assert losses == sorted(losses)
    for before, after in pairwise(told):
        mine = [m for generation, m in asked if generation == after.generation]
        assert set(before.population) <= set(mine[-1].genotypes)
        assert mine[0].rung or not set(before.population) & set(mine[0].genotypes)
        # Elitism without noise: the best of the last rung go on.
        assert list(after.population) == sorted(mine[-1].genotypes, key=loss_of)[:population]


def test_a_start_races_among_random_ones_for_a_larger_population(space_of):
    space = space_of([[2, 3, 4]] * 8, 24, level="1")
    stages = rungs([4, 3], [8, 16], 3)
    strategy = make(space, rungs=stages, population=3, initial_tokens=5, initial_candidates=10)
    assert (strategy.generation, strategy.parent, strategy.population, strategy.stop) == (0, None, (), False)
    measurement = strategy.ask().ask()
    assert (measurement.tokens, len(measurement.genotypes), measurement.genotypes[0]) == (5, 10, (1,) * 8)
    told, _ = drive(strategy, table_of(space, 0), generations=3)
    resumed = make(space, rungs=stages, population=3, initial_tokens=5, initial_candidates=10)
    for outcome in told:
        resumed.tell(Outcome(**json.loads(json.dumps(asdict(outcome)))))
    assert resumed.population == strategy.population
    assert resumed.ask().ask() == strategy.ask().ask()


def test_every_parent_has_offspring(space_of):
    space = space_of([[2, 3, 4]] * 12, 36)
    parents = ((2, 0) * 6, (0, 2) * 6)
    strategy = make(space, rungs=rungs([4, 2], [8, 16], 2), population=2, offspring=40, mutation=LevelSwitch(maximum=1))
    strategy.tell(Outcome(0, parents[0], 1.0, parents))
    children = strategy.ask().ask().genotypes
    near = [[sum(a != b for a, b in zip(child, parent, strict=True)) < 6 for parent in parents] for child in children]
    assert {tuple(each) for each in near} == {(True, False), (False, True)}


def test_populations_that_cannot_be_are_refused(space_of):
    space = space_of([[2, 3, 4]] * 6, 18)
    two = {"rungs": rungs([4, 2], [8, 16], 2), "population": 2}
    for change, says in [
        ({"population": 2}, r"population 2 .*last rung \(1\)"),
        ({"population": 0}, "population 0"),
        (two | {"initial_candidates": 1}, r"initial candidates \(1\)"),
        ({"initial_tokens": 0}, "initial tokens 0"),
    ]:
        with pytest.raises(UserError, match=says):
            make(space, **change)
    best, other = (1,) * 6, (2, 0, 1, 1, 1, 1)
    for population in [(other, best), (best, best), (best, (2,) * 6), (best, other, (0,) * 6)]:
        with pytest.raises(ValueError, match="at most 2 legal"):
            make(space, **two).tell(Outcome(0, best, 1.0, population))


def test_guesses_race_once_in_place_of_offspring_and_never_more_than_a_quarter(space_of):
    space = space_of([[2, 3, 4]] * 8, 24, level="1")
    parent = space.uniform()
    guesses = [(2, 0, *([1] * 6)), (0, 2, *([1] * 6)), parent, (2,) * 8, (1, 1, 2, 0, *([1] * 4)), (2, 0, *([1] * 6))]
    blind, strategy = make(space), make(space, guesses=guesses)
    first = strategy.ask().ask().genotypes
    # Of the three that are legal, distinct and no parent, a quarter of eight places take the first and the second.
    assert first[:2] == (guesses[0], guesses[1])
    assert len(first) == len(set(first)) == 8
    assert set(first[2:]) <= set(blind.ask().ask().genotypes)
    for each in (blind, strategy):
        each.tell(Outcome(1, parent, 1.0))
    assert strategy.ask().ask() == blind.ask().ask()


def test_a_good_guess_wins_the_race_for_a_start_that_no_level_gives(space_of):
    space = space_of([[2, 3, 4]] * 20, 50)
    loss_of, best = table_of(space, 3), (2,) * 5 + (0,) * 15
    assert space.is_legal(best)
    told, asked = drive(make(space, guesses=[best]), lambda g: 0.0 if g == best else loss_of(g), generations=2)
    assert len(asked[0][1].genotypes) == 32
    assert [outcome.winner for outcome in told] == [best, best]
    assert best not in asked[1][1].genotypes


@given(st.integers(0, 40), st.integers(1, 16))
def test_of_many_guesses_those_that_race_lie_evenly(space_of, count, offspring):
    space = space_of([[1, 2]] * 60, 61, level="0")
    guesses = [tuple(int(number == one) for number in range(60)) for one in range(count)]
    raced = make(space, guesses=guesses, offspring=offspring, rungs=rungs([1], [8])).ask().ask().genotypes
    taken = [guesses.index(each) for each in raced if each in guesses][: min(count, offspring // 4)]
    assert len(taken) == min(count, offspring // 4)
    assert len({after - before for before, after in pairwise(taken)}) <= 2


def test_a_new_parent_is_compared_on_blocks_that_did_not_choose_it(space_of):
    space = space_of([[2, 3, 4]] * 8, 24, level="1")
    strategy = make(space, race=SequentialRace, rungs=rungs([1], [64]))

    def one(loss_of):
        """A generation on blocks of four tokens: its parent, and what was measured as (skip, blocks, genotypes)."""
        race, told = strategy.ask(), []
        while (wanted := race.ask()) is not None:
            tokens_B = np.full(wanted.tokens // 4, 4)
            losses_NB = np.array([[loss_of(g) * 4] * len(tokens_B) for g in wanted.genotypes])
            told.append(Told(wanted, losses_NB, tokens_B))
            race.tell(losses_NB, tokens_B)
        parent = strategy.parent
        strategy.tell(strategy.outcome(race.result), told)
        assert all(each.measurement.drawn.lasting for each in told)
        asked = [(each.measurement, len(each.tokens_B)) for each in told]
        return parent, [(wanted.drawn.skip, blocks, wanted.genotypes) for wanted, blocks in asked]

    start, first = one(lambda g: float(g != space.uniform()))
    assert strategy.parent == start
    assert first[0][:2] == (0, 2)
    # The parent that stays is known there.
    winner = strategy.ask().ask().genotypes[0]
    assert start not in strategy.ask().ask().genotypes
    _, second = one(lambda g: 1.0 - 3 * (g == winner))
    assert strategy.parent == winner
    assert second[0][0] == 0
    used = max(skip + count for skip, count, genotypes in second if winner in genotypes)
    again = strategy.ask().ask()
    assert again.drawn.skip == used > 0
    assert winner in again.genotypes


def test_parents_that_change_places_are_nothing_new(space_of):
    space = space_of([[2, 3, 4]] * 6, 18, level="1")
    legal = [genotype for genotype in product(range(3), repeat=6) if space.is_legal(genotype)]
    one, two, new = legal[:3]
    strategy = make(space, population=2, rungs=rungs([4, 2], [8, 16], 2), patience=3, generations=99)
    strategy.ask()
    strategy.tell(Outcome(0, one, 1.0, (one, two)))
    for generation, whole in enumerate([(two, one), (one, two)], start=1):
        strategy.tell(Outcome(generation, whole[0], 1.0, whole))
        assert strategy.reason is None
    strategy.tell(Outcome(3, new, 0.5, (new, one)))
    assert strategy.reason is None
    for generation in range(4, 7):
        strategy.tell(Outcome(generation, new, 0.5, (new, one)))
    assert strategy.reason == "3 generations in a row found nothing better"
