import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.evolve import FixedRace, Measurement, Rung, rungs

PARENT = (9, 9)
PAPER = rungs([4, 2, 1], [10, 20, 40])


def play(race, loss_of, blocks=((3, 1.0), (5, 1.0))):
    """Drives a race on losses per token `loss_of(rung, genotype)`, spread over blocks that vary around them."""
    asked = []
    while (measurement := race.ask()) is not None:
        assert race.ask() == measurement
        asked.append(measurement)
        tokens = np.array([count for count, _ in blocks])
        each = np.array([[loss_of(measurement.rung, g) for _ in blocks] for g in measurement.genotypes])
        race.tell(each * tokens, tokens)
    return asked, race.result


def slow_reference(offspring, parent, stages, loss_of):
    """The paper's loop, written plainly, with the rules for ties and for losses that are no number."""
    left = list(offspring)
    for number, stage in enumerate(stages):
        final = number == len(stages) - 1
        if final and parent is not None:
            left = [parent] + [g for g in left if g != parent]
        kept = []
        for _ in range(min(stage.survivors, len(left))):
            best = None
            for genotype in left:
                loss = loss_of(number, genotype)
                known = not (math.isnan(loss) or math.isinf(loss))
                if genotype not in kept and known and (best is None or loss < loss_of(number, best)):
                    best = genotype
            if best is not None:
                kept.append(best)
        # A rung before the last that has room for all is passed over, with its order untouched.
        if final or len(left) > stage.survivors:
            left = kept
    if left:
        return left[0], loss_of(len(stages) - 1, left[0])
    return (offspring[0] if parent is None else parent), math.inf


# Few values, so that ties and losses that are no number are common; quarters, so that sums are exact.
LOSSES = st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.25, math.nan, math.inf, -math.inf])


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 8), st.sampled_from(["none", "apart", "among"]), st.integers(1, 3))
def test_a_fixed_race_is_the_slow_loop(data, count, parent_is, stages):
    offspring = [(number, 0) for number in range(count)]
    if parent_is == "among":
        offspring.insert(data.draw(st.integers(0, count)), PARENT)
    elif parent_is == "none" and not offspring:
        offspring = [(0, 0)]
    parent = None if parent_is == "none" else PARENT
    survivors = sorted(data.draw(st.sets(st.integers(2, 6), min_size=stages - 1, max_size=stages - 1)), reverse=True)
    stages = rungs([*survivors, 1], range(2, stages + 2))
    table = {(r, g): data.draw(LOSSES) for r in range(len(stages)) for g in [*offspring, PARENT]}
    asked, result = play(
        FixedRace(offspring, [] if parent is None else [parent], stages), lambda rung, g: table[rung, g]
    )
    winner, fitness = slow_reference(offspring, parent, stages, lambda rung, g: table[rung, g])
    assert (result.winner, result.fitness) == (winner, fitness)
    assert [m.tokens for m in asked] == [stages[m.rung].tokens for m in asked]
    assert len(result.measured) == len(stages)
    for measurement in asked:
        assert tuple(g for g, _ in result.measured[measurement.rung]) == measurement.genotypes
        assert len(set(measurement.genotypes)) == len(measurement.genotypes)
    if parent is not None:
        assert asked[-1].rung == len(stages) - 1
        assert PARENT in asked[-1].genotypes
        told = table[len(stages) - 1, PARENT]
        assert result.parent_fitness == (told if math.isfinite(told) else math.inf)
        assert all(PARENT not in m.genotypes for m in asked[:-1]) or parent_is == "among"
    else:
        assert result.parent_fitness is None


def test_the_parent_joins_by_position_not_by_survivors():
    stages = (Rung(1, 10), Rung(1, 20), Rung(1, 30))
    asked, _ = play(FixedRace([(0, 0), (1, 0)], [PARENT], stages), lambda rung, g: 1.0)
    assert asked == [Measurement(0, ((0, 0), (1, 0)), 10), Measurement(2, (PARENT, (0, 0)), 30)]


def test_a_child_must_be_strictly_better_than_the_parent():
    offspring = [(0, 0), (1, 0)]
    assert play(FixedRace(offspring, [PARENT], PAPER), lambda rung, g: 2.0)[1].winner == PARENT
    _, result = play(FixedRace(offspring, [PARENT], PAPER), lambda rung, g: 2.0 - (g == (1, 0)) * 1e-12)
    assert result.winner == (1, 0)
    assert result.fitness < result.parent_fitness == 2.0


def test_the_mean_is_by_token_not_by_block():
    race = FixedRace([(0,), (1,)], [], [Rung(1, 110)])
    # (0,) is better in the mean of blocks, (1,) by token.
    race.tell(np.array([[0.0, 150.0], [8.0, 100.0]]), np.array([10, 100]))
    assert race.result.winner == (1,)
    assert race.result.fitness == 108 / 110
    assert race.result.measured == ((((0,), 150 / 110), ((1,), 108 / 110)),)


def test_one_bad_block_makes_a_loss_infinite_even_against_minus_infinity():
    race = FixedRace([(0,), (1,), (2,)], [], [Rung(1, 2)])
    race.tell(np.array([[np.nan, 1.0], [np.inf, -np.inf], [50.0, 50.0]]), np.array([1, 1]))
    assert race.result.winner == (2,)
    assert [loss for _, loss in race.result.measured[0]] == [math.inf, math.inf, 50.0]


