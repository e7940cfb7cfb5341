"""A generation that only learns: who is measured, that nobody wins, and when surveys end."""

import numpy as np
import pytest

from evoray.evolve import Learned, LevelSwitch, OnePlusLambda, Rung, Survey, Told, rungs


def told(race, loss_of):
    asked = race.ask()
    losses_NB = np.array([[loss_of(g) * 8, loss_of(g) * 4] for g in asked.genotypes])
    race.tell(losses_NB, np.array([8, 4]))
    return asked


def test_everyone_is_measured_once_and_the_parents_stay():
    survey = Survey([(3,), (0,), (4,)], [(0,), (1,)], Rung(2, 12))
    with pytest.raises(RuntimeError, match="waits"):
        _ = survey.result
    assert survey.ahead(lambda measurement: 1) == ()
    asked = told(survey, lambda g: float(10 - g[0]))
    assert (asked.rung, asked.genotypes, asked.tokens) == (0, ((0,), (1,), (3,), (4,)), 12)
    assert survey.ask() is None
    result = survey.result
    assert (result.winner, result.kept, result.fitness, result.parent_fitness) == ((0,), ((0,), (1,)), 10.0, 9.0)
    assert result.doubt is None
    assert dict(result.measured[0]) == {(0,): 10.0, (1,): 9.0, (3,): 7.0, (4,): 6.0}
    with pytest.raises(RuntimeError, match="over"):
        survey.tell(np.zeros((4, 1)), np.array([12]))


def test_bad_losses_and_no_parent_are_refused():
    with pytest.raises(ValueError, match="needs one"):
        Survey([(3,)], [], Rung(2, 12))
    survey = Survey([(3,)], [(0,)], Rung(1, 12))
    with pytest.raises(ValueError, match="must be"):
        survey.tell(np.zeros((1, 1)), np.array([12]))
    told(survey, lambda g: np.inf)
    assert survey.result.winner == (0,)
    assert survey.result.fitness == np.inf


@pytest.mark.parametrize("survey", [0, 1, 9, 25])
def test_surveys_end_when_so_many_candidates_were_measured(space_of, survey):
    space = space_of([[size * bits for bits in (2, 3, 4, 6)] for size in (1, 2, 3) * 4], 72, level="1")
    weights = np.random.default_rng(0).random(12)

    def loss_of(genotype):
        return 10 - float(weights @ np.array(genotype))

    learned = Learned(space, LevelSwitch(), survey=survey)
    strategy = OnePlusLambda(
        space,
        offspring=8,
        rungs=rungs([4, 1], [8, 16]),
        mutation=LevelSwitch(),
        seed=0,
        generations=12,
        proposals=learned,
        patience=3,
    )
    known, start, measured = 0, strategy.parent, []
    while not strategy.stop:
        surveyed = known < survey
        assert learned.surveys is surveyed
        race, found = strategy.ask(), []
        assert isinstance(race, Survey) is surveyed
        while race.ask() is not None:
            asked = race.ask()
            told(race, loss_of)
            known += len(asked.genotypes)
            found.append(Told(asked, np.array([[loss_of(g) * 12] for g in asked.genotypes]), np.array([12])))
        measured.append(surveyed)
        strategy.tell(strategy.outcome(race.result), found)
        assert strategy.parent == start or not surveyed
    # Patience is with races alone: three surveys in a row do not end it.
    assert measured == sorted(measured, reverse=True)
    assert sum(measured) == -(-survey // 9) < len(measured)
    assert loss_of(strategy.parent) < loss_of(start)
