"""How variants of quantization are made: `Recipe`, `Method`, `Scales`, `HessianInputs`, `parse_levels`.

Everything that decides the result stands in the recipe, in the model, or in the Hessian text; nothing else does.
This file knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from evoray.errors import UserError
from evoray.formats.costs import SCALE_BYTES, CostFormat

KIND = "quantization"
"""What levels of these stores mean, as `StoreHeader.kind` says it."""

LEAST_BITS, MOST_BITS = 2, 8
PER_ROW = -1
"""Group size of one group per row, whatever the layer's width."""

AUTO = "auto"

# Hessians are summed over this many parts of the text, each on its own, and then added in order. So their bits don't
# depend on how many workers had a part in them.
HESSIAN_SHARDS = 8


class Method(StrEnum):
    """How codes are chosen."""

    RTN = "rtn"
    GPTQ = "gptq"


class Scales(StrEnum):
    """How the scale of a group is chosen.

    minmax: the range of the group's weights is covered.
    mse: the scale with the smallest squared error of round-to-nearest, of those of shrunken ranges.
    """

    MINMAX = "minmax"
    MSE = "mse"


class HessianInputs(StrEnum):
    """What the Hessians of a block are made of: inputs from the base model, or from the model quantized so far."""

    BASE = "base"
    QUANTIZED = "quantized"


@dataclass(frozen=True)
class Recipe:
    """How variants are made.

    Attributes:
        method: round to nearest, or GPTQ.
        levels: bits per code, any of 2 to 8, rising.
        group_size: input columns per scale; -1 (or 0) for one scale per row.
        symmetric: without zero points.
        scales: how the range of a group is chosen.
        scale_dtype: dtype that scales are stored in; "auto" for the checkpoint's.
        cost_format: how bytes are counted.
        damping: GPTQ: share of the mean of the Hessian's diagonal that is added to it.
        act_order: GPTQ: columns are done in the order of the Hessian's diagonal, largest first.
        hessian_inputs: GPTQ: inputs from the base model, or from the model quantized so far.
        hessian_level: GPTQ: bits of the model quantized so far; None for the level nearest the middle.
        tokens_per_pass: tokens of the Hessian text that go through the model at once, with padding.

    Raises:
        UserError: a value is not among those allowed.
    """

    method: Method = Method.GPTQ
    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    group_size: int = 128
    symmetric: bool = True
    scales: Scales = Scales.MSE
    scale_dtype: str = AUTO
    cost_format: CostFormat = CostFormat.COMPRESSED_TENSORS
    damping: float = 0.01
    act_order: bool = True
    hessian_inputs: HessianInputs = HessianInputs.BASE
    hessian_level: int | None = None
    tokens_per_pass: int = 4096

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", parse_levels(self.levels))
        if self.group_size < PER_ROW:
            raise UserError(f"group size {self.group_size}: choose a positive one, or -1 for one group per row")
        if self.group_size == 0:
            object.__setattr__(self, "group_size", PER_ROW)
        if self.scale_dtype not in (AUTO, *SCALE_BYTES):
            raise UserError(f"scale dtype '{self.scale_dtype}': choose one of {', '.join((AUTO, *SCALE_BYTES))}")
        if not 0 < self.damping < 1:
            raise UserError(
                f"damping {self.damping}: choose a share of the mean diagonal above 0 and below 1, such as 0.01"
            )
        if self.hessian_level is not None and self.hessian_level not in self.levels:
            listed = ", ".join(map(str, self.levels))
            raise UserError(
                f"hessian level {self.hessian_level} is not among the levels to build; choose one of {listed}"
            )
        if self.tokens_per_pass < 1:
            raise UserError(f"{self.tokens_per_pass} tokens per pass: choose at least 1")

    @property
    def labels(self) -> tuple[str, ...]:
        """The levels as a store names them."""
        return tuple(map(str, self.levels))

    @property
    def needs_text(self) -> bool:
        """Whether Hessians are needed."""
        return self.method is Method.GPTQ

    @property
    def quantized_level(self) -> int:
        """Bits of the model whose inputs make Hessians, where `hessian_inputs` is quantized."""
        if self.hessian_level is not None:
            return self.hessian_level
        middle = (self.levels[0] + self.levels[-1]) / 2
        # Of two that are equally near, the one with more bits, whose inputs are nearer those of the base model.
        return min(self.levels, key=lambda bits: (abs(bits - middle), -bits))

    def group_width(self, in_features: int) -> int:
        """Input columns per scale in a layer of that many input columns."""
        return in_features if self.group_size == PER_ROW else self.group_size

    def settings(self) -> dict[str, Any]:
        """What decides the result and has no place of its own in a store's header."""
        settings: dict[str, Any] = {"scales": self.scales.value}
        if self.method is Method.GPTQ:
            settings |= {
                "damping": self.damping,
                "act_order": self.act_order,
                "hessian_inputs": self.hessian_inputs.value,
                "hessian_shards": HESSIAN_SHARDS,
                "tokens_per_pass": self.tokens_per_pass,
            }
            if self.hessian_inputs is HessianInputs.QUANTIZED:
                settings["hessian_level"] = self.quantized_level
        return settings


def parse_levels(levels: Iterable[int | str]) -> tuple[int, ...]:
    """Bits per code, as numbers or as a user wrote them.

    Returns:
        Rising.

    Raises:
        UserError: none, one that is not a whole number from 2 to 8, or one named twice.
    """
    allowed = f"choose any of {', '.join(map(str, range(LEAST_BITS, MOST_BITS + 1)))}"
    found: list[int] = []
    for level in levels:
        try:
            bits = int(str(level).strip())
        except ValueError:
            raise UserError(f"level '{level}' is no number of bits; {allowed}") from None
        if not LEAST_BITS <= bits <= MOST_BITS:
            raise UserError(f"level {bits}: codes have {LEAST_BITS} to {MOST_BITS} bits; {allowed}")
        if bits in found:
            raise UserError(f"level {bits} is named twice; name it once")
        found.append(bits)
    if not found:
        raise UserError(f"no levels to build; {allowed}")
    return tuple(sorted(found))
