"""Exact counts: of sparsities, of steps, and of shares whose rounding is carried on."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.compress.zeros import Sparsities, Steps, levels_of, parse_sparsity, share, zeros_at
from evoray.errors import UserError


@pytest.mark.parametrize(
    ("written", "label"),
    [("0.5", "0.5"), ("0.50", "0.5"), (".5", "0.5"), (0.7, "0.7"), ("0", "0"), (" 0.125 ", "0.125"), ("5e-1", "0.5")],
)
def test_a_sparsity_has_one_name(written, label):
    assert parse_sparsity(written) == label


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("half", "level 'half' is no sparsity; give the share of zeros, such as 0.5"),
        ("1/0", "is no sparsity"),
        ("1", "level 1: a sparsity is the share of zeros, from 0 to below 1"),
        ("-0.1", "from 0 to below 1"),
        ("1/3", "is no short decimal"),
        ("nan", "is no sparsity"),
    ],
)
def test_what_is_no_sparsity(written, said):
    with pytest.raises(UserError, match=said):
        parse_sparsity(written)


@given(
    sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=20),
    thousandths=st.integers(0, 999),
)
def test_layers_at_one_sparsity_meet_it_together(sizes, thousandths):
    sparsity = parse_sparsity(thousandths / 1000)
    assert Fraction(sparsity) == Fraction(thousandths, 1000)
    kept = sum(size - zeros_at(size, sparsity) for size in sizes)
    assert kept <= math.floor((1 - Fraction(thousandths, 1000)) * sum(sizes))
    assert kept > (1 - Fraction(thousandths, 1000)) * sum(sizes) - len(sizes)


def test_a_decimal_is_taken_exactly():
    # In floats 0.7 * 10 is 7.000000000000001 in places, and its ceiling 8.
    assert zeros_at(10, "0.7") == 7
    assert zeros_at(100, "0.29") == 29


@given(total=st.integers(0, 10**6), parts=st.integers(1, 500), data=st.data())
def test_shares_make_up_the_total_and_differ_by_one(total, parts, data):
    shares = [share(total, part, part + 1, parts) for part in range(parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    first = data.draw(st.integers(0, parts - 1))
    last = data.draw(st.integers(first + 1, parts))
    assert share(total, first, last, parts) == sum(shares[first:last])


def test_sparsities_are_sorted_most_sparse_first():
    levels = Sparsities.parse(["0.4", 0.65, "0.5"])
    assert levels.labels == ("0.65", "0.5", "0.4")
    assert levels.middle == "0.5"
    assert levels.zeros(1001) == {"0.65": 651, "0.5": 501, "0.4": 401}
    assert levels_of(levels.labels, levels.settings()) == levels
    with pytest.raises(UserError, match=r"level 0\.5 is named twice"):
        Sparsities.parse(["0.5", "0.50"])
    with pytest.raises(UserError, match="no levels to build; give sparsities"):
        Sparsities.parse([])


def test_steps_differ_by_one_count_in_every_layer():
    levels = Steps(0.5, 3, 100)
    assert levels.labels == ("3", "2", "1", "0", "-1", "-2", "-3")
    assert levels.zeros(1001) == {"3": 801, "2": 701, "1": 601, "0": 501, "-1": 401, "-2": 301, "-3": 201}
    # A small layer has no room for all.
    assert levels.zeros(400) == {"2": 400, "1": 300, "0": 200, "-1": 100, "-2": 0}
    assert levels_of(levels.labels, levels.settings()) == levels


def test_the_papers_steps():
    # int(0.5 * min(S, 1 - S) / K * width^2), by hand for Llama-3-8B.
    assert Steps.usual(0.5, 8, None, 4096).step_weights == 524288
    assert Steps.usual(0.7, 8, None, 4096).step_weights == 314572
    assert Steps.usual(0.7, 8, 5, 4096).step_weights == 5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Steps(1.0, 8, 5), "target sparsity 1.0: choose one above 0 and below 1"),
        (lambda: Steps(0.5, 64, 5), "64 steps on each side: choose 1 to 63"),
        (lambda: Steps(0.5, 8, 0), "steps of 0 weights: choose at least 1 by --step-weights"),
        (lambda: Steps.usual(0.5, 63, None, 4), "less than a weight each in a model of width 4; choose fewer --steps"),
    ],
)
def test_steps_that_can_not_be(make, said):
    with pytest.raises(UserError, match=said):
        make()
