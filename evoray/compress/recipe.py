"""What every kind of variants says of itself: `Recipe`, `Compressor`, `Compressed`, `Made`.

Holds also what kinds share: `Scales`, `HessianInputs`, `HessianPart`.

Everything that decides the result stands in the recipe, in the model, or in the Hessian text; nothing else does.
This file knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from evoray.errors import UserError
from evoray.formats.costs import SCALE_BYTES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from evoray.store import StoreHeader, Variant

PER_ROW = -1
"""Group size of one group per row, whatever the layer's width."""

AUTO = "auto"

# Hessians are summed over this many parts of the text, each on its own, and then added in order. So their bits don't
# depend on how many workers had a part in them.
HESSIAN_SHARDS = 8


class Scales(StrEnum):
    """How the scale of a group is chosen.

    minmax: the range of the group's weights is covered.
    mse: the scale with the smallest squared error of round-to-nearest, of those of shrunken ranges.
    """

    MINMAX = "minmax"
    MSE = "mse"


class HessianInputs(StrEnum):
    """What the Hessians of a block are made of: inputs from the base model, or from the model compressed so far."""

    BASE = "base"
    QUANTIZED = "quantized"


class Compressed(Protocol):
    """One weight at one level."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, [O, I] in `dtype`, as a reader of the store will get it."""

    def to_variant(self, layer: str, level: str, error: float) -> Variant:
        """This weight as the store takes it."""


Levels: TypeAlias = "Mapping[str, Compressed]"
"""Label of a level -> one layer's weight at it."""


@dataclass(frozen=True)
class Made:
    """What a compressor made of layers with the same inputs.

    Attributes:
        layers: layer -> its levels.
        notes: lines that a user should read.
    """

    layers: Mapping[str, Levels]
    notes: tuple[str, ...] = field(default=())


class Compressor(Protocol):
    """Makes the levels of layers."""

    def with_hessian(self, weights: Mapping[str, Tensor], hessian_II: Tensor) -> Made:
        """All levels of layers that share an input.

        Args:
            weights: layer -> weight, float32 [O, I], finite.
            hessian_II: mean of x x^T over their inputs, float32 [I, I].
        """

    def alone(self, weight_OI: Tensor) -> Levels:
        """All levels of a layer, without a Hessian: float32 [O, I], finite."""


class Recipe(Protocol):
    """How variants of one kind are made. A kind is a module of this package by its name, see `kinds`."""

    @property
    def kind(self) -> str:
        """What levels mean: `StoreHeader.kind`."""

    @property
    def method(self) -> str:
        """`StoreHeader.method`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The levels as a store names them, smallest cost first."""

    @property
    def group_size(self) -> int:
        """Input columns per scale; -1 for one scale per row, and where there are no scales."""

    @property
    def symmetric(self) -> bool:
        """Without zero points."""

    @property
    def cost_format(self) -> str:
        """How bytes are counted."""

    @property
    def needs_text(self) -> bool:
        """Whether Hessians are needed."""

    @property
    def textless(self) -> tuple[str, str]:
        """The method that needs no text, and what becomes of a layer by it ("rounded to nearest")."""

    @property
    def hessian_inputs(self) -> HessianInputs:
        """What the Hessians are made of."""

    @property
    def tokens_per_pass(self) -> int:
        """Tokens of the Hessian text that go through the model at once, with padding."""

    @property
    def inputs_level(self) -> str:
        """The level of the model compressed so far, where its inputs make Hessians."""

    def settings(self) -> dict[str, Any]:
        """What decides the result and has no place of its own in a store's header."""

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuses what can't be made of these layers.

        Args:
            shapes: layer -> output rows, input columns.

        Raises:
            UserError: naming the value, the limit and the remedy.
        """

    def stored_dtype(self, checkpoint_dtype: str) -> str:
        """The dtype of stored scales, or of stored values where there are no scales.

        Raises:
            UserError: it can't be the checkpoint's.
        """

    def compressor(self, header: StoreHeader) -> Compressor:
        """Makes the levels of a store with this header."""


@dataclass(frozen=True, kw_only=True)
class HessianPart:
    """What recipes say of Hessians.

    Attributes:
        damping: share of the mean of the Hessian's diagonal that is added to it.
        hessian_inputs: inputs from the base model, or from the model compressed so far.
        tokens_per_pass: tokens of the Hessian text that go through the model at once, with padding.
    """

    damping: float = 0.01
    hessian_inputs: HessianInputs = HessianInputs.BASE
    tokens_per_pass: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.damping < 1:
            raise UserError(
                f"damping {self.damping}: choose a share of the mean diagonal above 0 and below 1, such as 0.01"
            )
        if self.tokens_per_pass < 1:
            raise UserError(f"{self.tokens_per_pass} tokens per pass: choose at least 1")

    def hessian_settings(self, level: int | str, *, factored: bool = True) -> dict[str, Any]:
        """Keys of `Recipe.settings` for methods with Hessians.

        Args:
            level: of the model compressed so far.
            factored: whether the Hessian's factor is used, and with it the damping.
        """
        settings: dict[str, Any] = {"damping": self.damping} if factored else {}
        settings |= {
            "hessian_inputs": self.hessian_inputs.value,
            "hessian_shards": HESSIAN_SHARDS,
            "tokens_per_pass": self.tokens_per_pass,
        }
        if self.hessian_inputs is HessianInputs.QUANTIZED:
            settings["hessian_level"] = level
        return settings

    def damping_notes(self, layers: Mapping[str, object], used: float) -> tuple[str, ...]:
        """What to say where the Hessian of some layers took another damping than was asked for."""
        if used == self.damping:
            return ()
        return (
            f"the Hessian of {', '.join(layers)} took a damping of {used:g} "
            f"instead of {self.damping:g}; more Hessian text may help",
        )


def check_dtype(checkpoint_dtype: str, what: str, remedy: str) -> str:
    """The checkpoint's dtype, where it is one that a store can hold.

    Raises:
        UserError: it is another.
    """
    if checkpoint_dtype not in SCALE_BYTES:
        raise UserError(f"the checkpoint's dtype {checkpoint_dtype} is none for {what}; {remedy}")
    return checkpoint_dtype


def check_inputs_level(level: object, levels: tuple[object, ...]) -> None:
    """Refuses a level of the model compressed so far that is not built.

    Raises:
        UserError: it is none of the levels.
    """
    if level not in levels:
        raise UserError(
            f"hessian level {level} is not among the levels to build; choose one of {', '.join(map(str, levels))}"
        )
