"""A target as users give it, and the whole limit it stands for, without a rounding error on the way.

Holds: `Measure`, `Budget`, `as_number`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from evoray.errors import UserError
from evoray.space.costs import Totals


class Measure(StrEnum):
    """What a budget counts."""

    BITS = "bits"
    """Average code bits per compressible weight, as papers print it."""
    BPW = "bpw"
    """Average bits per compressible weight, scales and zero points included."""
    SIZE = "size"
    """Bytes of the whole checkpoint."""
    SPARSITY = "sparsity"
    """Share of the compressible weights that are zero or dropped."""


@dataclass(frozen=True)
class Budget:
    """A target in one of the measures. Floats are taken for the decimal number they print as: 2.3 is 23/10.

    Attributes:
        measure: what is counted.
        target: bits per weight for `bits` and `bpw`, bytes for `size`, a share for `sparsity`.

    Raises:
        UserError: a target that is not a finite number above 0, or a sparsity of 1 or more.

    >>> Budget(Measure.BITS, 2.3).limit(weights=10**12, other_bytes=0)
    2300000000000
    """

    measure: Measure
    target: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.target) or self.target <= 0:
            raise UserError(f"target {self.measure} {self.target} can't be met; it must be a number above 0")
        if self.measure is Measure.SPARSITY and self.target >= 1:
            raise UserError(f"target sparsity {self.target} would leave nothing; give a share below 1, such as 0.5")

    def __str__(self) -> str:
        if self.measure is Measure.SIZE:
            power = min(max(int(math.log10(self.target)) // 3, 0), 4)
            shown = f" ({self.target / 1000**power:.4g} {'kMGT'[power - 1]}B)" if power else ""
            return f"{self.target:.15g} bytes{shown}"
        return f"{self.target:.15g} {self.measure}"

    def unit_cost(self, totals: Totals, weights: int) -> int:
        """What a level of one layer costs in the budget's unit.

        Args:
            totals: of the layer at that level.
            weights: of the layer.

        Returns:
            Bits for `bits` and `bpw`, bytes for `size`, weights that stay for `sparsity`.
        """
        match self.measure:
            case Measure.BITS:
                return totals.code_bits
            case Measure.BPW:
                return 8 * totals.bytes
            case Measure.SIZE:
                return totals.bytes
            case Measure.SPARSITY:
                return weights - totals.zeros

    def allowance(self, *, weights: int, other_bytes: int) -> Fraction:
        """The target in the budget's unit, exactly; whole or not, and below 0 when a size has no room for layers.

        Args:
            weights: compressible weights.
            other_bytes: bytes of the checkpoint that no choice changes: what is no layer, and layers' records.
        """
        target = Fraction(str(self.target))
        if self.measure is Measure.SPARSITY:
            return (1 - target) * weights
        return target - other_bytes if self.measure is Measure.SIZE else target * weights

    def limit(self, *, weights: int, other_bytes: int) -> int:
        """The largest whole cost that is within the target; arguments as for `allowance`."""
        return math.floor(self.allowance(weights=weights, other_bytes=other_bytes))

    def describe(self, cost: int, *, weights: int, other_bytes: int, up: bool) -> str:
        """A cost in the target's own unit, for messages.

        Args:
            cost: in the budget's unit.
            weights: compressible weights.
            other_bytes: as for `allowance`.
            up: rounds up, so that a lowest bound copied from a message can be met; else down.
        """
        if self.measure is Measure.SIZE:
            return str(Budget(self.measure, cost + other_bytes))
        if self.measure is Measure.SPARSITY:  # the more is kept, the lower
            whole = math.floor if up else math.ceil
            return f"{whole((1 - Fraction(cost, weights)) * 10_000) / 10_000} {self.measure}"
        whole = math.ceil if up else math.floor
        return f"{whole(Fraction(cost, weights) * 10_000) / 10_000} {self.measure}"

    def whole_level(self, levels: Sequence[str]) -> str | None:
        """The level that meets the target in every layer at once: `3` for a target of 3.0 bits, `0.5` for a sparsity.

        Args:
            levels: those there are.
        """
        target = Fraction(str(self.target))
        if self.measure not in (Measure.BITS, Measure.SPARSITY):
            return None
        return next((level for level in levels if as_number(level) == target), None)


def as_number(level: str) -> Fraction | None:
    """A level's label as the number it is, such as bits or a sparsity; None for one that is none."""
    try:
        return Fraction(level)
    except ValueError:
        return None
