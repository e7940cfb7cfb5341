"""The best of random genotypes, and how baselines are found."""

from dataclasses import replace

import pytest

from evoray.baselines import BASELINES, find_baseline
from evoray.errors import UserError

random = find_baseline("random")


def test_it_is_the_best_of_distinct_legal_genotypes(made):
    space = made.joint([[1, 3, 4]] * 6, [0, 0, 1, 1, 2, 2], 13)
    loss = made.losses_of(space, 1)
    measured = made.Measured(loss)
    found = random(made.problem(space, measured, candidates=20))
    assert len(set(measured.genotypes)) == len(measured.genotypes) == 20
    assert all(map(space.is_legal, measured.genotypes))
    assert loss(found) == min(map(loss, measured.genotypes))
    assert found == random(made.problem(space, loss, candidates=20))


def test_seeds_draw_other_genotypes(made):
    space = made.depth([12, 12], [4, 4])
    first, second = made.Measured(made.losses_of(space, 1)), made.Measured(made.losses_of(space, 1))
    random(made.problem(space, first, candidates=5))
    random(made.problem(space, second, candidates=5, seed=1))
    assert set(first.genotypes) != set(second.genotypes)


def test_a_loss_that_is_no_number_never_wins(made):
    space = made.depth([4], [1])
    good = (1, 1, 0, 1)
    problem = made.problem(space, lambda genotype: 1.0 if genotype == good else float("nan"), candidates=50)
    assert random(problem) == good


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(UserError, match="did you mean uniform") as raised:
        find_baseline("unifrom")
    assert all(name in str(raised.value) for name in BASELINES)


@pytest.mark.parametrize("name", ["greedy", "dp"])
def test_what_deviates_too_far_is_refused_in_one_line(name, made):
    space = replace(made.levels([[1, 2, 3]] * 4, 8), center=(1,) * 4, max_deviation=0)
    errors = {gene.name: {"0": 3.0, "1": 2.9, "2": 0.0} for gene in space.genes}
    values = [3.0, 2.9, 0.0]
    problem = made.problem(space, lambda genotype: sum(values[index] for index in genotype), errors=errors)
    with pytest.raises(UserError, match=f"{name} deviates by 4 steps and --max-total-deviation is 0"):
        find_baseline(name)(problem)
    assert find_baseline("brute-force")(problem) == (1,) * 4
