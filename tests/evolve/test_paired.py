import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.evolve import Difference, Tally, difference


@pytest.mark.parametrize(
    ("freedom", "t", "p"),
    # Tables of Student's t: one-sided probabilities above t.
    [(1, 6.314, 0.05), (2, 2.920, 0.05), (4, 2.132, 0.05), (4, 3.747, 0.01), (9, 1.833, 0.05), (9, 2.821, 0.01),
     (30, 2.457, 0.01), (100, 2.626, 0.005)],
)  # fmt: skip
def test_doubt_is_students(freedom, t, p):
    within = 0.01 if freedom < 4 else 0.001
    assert Difference(-t, 1.0, freedom + 1).doubt == pytest.approx(p, abs=within)
    assert Difference(t, 1.0, freedom + 1).doubt == pytest.approx(1 - p, abs=within)


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_difference_is_the_paired_mean_with_its_standard_error(blocks, seed):
    draws = np.random.default_rng(seed)
    mine, other = draws.standard_normal((2, blocks)) + 3
    tokens = np.full(blocks, 4)
    found = difference(mine, other, tokens)
    apart = (mine - other) / 4
    assert found.mean == pytest.approx(apart.mean())
    assert found.error == pytest.approx(apart.std(ddof=1) / math.sqrt(blocks))


def test_losses_that_are_missing():
    tokens = np.full(3, 2)
    whole, broken = np.ones(3), np.array([1.0, math.inf, 1.0])
    assert difference(whole, broken, tokens).doubt == 0.0
    assert difference(broken, whole, tokens).doubt == 1.0
    assert difference(broken, broken, tokens).mean == 0.0
    assert difference(whole[:1], whole[:1] + 1, tokens[:1]).doubt == 0.5  # one block tells nothing of chance
    with pytest.raises(ValueError, match="no token"):
        difference(whole, whole, np.zeros(3, dtype=int))


def test_tally_compares_on_what_both_have():
    tally = Tally()
    tally.add([(0,), (1,)], np.array([[2.0, 4.0], [4.0, 8.0]]), np.array([2, 2]))
    tally.add([(0,)], np.array([[100.0]]), np.array([2]))
    assert tally.mean((0,)) == pytest.approx(106 / 6)
    assert tally.mean((0,), 2) == pytest.approx(1.5)
    assert tally.apart((1,), (0,)).mean == pytest.approx(1.5)
    assert (tally.blocks((0,)), tally.asked((1,)), tally.mean((2,))) == (3, 4, math.inf)
    with pytest.raises(ValueError, match="equally many"):
        tally.add([(0,), (1,)], np.ones((2, 1)), np.array([2]))


def test_losses_on_blocks_that_were_cut_otherwise_are_refused():
    tally = Tally()
    tally.add([(0,)], np.ones((1, 3)), np.array([50, 50, 20]))
    tally.add([(1,)], np.ones((1, 2)), np.array([50, 50]))
    with pytest.raises(ValueError, match=r"blocks of \[.*20.*\] tokens, where others had \[.*20.*\]"):
        tally.add([(2,)], np.ones((1, 3)), np.array([50, 20, 50]))
    tally.add([(1,)], np.ones((1, 2)), np.array([20, 30]))
    assert tally.known((1,)).tokens_B.tolist() == [50, 50, 20, 30]
