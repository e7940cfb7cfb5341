"""What the additive model learns from losses that are sums, and from losses that are not."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.evolve import (
    AdditiveModel,
    Learned,
    LevelSwitch,
    Measurement,
    Mutants,
    OnePlusLambda,
    Screened,
    SequentialRace,
    Told,
    initial,
    merged,
    rungs,
)
from evoray.space import cheapest

GENES, LEVELS = 16, 5


def truth(seed, interaction=0.0):
    """Losses per token of genotypes: falling with the level in each gene, with pairs on top that no sum explains."""
    draws = np.random.default_rng(seed)
    weight_G = np.exp(draws.standard_normal(GENES))
    loss_K = 4.0 ** -np.arange(LEVELS)
    pairs_GG = interaction * draws.standard_normal((GENES, GENES)) / GENES

    def loss(genotype):
        root_G = np.sqrt(weight_G * loss_K[np.array(genotype)])
        return float((root_G**2).sum() + root_G @ pairs_GG @ root_G)

    return loss


@pytest.fixture
def space(space_of):
    costs = [[size * bits for bits in (2, 3, 4, 5, 6)] for size in (2, 1, 3, 4) * 4]
    return space_of(costs, sum(each[1] for each in costs), level="1")


def told(genotypes, loss, rung=0, noise=0.02, blocks=8, seed=0):
    draws = np.random.default_rng([seed, rung])
    text_B, own_NB = draws.standard_normal(blocks), draws.standard_normal((len(genotypes), blocks))
    losses_NB = (np.array([loss(g) for g in genotypes])[:, None] + text_B + noise * own_NB) * 10
    return Told(Measurement(rung, tuple(genotypes), 10 * blocks), losses_NB, np.full(blocks, 10))


def test_it_finds_the_effects_of_an_additive_loss(space):
    loss, makes = truth(0), Learned(space, LevelSwitch())
    parent = space.uniform()
    for rung in range(12):
        genotypes = (parent, *makes.offspring((parent,), 24, np.random.default_rng([1, rung])))
        makes.learn([told(genotypes, loss, rung, noise=0.001)])
    model = makes._model
    predicted_GK = model.losses(model.mean())[0]
    fresh = initial(space, 60, np.random.default_rng(99))
    guesses = [predicted_GK[np.arange(GENES), np.array(g)].sum() for g in fresh]
    assert np.corrcoef(guesses, [loss(g) for g in fresh])[0, 1] > 0.98
    best = tuple(cheapest(space, model.losses(model.mean()))[0].tolist())
    alone = [[loss((0,) * g + (k,) + (0,) * (GENES - g - 1)) for k in range(LEVELS)] for g in range(GENES)]
    least = tuple(cheapest(space, np.array([alone]))[0].tolist())
    assert loss(best) <= 1.02 * loss(least)


def test_draws_narrow_with_what_is_known(space):
    loss, model = truth(2), AdditiveModel(space)
    spreads = []
    for rung in range(8):
        genotypes = initial(space, 24, np.random.default_rng([1, rung]))
        each = told(genotypes, loss, rung)
        model.learn(genotypes, each.losses_NB, each.tokens_B)
        draws = model.draws(64, np.random.default_rng(5))
        spreads.append(np.median(draws.std(axis=0)))
        assert np.abs(draws.mean(axis=0) - model.mean()[0]).max() < 5 * draws.std(axis=0).max()
    assert spreads[-1] < 0.5 * spreads[0]


def test_candidates_without_a_loss_say_nothing(space):
    loss, plain, broken = truth(3), AdditiveModel(space), AdditiveModel(space)
    genotypes = initial(space, 12, np.random.default_rng(0))
    each = told(genotypes, loss)
    plain.learn(genotypes, each.losses_NB, each.tokens_B)
    worse = initial(space, 3, np.random.default_rng(7))
    broken.learn((*genotypes, *worse), np.vstack([each.losses_NB, np.full((3, 8), np.inf)]), each.tokens_B)
    assert np.array_equal(plain.mean(), broken.mean())
    broken.learn(worse, np.full((3, 8), np.nan), each.tokens_B)
    assert broken.candidates == 12


def searched(space, loss, proposals, generations, seed=0):
    strategy = OnePlusLambda(
        space, offspring=16, rungs=rungs([4, 1], [80, 320]), mutation=LevelSwitch(), seed=seed, generations=generations,
        race=partial(SequentialRace, merge=partial(merged, space)), proposals=proposals(space, LevelSwitch()),
    )  # fmt: skip
    spent = 0
    while not strategy.stop:
        race, known = strategy.ask(), []
        while (wanted := race.ask()) is not None:
            blocks = -(-wanted.tokens // 10)
            each = told(wanted.genotypes, loss, wanted.rung, 0.02, blocks, seed * 1000 + strategy.generation)
            known.append(Told(wanted, each.losses_NB, each.tokens_B))
            race.tell(each.losses_NB, each.tokens_B)
            spent += wanted.tokens * len(wanted.genotypes)
        strategy.tell(strategy.outcome(race.result), known)
    return loss(strategy.parent), spent


@pytest.mark.parametrize("interaction", [0.0, 2.0])
def test_what_is_learned_beats_blind_mutation_in_as_many_generations_also_where_losses_are_no_sums(space, interaction):
    better = 0
    for seed in range(5):
        loss = truth(10 + seed, interaction)
        learned, _ = searched(space, loss, Learned, 10, seed)
        blind, _ = searched(space, loss, Mutants, 10, seed)
        assert learned < loss(space.uniform())
        better += learned < blind
    assert better >= 4


@pytest.mark.parametrize("proposals", [Learned, Screened, Mutants])
def test_offspring_are_distinct_legal_and_new(space, proposals):
    loss, makes = truth(4), proposals(space, LevelSwitch())
    parent = space.uniform()
    for generation in range(4):
        offspring = makes.offspring((parent,), 20, np.random.default_rng(generation))
        assert offspring == makes.offspring((parent,), 20, np.random.default_rng(generation))
        assert len(set(offspring)) == len(offspring) == 20
        assert parent not in offspring
        assert all(map(space.is_legal, offspring))
        makes.learn([told((parent, *offspring), loss, generation)])


@pytest.mark.parametrize("proposals", [Learned, Screened])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_offspring_where_genes_silence_others(switched_space, proposals, data):
    space = data.draw(switched_space)
    makes = proposals(space, LevelSwitch())
    start = initial(space, 8, np.random.default_rng(0))
    values = np.random.default_rng(1).random((len(space.genes), 8))
    makes.learn([told(start, lambda g: float(sum(values[i, level] for i, level in enumerate(g))))])
    offspring = makes.offspring(start[:1], 6, np.random.default_rng(2))
    assert all(map(space.is_legal, offspring))
    assert len(set(offspring)) == len(offspring)
    assert start[0] not in offspring


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_sums_count_silent_genes_at_their_highest(switched_space, data, seed):
    space = data.draw(switched_space)
    genotypes = initial(space, 6, np.random.default_rng(seed))
    table_GK = np.random.default_rng(seed).standard_normal(space.costs_GK.shape)
    for genotype, found in zip(genotypes, AdditiveModel(space).sums(table_GK, genotypes), strict=True):
        levels = zip(genotype, space.silent(genotype), space.highest(), strict=True)
        counted = [top if silent else level for level, silent, top in levels]
        assert found == pytest.approx(sum(table_GK[gene, level] for gene, level in enumerate(counted)))


def test_merging_makes_the_changes_of_several_children_at_once(space_of):
    space = space_of([[1, 2, 3]] * 4, 8)
    parent, first, second, third = (1, 1, 1, 1), (2, 0, 1, 1), (1, 1, 2, 0), (0, 2, 1, 1)
    assert merged(space, parent, [first, second]) == ((2, 0, 2, 0),)
    assert merged(space, parent, [first, third]) == ()  # they change the same genes
    assert merged(space, parent, [first, (1, 1, 2, 1)]) == ()  # too dear together


def test_a_model_that_begins_with_lessons_goes_on_as_the_one_that_learned_them(space):
    loss = truth(3)
    first, second = (
        told(initial(space, 24, np.random.default_rng(each)), loss, rung=each, seed=each) for each in (1, 2)
    )
    whole = AdditiveModel(space)
    for each in (first, second):
        whole.learn(each.measurement.genotypes, each.losses_NB, each.tokens_B)
    before = AdditiveModel(space)
    before.learn(first.measurement.genotypes, first.losses_NB, first.tokens_B)
    after = AdditiveModel(space, before.lessons)
    after.learn(second.measurement.genotypes, second.losses_NB, second.tokens_B)
    assert np.array_equal(after.mean(), whole.mean())
    assert after.candidates == whole.candidates
    # Lessons are a copy: what is learned later is not in them.
    assert before.lessons["candidates"] == len(first.measurement.genotypes)


def test_lessons_of_other_genes_are_refused(space, space_of):
    other = space_of([[1, 2, 3]] * 3, 6)
    with pytest.raises(ValueError, match="lessons of other genes than the 16 with 4 steps each"):
        AdditiveModel(space, AdditiveModel(other).lessons)
