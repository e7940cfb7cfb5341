"""OWL's shares, and that they end within the limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.baselines import find_baseline
from evoray.baselines.owl import LAMBDAS, owl_choices
from evoray.errors import UserError
from evoray.space import Gene, Space

owl = find_baseline("owl")
SIZE = 1000


def sparsity_space(blocks, target, *, steps=100):
    """A layer a block; levels keep 0, 1/steps, 2/steps, ... of its weights."""
    kept = tuple(SIZE * step // steps for step in range(steps + 1))
    levels = tuple(f"{1 - each / SIZE:.4g}" for each in kept)
    zeros = tuple(SIZE - each for each in kept)
    genes = tuple(Gene(f"l{b}", b, (f"l{b}",), levels, kept, kept, kept, zeros) for b in range(blocks))
    sites = tuple(gene.name for gene in genes)
    return Space(genes, int((1 - target) * SIZE * blocks), sites, (levels,) * blocks, weights=SIZE * blocks)


def problem_of(made, space, ratios, loss):
    found = made.problem(space, loss, outliers={f"l{b}": {"5": ratio} for b, ratio in enumerate(ratios)})
    object.__setattr__(found, "weights", dict.fromkeys(space.sites, SIZE))
    return found


def test_shares_are_the_formula_of_the_paper(made):
    ratios = [0.01, 0.05, 0.02, 0.04]
    space = sparsity_space(4, 0.5)
    measured = made.Measured(lambda genotype: 0.0)
    owl(problem_of(made, space, ratios, measured))
    assert len(measured.genotypes) == len(LAMBDAS)
    for most, genotype in zip(LAMBDAS, measured.genotypes, strict=True):
        scaled = 2 * most * (np.array(ratios) - 0.01) / 0.04
        kept = 0.5 + scaled - scaled.mean()
        assert np.abs(np.array(genotype) / 100 - kept).max() <= 0.0101
        assert sum(genotype) == 200


def test_of_all_lambdas_and_ms_the_best_is_taken_and_each_measured_once(made):
    space = sparsity_space(3, 0.5)
    outliers = {f"l{b}": {"3": ratio, "5": 1 - ratio, "7": ratio} for b, ratio in enumerate((0.1, 0.2, 0.5))}
    measured = made.Measured(lambda genotype: abs(genotype[2] - 61))
    problem = made.problem(space, measured, outliers=outliers)
    object.__setattr__(problem, "weights", dict.fromkeys(space.sites, SIZE))
    found = owl(problem)
    assert owl_choices(problem) == list(measured.genotypes)
    assert len(measured.genotypes) == len(set(measured.genotypes)) == 2 * len(LAMBDAS)
    assert abs(found[2] - 61) == min(abs(each[2] - 61) for each in measured.genotypes)
    assert found[2] > 50


def test_without_a_difference_between_blocks_it_is_uniform(made):
    space = sparsity_space(3, 0.5)
    assert owl(problem_of(made, space, [0.2] * 3, lambda genotype: 0.0)) == (50, 50, 50)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_levels_end_within_the_limit_and_use_it(data, made):
    count = data.draw(st.integers(1, 6))
    costs = [sorted(data.draw(st.sets(st.integers(1, 30), min_size=1, max_size=5))) for _ in range(count)]
    limit = data.draw(st.integers(sum(each[0] for each in costs), sum(each[-1] for each in costs)))
    genes = tuple(
        Gene(f"l{n}", n // 2, (f"l{n}",), tuple("abcde"[: len(each)]), *(tuple(each),) * 3)
        for n, each in enumerate(costs)
    )
    space = Space(genes, limit, tuple(g.name for g in genes), tuple(g.levels for g in genes), weights=9)
    outliers = {g.name: {"3": data.draw(st.floats(0, 1)), "7": data.draw(st.floats(0, 1))} for g in genes}
    measured = made.Measured(made.losses_of(space, 0))
    owl(made.problem(space, measured, outliers=outliers))
    for genotype in measured.genotypes:
        slack = limit - space.cost(genotype)
        assert slack >= 0
        assert all(
            each[index + 1] - each[index] > slack
            for each, index in zip(costs, genotype, strict=True)
            if index + 1 < len(each)
        )


def test_it_needs_ratios_of_every_layer_and_nothing_to_drop(made):
    space = sparsity_space(2, 0.5)
    with pytest.raises(UserError, match="this store holds none: build it"):
        owl(made.problem(space))
    with pytest.raises(UserError, match="the store has none of l1"):
        owl(made.problem(space, outliers={"l0": {"5": 0.1}}))
    with pytest.raises(UserError, match="owl chooses levels and drops nothing"):
        owl(made.problem(made.depth([3], [1])))
