from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.evolve import LevelSwitch, initial, random_legal
from evoray.space import BareLayer, BareManifest, Budget, Measure, Tie, Wanted, make_space

SEEDS = st.integers(0, 2**32)
SHARES = ("0.25", "0.375", "0.5", "0.625", "0.75")
STEPS = ("-2", "-1", "0", "1", "2")


@dataclass(frozen=True)
class Level:
    code_bits: int
    bytes: int
    kept: int | None


def store(labels=SHARES, layers=6, **settings_of):
    costs = {}
    for label, share in zip(labels, SHARES, strict=True):
        kept = int((1 - Fraction(share)) * 64)
        costs[label] = Level(16 * kept, 2 * kept + 8, kept)
    made = tuple(BareLayer(f"m.{number}.o_proj", number, 8, 8, 128, 0, costs) for number in range(layers))
    return BareManifest(made, 100, tuple(labels), "sparsity", settings_of)


def half(**changes):
    return Wanted(Budget(Measure.SPARSITY, 0.5), tie=Tie.NONE, **changes)


@pytest.mark.parametrize("manifest", [store(), store(STEPS, target_sparsity=0.5)])
def test_the_uniform_start_meets_the_target_exactly(manifest):
    space = make_space(manifest, half())
    assert space.limit == 6 * 32
    assert space.totals(space.uniform()) == (6 * 32,)
    assert space.summary(space.uniform()).sparsity == 0.5
    assert set(space.configuration(space.uniform()).values()) == {manifest.levels[2]}
    assert space.genes[0].levels == tuple(reversed(manifest.levels))


def test_steps_around_another_target_have_no_uniform_start():
    assert make_space(store(STEPS, target_sparsity=0.6), half()).uniform() is None


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([None, 1, 2]), st.sampled_from([None, 0, 2, 5]), st.integers(1, 3))
def test_children_keep_the_sparsity_and_both_limits_of_deviation(seed, most, deviation, maximum):
    space = make_space(store(STEPS, target_sparsity=0.5), half(max_level=most, max_deviation=deviation))
    rng = np.random.default_rng(seed)
    parent = space.uniform()
    for _ in range(6):
        parent = LevelSwitch(True, maximum)(space, parent, rng) or parent
        steps = [abs(int(level)) for level in space.configuration(parent).values()]
        assert space.summary(parent).sparsity == 0.5
        assert max(steps) <= (most or 2)
        assert deviation is None or sum(steps) <= deviation
    assert all(map(space.is_legal, initial(space, 3, rng)))
    if deviation == 0:
        assert random_legal(space, rng) == space.uniform()


def test_what_sparsities_cannot_do_is_named():
    with pytest.raises(UserError, match=r"target 0.8 sparsity is above the highest .* from 0.25 sparsity to 0.75"):
        make_space(store(), Wanted(Budget(Measure.SPARSITY, 0.8)))
    for change, flag in [({"max_level": 1}, "--max-level 1"), ({"max_deviation": 4}, "--max-total-deviation 4")]:
        with pytest.raises(UserError, match=flag):
            make_space(store(), Wanted(Budget(Measure.SPARSITY, 0.55), **change))
