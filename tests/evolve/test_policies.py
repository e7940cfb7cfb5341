"""What holds of every race policy."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.evolve import Ahead, Doubts, FixedRace, HalvingRace, Known, Rung, SequentialRace, Tally
from evoray.evolve.race import LEAST
from evoray.evolve.sequential import looks_at

POLICIES = {"fixed": FixedRace, "halving": HalvingRace, "sequential": SequentialRace}
BLOCK = 8


def blocks_of(measurement, generation=0):
    """Block numbers of a measurement, in the order of its draw."""
    draw = measurement.drawn
    order = np.random.default_rng([0 if draw.lasting else generation + 1, draw.index]).permutation(4096)
    count = math.ceil(measurement.tokens / BLOCK)
    return np.roll(order, -draw.skip)[:count]


def play(race, loss):
    """Runs a race to its end; `loss(genotype, block)` is per token. Returns tokens asked for, and every measurement."""
    asked, spent = [], 0
    while (wanted := race.ask()) is not None:
        assert race.ask() == wanted
        assert len(set(wanted.genotypes)) == len(wanted.genotypes)
        tokens_B = np.full(math.ceil(wanted.tokens / BLOCK), BLOCK)
        tokens_B[-1] = wanted.tokens - BLOCK * (len(tokens_B) - 1)
        blocks = blocks_of(wanted)
        losses_NB = np.array([[loss(g, block) for block in blocks] for g in wanted.genotypes]) * tokens_B
        race.tell(losses_NB, tokens_B)
        asked.append(wanted)
        spent += wanted.tokens * len(wanted.genotypes)
        assert len(asked) < 1000
    return spent, asked


def most(name, children, parents, rungs):
    """What the rungs allow at most."""
    entering = [children, *(rung.survivors for rung in rungs[:-1])]
    tokens = [rung.tokens for rung in rungs]
    if name == "fixed":
        entering[-1] += parents
        return sum(count * each for count, each in zip(entering, tokens, strict=True))
    more = np.diff([0, *tokens])
    if name == "sequential" and parents:
        more[-1] = tokens[-1]
    return int(sum((count + parents) * each for count, each in zip(entering, more, strict=True)))


@st.composite
def races(draw):
    children = [(number,) for number in range(draw(st.integers(1, 12)))]
    parents = [(100 + number,) for number in range(draw(st.integers(0, 2)))]
    places = max(1, len(parents))
    count = draw(st.integers(1, 3))
    tokens = sorted(draw(st.lists(st.integers(16, 200), min_size=count, max_size=count)))
    survivors = sorted(draw(st.sets(st.integers(places + 1, 14), min_size=count - 1, max_size=count - 1)), reverse=True)
    rungs = [Rung(left, each) for left, each in zip([*survivors, places], tokens, strict=True)]
    return children, parents, rungs


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=120, deadline=None)
@given(races(), st.integers(0, 2**32))
def test_without_noise_the_best_wins_and_no_more_is_spent_than_allowed(name, setup, seed):
    children, parents, rungs = setup
    draws = np.random.default_rng(seed)
    values = dict(zip([*parents, *children], draws.permutation(len(parents) + len(children)) + 1.0, strict=True))
    race = POLICIES[name](children, parents, rungs, {})
    spent, _ = play(race, lambda g, block: values[g])
    everyone = sorted(values, key=values.__getitem__)
    assert race.result.winner == everyone[0]
    assert race.result.fitness == pytest.approx(values[everyone[0]])
    assert spent <= most(name, len(children), len(parents), rungs)
    assert (race.result.doubt is None) or race.result.winner not in parents


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(races(), st.integers(0, 2**32), st.sampled_from(["noise", "infinite", "equal", "nan"]))
def test_any_losses_and_any_order_of_candidates(name, setup, seed, kind):
    children, parents, rungs = setup
    table = np.random.default_rng(seed).standard_normal((128, 4096)) * 0.5 + np.arange(128)[:, None] % 7

    def loss(genotype, block):
        if kind == "equal":
            return 2.0
        if kind in ("infinite", "nan") and genotype[0] % 2:
            return math.inf if kind == "infinite" else math.nan
        return float(table[genotype[0], block])

    results = []
    for order in (children, children[::-1]):
        race = POLICIES[name](order, parents, rungs, {})
        spent, _ = play(race, loss)
        assert spent <= most(name, len(children), len(parents), rungs)
        results.append(race.result)
    first = results[0]
    assert first.kept[0] == first.winner
    assert len(set(first.kept)) == len(first.kept)
    assert set(first.kept) <= {*parents, *children}
    if kind == "equal":
        assert first.winner == (parents[0] if parents else children[0])
    else:
        assert first.winner == results[1].winner or not math.isfinite(first.fitness)
    if parents and all(math.isfinite(loss(parent, 0)) for parent in parents):
        assert math.isfinite(first.fitness)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=120, deadline=None)
@given(races(), st.integers(0, 2**32), st.floats(0.0, 2.0))
def test_what_may_come_next_is_told_as_it_is_asked_for_then(name, setup, seed, spread):
    children, parents, rungs = setup
    table = np.random.default_rng(seed).standard_normal((128, 4096)) * spread + np.arange(128)[:, None] % 7
    said: list[Ahead] = []
    race = POLICIES[name](children, parents, rungs, {})
    hinted = 0
    while (wanted := race.ask()) is not None:
        same = [each for each in said if not each.later and each.measurement.drawn == wanted.drawn]
        for each in same:
            # Blocks are composed from draw and tokens: were the tokens others, nothing of it could be used.
            assert each.measurement.tokens == wanted.tokens
            hinted += bool(set(each.measurement.genotypes) & set(wanted.genotypes))
        tokens_B = np.full(math.ceil(wanted.tokens / BLOCK), BLOCK)
        tokens_B[-1] = wanted.tokens - BLOCK * (len(tokens_B) - 1)
        said = list(race.ahead(lambda of: math.ceil(of.tokens / BLOCK)))
        assert set(said) == set(race.ahead(lambda of: math.ceil(of.tokens / BLOCK)))
        for each in said:
            assert each.measurement.tokens > 0
            assert set(each.measurement.genotypes) <= {*parents, *children}
        losses_NB = np.array([[table[g[0], block] for block in blocks_of(wanted)] for g in wanted.genotypes]) * tokens_B
        race.tell(losses_NB, tokens_B)
    assert race.ahead(lambda of: 1) == ()
    if not parents:
        assert not said
    # In the next generation everyone who went on is measured as was told, whoever it is.
    kept = race.result.kept[: len(parents)]
    newcomers = [(50 + number,) for number in range(rungs[0].survivors + 1)]
    following = POLICIES[name](newcomers, kept, rungs, {}).ask()
    for each in said:
        if each.later:
            assert following is not None
            assert following.drawn == each.measurement.drawn
            assert following.tokens == each.measurement.tokens
            assert set(kept) <= set(each.measurement.genotypes)
    if name == "halving" and parents and len(rungs) > 1 and len(children) > rungs[0].survivors:
        assert hinted or rungs[0].tokens + LEAST > rungs[-1].tokens


def noisy(gap, seed, spread=1.0):
    """Parent (0,) at 10, child (1,) higher by `gap`, on blocks that differ far more than they do."""
    draws = np.random.default_rng(seed)
    common, own = draws.standard_normal(4096) * 20, draws.standard_normal((2, 4096)) * spread
    return lambda genotype, block: 10 + common[block] + own[genotype[0], block] + gap * genotype[0]


def test_a_child_as_good_as_its_parent_hardly_ever_wins_and_a_better_one_mostly_does():
    rungs = [Rung(2, 32), Rung(1, 512)]
    wins = {}
    for gap in (0.0, -0.8):
        won = 0
        for seed in range(400):
            race = SequentialRace([(1,)], [(0,)], rungs, {}, doubts=Doubts(accepting=0.05))
            play(race, noisy(gap, seed))
            won += race.result.winner == (1,)
            assert (race.result.doubt is not None) == (race.result.winner == (1,))
        wins[gap] = won / 400
    # 5% of 400 with a standard deviation of 1.1%.
    assert wins[0.0] <= 0.05 + 3 * 0.011
    assert wins[-0.8] > 0.9


def among(values, seed):
    """Each genotype at its value, on blocks that differ far more than they do."""
    draws = np.random.default_rng(seed)
    common, own = draws.standard_normal(4096) * 20, draws.standard_normal((len(values), 4096))
    place = {genotype: number for number, genotype in enumerate(values)}
    return lambda genotype, block: 10 + values[genotype] + common[block] + own[place[genotype], block]


def test_what_races_risk_is_more_than_what_happens():
    """Twelve children as good as the parent: whoever wins wins by chance, however many there are."""
    children, wrong, risk = [(number,) for number in range(1, 13)], 0, 0.0
    for seed in range(300):
        race = SequentialRace(children, [(0,)], [Rung(4, 32), Rung(1, 512)], {})
        play(race, among(dict.fromkeys([(0,), *children], 0.0), seed))
        wrong += race.result.winner != (0,)
        risk += race.result.risk
    assert wrong > 0
    # A standard deviation of the number of wrong ones is less than its root.
    assert wrong <= risk + 3 * risk**0.5
    assert risk <= 0.05 * 300 + 1e-9


@pytest.mark.parametrize("count", [2, 6])
def test_of_several_equal_parents_none_is_replaced_more_often_than_a_single_one(count):
    parents, children = [(number,) for number in range(count)], [(number,) for number in range(10, 22)]
    entered = 0
    for seed in range(300):
        race = SequentialRace(children, parents, [Rung(count + 2, 32), Rung(count, 512)], {})
        play(race, among(dict.fromkeys([*parents, *children], 0.0), seed))
        assert len(race.result.kept) == count
        entered += bool(set(race.result.kept) - set(parents))
    # 5% of 300 with a standard deviation of 1.3%.
    assert entered / 300 <= 0.05 + 3 * 0.013


def test_a_child_between_two_parents_takes_the_place_of_the_weaker_alone():
    values = {(0,): 0.0, (1,): 3.0, **{(number,): 0.3 for number in range(10, 16)}}
    entered = 0
    for seed in range(100):
        race = SequentialRace(list(values)[2:], [(0,), (1,)], [Rung(3, 64), Rung(2, 512)], {})
        play(race, among(values, seed))
        entered += race.result.kept != ((0,), (1,))
        # Now and then chance has a child pass the best parent, but no more often than doubts allow.
        assert race.result.kept[0] == (0,) or race.result.doubt is not None
        assert race.result.kept[0] == (0,) or race.result.doubt <= 0.05
        if race.result.kept[0] == (0,):
            assert race.result.doubt is None
    assert entered > 90


def test_as_many_children_enter_as_are_better_than_the_parents_that_go():
    values = {(0,): 5.0, (1,): 6.0, (2,): 9.0, (10,): 2.0, (11,): 8.0}
    race = SequentialRace([(10,), (11,)], [(0,), (1,), (2,)], [Rung(3, 512)], {})
    play(race, lambda genotype, block: values[genotype] + block % 7)
    # Both are better than the weakest; the second is no better than the next, whom it would leave without a place.
    assert race.result.kept == ((10,), (0,), (1,))
    values[(11,)] = 4.0
    race = SequentialRace([(10,), (11,)], [(0,), (1,), (2,)], [Rung(3, 512)], {})
    play(race, lambda genotype, block: values[genotype] + block % 7)
    assert race.result.kept == ((10,), (11,), (0,))


def test_where_the_worst_is_looked_for_what_is_not_worth_the_tokens_is_left_alike():
    """Losses of such a search are negative."""
    spent = []
    for level in (1.0, -1.0):
        race = SequentialRace([(1,)], [(0,)], [Rung(1, 4096)], {})
        spent.append(play(race, lambda genotype, block, level=level: level - 0.0003 * genotype[0])[0])
    assert spent[0] == spent[1] < 2 * 4096


def test_what_is_known_of_the_parent_is_not_measured_again_and_changes_nothing():
    rungs = [Rung(2, 32), Rung(1, 512)]
    loss = noisy(-0.5, 3)
    plain = SequentialRace([(1,)], [(0,)], rungs, {})
    spent, asked = play(plain, loss)
    tally = Tally()
    for wanted in asked:
        if wanted.drawn.lasting and (0,) in wanted.genotypes:
            tokens_B = np.full(wanted.tokens // BLOCK, BLOCK)
            tally.add([(0,)], np.array([[loss((0,), block) for block in blocks_of(wanted)]]) * tokens_B, tokens_B)
    known = SequentialRace([(1,)], [(0,)], rungs, {(0,): tally.known((0,))})
    spent_less, asked_less = play(known, loss)
    assert not any((0,) in wanted.genotypes for wanted in asked_less if wanted.drawn.lasting)
    assert spent_less == spent - tally.asked((0,))
    assert known.result.winner == plain.result.winner
    assert known.result.fitness == plain.result.fitness


def test_blocks_that_chose_the_parents_are_passed_over():
    rungs = [Rung(2, 32), Rung(1, 512)]
    nothing = Known(np.zeros(0), np.zeros(0, dtype=np.int64), 0, skip=37)
    race = SequentialRace([(1,)], [(0,)], rungs, {(0,): nothing})
    assert [each.measurement.drawn.skip for each in race.ahead(lambda wanted: 1)] == [37]
    _, asked = play(race, noisy(-0.5, 3))
    lasting = [wanted for wanted in asked if wanted.drawn.lasting]
    assert lasting[0].genotypes == ((0,), (1,))
    assert lasting[0].drawn.skip == 37
    assert all(wanted.drawn.skip >= 37 for wanted in lasting)


def test_a_parent_that_is_known_on_fewer_looks_catches_up():
    rungs = [Rung(2, 32), Rung(1, 512)]
    loss = noisy(-0.3, 8)
    first = looks_at(512)[0]
    blocks = np.random.default_rng([0, 0]).permutation(4096)[: first // BLOCK]
    known = Known(np.array([loss((0,), block) for block in blocks]) * BLOCK, np.full(len(blocks), BLOCK), first)
    race = SequentialRace([(1,)], [(0,)], rungs, {(0,): known})
    _, _asked = play(race, loss)
    plain = SequentialRace([(1,)], [(0,)], rungs, {})
    play(plain, loss)
    assert race.result.winner == plain.result.winner
    assert race.result.fitness == plain.result.fitness


def test_candidates_that_are_worse_beyond_doubt_leave_before_the_rung_ends():
    children = [(number,) for number in range(6)]
    table = np.random.default_rng(1).standard_normal((7, 4096)) * 0.01
    race = SequentialRace(children, [(6,)], [Rung(4, 64), Rung(2, 1024), Rung(1, 1024)], {})
    _, asked = play(race, lambda g, block: g[0] + float(table[g[0], block]))
    choosing = [len(wanted.genotypes) for wanted in asked if not wanted.drawn.lasting]
    assert choosing == [7]  # one look is enough, where they differ by a hundred times their spread
    assert race.result.winner == (0,)


def test_merged_children_race_from_the_first_rung():
    merged = []

    def merge(parent, better):
        merged.append((parent, tuple(better)))
        return [(9,)]

    values = {(0,): 5.0, (1,): 4.0, (2,): 3.0, (3,): 6.0, (9,): 1.0}
    race = partial(SequentialRace, merge=merge)([(1,), (2,), (3,)], [(0,)], [Rung(2, 64), Rung(1, 128)], {})
    _, asked = play(race, lambda g, block: values[g])
    assert merged == [((0,), ((2,), (1,)))]
    assert asked[1].genotypes == ((9,),)
    assert asked[1].drawn == asked[0].drawn
    assert asked[1].tokens == 64
    assert race.result.winner == (9,)
