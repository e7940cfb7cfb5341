from dataclasses import dataclass

import pytest

from evoray.errors import UserError
from evoray.space import BareLayer, BareManifest, Budget, Measure, Wanted, configuration_costs, make_space


@dataclass(frozen=True)
class Level:
    code_bits: int
    bytes: int
    kept: int | None = None


# 64 weights: codes of what stays, and a mask of 8 bytes where something went.
COSTS = {
    "2": Level(128, 16),
    "3": Level(192, 24),
    "0.5": Level(512, 72, 32),
    "4": Level(256, 32),
    "4x0.5": Level(128, 24, 32),
}


def store(levels=tuple(COSTS)):
    costs = {level: COSTS[level] for level in levels}
    layers = tuple(BareLayer(f"m.{number}.o_proj", number, 8, 8, 128, 4, costs) for number in range(3))
    return BareManifest(layers, 100, levels, "joint")


def test_levels_go_by_what_they_cost_whatever_they_are():
    space = make_space(store(), Wanted(Budget(Measure.SIZE, 100 + 3 * (4 + 30))))
    # 3 and 4x0.5 take the same bytes; the one with more code bits is left.
    assert space.genes[0].levels == ("2", "3", "4", "0.5")
    assert space.labels[0] == tuple(COSTS)
    assert space.uniform() is None
    genotype = (0, 2, 3)
    costs = configuration_costs(store(), space.configuration(genotype))
    assert space.summary(genotype) == costs
    assert costs.sparsity == 32 / 192
    assert space.is_legal(genotype) == (costs.size <= 202)


def test_sparse_codes_cost_the_bytes_of_their_mask_but_no_code_bits():
    both = store(("3", "4x0.5"))
    assert make_space(both, Wanted(Budget(Measure.BITS, 3.0))).genes[0].levels == ("4x0.5", "3")
    assert make_space(both, Wanted(Budget(Measure.BITS, 3.0))).uniform() == (1, 1, 1)
    with pytest.raises(UserError, match=r"costs the same at levels (2 and 4x0.5|4x0.5 and 2)"):
        make_space(store(), Wanted(Budget(Measure.BITS, 3.0)))