def test_when_nothing_can_be_measured_the_parent_is_tried_once_and_stays():
    offspring = [(number, 0) for number in range(8)]
    asked, result = play(FixedRace(offspring, [PARENT], PAPER), lambda rung, g: math.nan if g != PARENT else 3.0)
    assert [(m.rung, m.genotypes) for m in asked] == [(0, tuple(offspring)), (2, (PARENT,))]
    assert (result.winner, result.fitness) == (PARENT, 3.0)
    _, result = play(FixedRace(offspring, [PARENT], PAPER), lambda rung, g: math.inf)
    assert (result.winner, result.fitness, result.parent_fitness) == (PARENT, math.inf, math.inf)
    _, result = play(FixedRace(offspring, [], PAPER), lambda rung, g: math.inf)
    assert (result.winner, result.fitness, result.measured[1:]) == ((0, 0), math.inf, ((), ()))


def test_a_parent_without_a_loss_gives_way():
    _, result = play(FixedRace([(0, 0)], [PARENT], PAPER), lambda rung, g: math.nan if g == PARENT else 7.0)
    assert (result.winner, result.fitness, result.parent_fitness) == ((0, 0), 7.0, math.inf)


@settings(max_examples=50, deadline=None)
@given(st.permutations([(number, 0) for number in range(10)]), st.integers(0, 2**32))
def test_the_order_of_offspring_does_not_matter_without_ties(order, seed):
    rng = np.random.default_rng(seed)
    table = {(r, g): v for r in range(3) for g, v in zip([*sorted(order), PARENT], rng.random(11), strict=True)}
    results = [
        play(FixedRace(each, [PARENT], PAPER), lambda rung, g: table[rung, g])[1] for each in (sorted(order), order)
    ]
    assert results[0].winner == results[1].winner
    assert [dict(m) for m in results[0].measured] == [dict(m) for m in results[1].measured]


def test_rows_sum_the_same_in_any_memory_layout():
    rng = np.random.default_rng(0)
    losses, tokens = rng.random((5, 1001)), np.ones(1001, dtype=np.int64)
    told = []
    for layout in (losses, np.asfortranarray(losses), losses[::-1][::-1]):
        race = FixedRace([(n,) for n in range(5)], [], [Rung(1, 1001)])
        race.tell(layout, tokens)
        told.append(race.result)
    assert told[0] == told[1] == told[2]


def test_misuse_is_named():
    race = FixedRace([(0,)], [], [Rung(1, 8)])
    with pytest.raises(RuntimeError, match="waits for losses of rung 0"):
        _ = race.result
    with pytest.raises(ValueError, match="one for each block"):
        race.tell(np.ones((1, 2)), np.ones(3))
    with pytest.raises(ValueError, match="losses of 2 genotypes were told, of 1"):
        race.tell(np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match="no token"):
        race.tell(np.ones((1, 2)), np.zeros(2))
    race.tell(np.ones((1, 2)), np.ones(2))
    with pytest.raises(RuntimeError, match="decided"):
        race.tell(np.ones((1, 2)), np.ones(2))
    with pytest.raises(ValueError, match="twice"):
        FixedRace([(0,), (0,)], [], [Rung(1, 8)])
    with pytest.raises(ValueError, match="offspring or a parent"):
        FixedRace([], [], [Rung(1, 8)])
    with pytest.raises(ValueError, match="as many survivors as there are parents"):
        FixedRace([], [(0,), (1,)], [Rung(1, 8)])


@pytest.mark.parametrize(
    ("survivors", "tokens", "says"),
    [
        ([16, 4, 1], [10, 20], "3 and 2 entries"),
        ([], [], "none"),
        ([4, 4, 1], [1, 2, 3], "must fall"),
        ([1, 2, 1], [1, 2, 3], "must fall"),
        ([4, 2], [1, 2], "end with 1"),
        ([4, 1], [0, 2], "at least 2 tokens"),
        ([4, 1, 0], [1, 2, 3], "end with 1"),
    ],
)
def test_rungs_that_make_no_race_are_refused(survivors, tokens, says):
    with pytest.raises(UserError, match=says):
        rungs(survivors, tokens)


def test_rungs_whose_tokens_fall_are_refused():
    with pytest.raises(UserError, match="300 200: tokens must not fall"):
        rungs([4, 1], [300, 200])


def test_all_parents_join_the_last_rung_and_its_best_are_the_next_population():
    parents = [(8, 8), (9, 9)]
    losses = {(0, 0): 3.0, (1, 0): 1.0, (2, 0): 2.0, (8, 8): 2.0, (9, 9): 1.5}
    asked, result = play(
        FixedRace([(0, 0), (1, 0), (2, 0)], parents, [Rung(2, 8), Rung(2, 16)]), lambda r, g: losses[g]
    )
    assert asked[-1].genotypes == (*parents, (1, 0), (2, 0))
    assert result.kept == ((1, 0), (9, 9))
    assert (result.winner, result.fitness, result.parent_fitness) == ((1, 0), 1.0, 1.5)


def test_ties_keep_parents_and_parents_without_a_loss_fill_places_that_nobody_else_does():
    parents, stages = [(8, 8), (9, 9)], [Rung(2, 8)]
    assert play(FixedRace([(0, 0)], parents, stages), lambda r, g: 1.0)[1].kept == tuple(parents)
    assert play(FixedRace([(0, 0)], parents, stages), lambda r, g: math.inf)[1].kept == tuple(parents)
    known = {(0, 0): 7.0}
    result = play(FixedRace([(0, 0), (1, 0)], parents, stages), lambda r, g: known.get(g, math.nan))[1]
    assert (result.kept, result.parent_fitness) == (((0, 0), (8, 8)), math.inf)


def test_the_last_survivors_are_the_population():
    assert rungs([8, 2], [2, 3], 2) == (Rung(8, 2), Rung(2, 3))
    with pytest.raises(UserError, match=r"survivors 8 1 .*end with 2, the population, like 32 8 2"):
        rungs([8, 1], [1, 2], population=2)
    with pytest.raises(UserError, match="population of 0"):
        rungs([8, 1], [1, 2], population=0)
