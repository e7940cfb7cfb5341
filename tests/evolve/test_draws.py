import numpy as np
import pytest

from evoray.evolve import Purpose, rng


def test_streams_depend_on_all_that_names_them_and_on_nothing_else():
    names = [(s, g, p, i) for s in (0, 1) for g in (0, 1) for p in Purpose for i in (0, 1)]
    drawn = [tuple(rng(*name).integers(2**63, size=2).tolist()) for name in names]
    assert len(set(drawn)) == len(names)
    np.random.default_rng(0).random()
    assert drawn == [tuple(rng(*name).integers(2**63, size=2).tolist()) for name in names]
    assert drawn[0] == tuple(np.random.default_rng([0, 0, 1, 0]).integers(2**63, size=2).tolist())


def test_recorded_numbers_stay():
    recorded = {"START": 1, "OFFSPRING": 2, "BATCHES": 3, "BASELINE": 4, "LASTING": 5}
    assert {p.name: p.value for p in Purpose} == recorded


def test_negative_names_are_refused():
    with pytest.raises(ValueError, match="-1"):
        rng(-1, 0, Purpose.START)
