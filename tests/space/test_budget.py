from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.space import Budget, Measure


@given(st.integers(1, 10**13), st.integers(1, 9999))
def test_targets_in_bits_and_bpw_are_taken_as_the_decimal_they_print_as(weights, thousandths):
    target = thousandths / 1000
    for measure in (Measure.BITS, Measure.BPW):
        # A whole-number reference: thousandths of a bit, rounded down.
        assert Budget(measure, target).limit(weights=weights, other_bytes=77) == weights * thousandths // 1000


def test_a_whole_target_is_exact_where_floats_are_not():
    weights = 2**61 + 1
    assert int(3.0 * weights) != 3 * weights
    assert Budget(Measure.BITS, 3.0).limit(weights=weights, other_bytes=0) == 3 * weights
    assert Budget(Measure.BITS, 3.0).allowance(weights=weights, other_bytes=0) == Fraction(3 * weights)
    # 2.3 is below 23/10 as a float; a limit of 22 of 10 weights would cost a bit.
    assert Budget(Measure.BITS, 2.3).limit(weights=10, other_bytes=0) == 23


@given(st.integers(1, 10**15), st.integers(0, 10**15))
def test_a_size_leaves_what_the_rest_of_the_checkpoint_does_not_take(size, other):
    assert Budget(Measure.SIZE, size).limit(weights=5, other_bytes=other) == size - other


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_targets_that_are_no_amount_are_refused(target):
    with pytest.raises(UserError, match="above 0"):
        Budget(Measure.BITS, target)


@pytest.mark.parametrize(
    ("measure", "target", "level"),
    [
        (Measure.BITS, 3.0, "3"),
        (Measure.BITS, 4, "4"),
        (Measure.BITS, 3.5, None),
        (Measure.BPW, 3.0, None),
        (Measure.SPARSITY, 0.5, "0.5"),
        (Measure.BITS, 5, None),
    ],
)
def test_only_whole_targets_in_bits_name_a_level(measure, target, level):
    assert Budget(measure, target).whole_level(["2", "3", "4", "0.5"]) == level
