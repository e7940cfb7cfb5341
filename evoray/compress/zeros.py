"""How many weights go: exact counts of zeros from sparsities and from the paper's steps.

Holds `parse_sparsity`, `zeros_at`, `share`, `Sparsities` (levels that are sparsities) and `Steps` (levels that differ
by a fixed count of weights). Whole numbers and fractions only, without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from evoray.errors import UserError

# The rows that candidates travel in hold a level's index in one signed byte.
MOST_STEPS = 63


def parse_sparsity(text: float | str) -> str:
    """A sparsity as a store names it: the shortest decimal, such as "0.5".

    Raises:
        UserError: no number from 0 to below 1.
    """
    try:
        value = Fraction(str(text).strip())
    except (ValueError, ZeroDivisionError):
        raise UserError(f"level '{text}' is no sparsity; give the share of zeros, such as 0.5") from None
    if not 0 <= value < 1:
        raise UserError(f"level {text}: a sparsity is the share of zeros, from 0 to below 1, such as 0.5")
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
        if digits > 12:
            raise UserError(f"level '{text}' is no short decimal; give the share of zeros, such as 0.5")
    return f"{value.numerator * 10**digits // value.denominator / 10**digits:.{digits}f}"


def zeros_at(weights: int, sparsity: str) -> int:
    """Zeros of a layer at a sparsity: rounded up, so that layers at one sparsity meet it together, too.

    Args:
        weights: of the layer.
        sparsity: as a decimal, taken exactly.
    """
    return math.ceil(weights * Fraction(sparsity))


def share(total: int, first: int, last: int, parts: int) -> int:
    """What parts `first` to before `last` get of a total that is spread evenly over all parts.

    What rounding leaves is carried from part to part, so that all shares make up the total exactly.
    """
    return total * last // parts - total * first // parts


@dataclass(frozen=True)
class Sparsities:
    """Levels that are sparsities.

    Attributes:
        labels: decimals, most sparse first.
    """

    labels: tuple[str, ...]

    @classmethod
    def parse(cls, levels: Iterable[float | str]) -> Sparsities:
        """Sparsities as numbers or as a user wrote them, in any order.

        Raises:
            UserError: none, one that is no sparsity, or one named twice.
        """
        found: list[str] = []
        for level in levels:
            label = parse_sparsity(level)
            if label in found:
                raise UserError(f"level {label} is named twice; name it once")
            found.append(label)
        if not found:
            raise UserError("no levels to build; give sparsities, such as 0.4,0.5,0.6")
        return cls(tuple(sorted(found, key=Fraction, reverse=True)))

    @property
    def middle(self) -> str:
        """The level nearest the middle; of two that are equally near, the less sparse one."""
        middle = (Fraction(self.labels[0]) + Fraction(self.labels[-1])) / 2
        return min(self.labels, key=lambda label: (abs(Fraction(label) - middle), Fraction(label)))

    def zeros(self, weights: int) -> dict[str, int]:
        """Level -> zeros, for a layer of that many weights."""
        return {label: zeros_at(weights, label) for label in self.labels}

    def settings(self) -> dict[str, Any]:
        """What a store's header says beside the labels: nothing."""
        return {}


@dataclass(frozen=True)
class Steps:
    """Levels around a target sparsity, each with a fixed count of weights fewer than the one before: the same count in
    every layer, so that two layers can trade one step exactly (EvoPress, section 4.2).

    Attributes:
        target_sparsity: level 0.
        steps: levels on each side of it.
        step_weights: weights of a step.

    Raises:
        UserError: a value that can't be.
    """

    target_sparsity: float
    steps: int
    step_weights: int

    def __post_init__(self) -> None:
        if not 0 < self.target_sparsity < 1:
            raise UserError(f"target sparsity {self.target_sparsity}: choose one above 0 and below 1, such as 0.5")
        parse_sparsity(self.target_sparsity)
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(f"{self.steps} steps on each side: choose 1 to {MOST_STEPS}")
        if self.step_weights < 1:
            raise UserError(f"steps of {self.step_weights} weights: choose at least 1 by --step-weights")

    @classmethod
    def usual(cls, target_sparsity: float, steps: int, step_weights: int | None, hidden_size: int) -> Steps:
        """Steps of the given size, or of the paper's: so that a matrix of the model's width can go half way to the end.

        Args:
            target_sparsity: level 0.
            steps: levels on each side.
            step_weights: weights of a step; None for the paper's.
            hidden_size: the model's width.
        """
        if step_weights is None:
            # In floats, as EvoPress computes it, so that folders and stores of one setting agree.
            step_weights = int(0.5 * min(target_sparsity, 1 - target_sparsity) / steps * hidden_size**2)
            if step_weights < 1:
                raise UserError(
                    f"{steps} steps on each side of sparsity {target_sparsity} are less than a weight each in a model "
                    f"of width {hidden_size}; choose fewer --steps, or a size by --step-weights"
                )
        return cls(target_sparsity, steps, step_weights)

    @property
    def labels(self) -> tuple[str, ...]:
        """Steps from the target, most sparse first: positive ones are sparser, as in EvoPress."""
        return tuple(str(step) for step in range(self.steps, -self.steps - 1, -1))

    @property
    def middle(self) -> str:
        """The target's level."""
        return "0"

    def zeros(self, weights: int) -> dict[str, int]:
        """Level -> zeros, for a layer of that many weights; levels that it has no room for are left out."""
        at_target = zeros_at(weights, str(self.target_sparsity))
        counts = {label: at_target + int(label) * self.step_weights for label in self.labels}
        return {label: zeros for label, zeros in counts.items() if 0 <= zeros <= weights}

    def settings(self) -> dict[str, Any]:
        """What a store's header says beside the labels."""
        return {
            "target_sparsity": self.target_sparsity,
            "steps": self.steps,
            "step_weights": self.step_weights,
        }


def levels_of(labels: tuple[str, ...], settings: dict[str, Any]) -> Sparsities | Steps:
    """The levels that a header's labels and settings mean."""
    if "step_weights" in settings:
        return Steps(settings["target_sparsity"], settings["steps"], settings["step_weights"])
    return Sparsities(labels)
