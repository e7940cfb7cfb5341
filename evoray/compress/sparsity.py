"""The kind sparsity: levels are shares of zeros, or steps around a target. `Sparsity`, `SparsityMethod`.

Shape letters: O out, I in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evoray.compress.masks import magnitude_mask, wanda_masks
from evoray.compress.recipe import (
    PER_ROW,
    HessianInputs,
    HessianPart,
    Levels,
    Made,
    check_dtype,
    check_inputs_level,
)
from evoray.compress.sparsegpt import BLOCK, Wanted, sparsegpt
from evoray.compress.zeros import Sparsities, Steps, levels_of, parse_sparsity
from evoray.errors import UserError
from evoray.formats.costs import BITMASK, masked_cost
from evoray.formats.masked import MaskedWeight
from evoray.formats.packed import SCALE_DTYPES
from evoray.store import LevelCost, StoreHeader

if TYPE_CHECKING:
    from evoray.model import Facts
    from evoray.settings import BuildSettings

USUAL_LEVELS = ("0.3", "0.4", "0.5", "0.6", "0.7", "0.8")
USUAL_STEPS = 8


class SparsityMethod(StrEnum):
    """How the weights to go are chosen."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"


@dataclass(frozen=True, kw_only=True)
class Sparsity(HessianPart):
    """How sparse variants are made.

    Attributes:
        method: smallest weights of the layer, smallest weights times inputs of each row, or SparseGPT.
        levels: sparsities, or steps around one.
        hessian_level: label of the model pruned so far; None for the level nearest the middle.

    Raises:
        UserError: a value is not among those allowed.
    """

    kind = "sparsity"
    textless = (SparsityMethod.MAGNITUDE.value, "pruned by magnitude")
    group_size = PER_ROW
    symmetric = True
    cost_format = BITMASK

    method: SparsityMethod = SparsityMethod.SPARSEGPT
    levels: Sparsities | Steps = field(default_factory=lambda: Sparsities.parse(USUAL_LEVELS))
    hessian_level: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hessian_level is not None:
            check_inputs_level(self.hessian_level, self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The levels as a store names them, most sparse first."""
        return self.levels.labels

    @property
    def needs_text(self) -> bool:
        """Whether Hessians are needed."""
        return self.method is not SparsityMethod.MAGNITUDE

    @property
    def inputs_level(self) -> str:
        """The level of the model pruned so far, where its inputs make Hessians."""
        return self.levels.middle if self.hessian_level is None else self.hessian_level

    def settings(self) -> dict[str, Any]:
        """What decides the result and has no place of its own in a store's header."""
        settings = self.levels.settings()
        if self.needs_text:
            solved = self.method is SparsityMethod.SPARSEGPT
            settings |= self.hessian_settings(self.inputs_level, factored=solved)
            if solved:
                settings["mask_columns"] = BLOCK
        return settings

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuses levels that no layer has, and Hessians of a level that some layer lacks."""
        found = {name: self.levels.zeros(rows * columns) for name, (rows, columns) in shapes.items()}
        if unused := [label for label in self.labels if not any(label in zeros for zeros in found.values())]:
            raise UserError(
                f"no layer has room for level {', '.join(unused)}; choose fewer --steps, or smaller --step-weights"
            )
        lacking = [name for name, zeros in found.items() if self.inputs_level not in zeros]
        if lacking and self.hessian_inputs is HessianInputs.QUANTIZED:
            raise UserError(f"hessian level {self.inputs_level}: layer {lacking[0]} has no room for it; choose level 0")

    def stored_dtype(self, checkpoint_dtype: str) -> str:
        """The dtype of the values: the checkpoint's."""
        return check_dtype(checkpoint_dtype, "stored values", "convert it to bfloat16 first")

    def compressor(self, header: StoreHeader) -> Pruner:
        """Makes the levels of a store with this header."""
        return Pruner(self, header)


class Pruner:
    """Makes sparse weights by a recipe, for a store with a header."""

    def __init__(self, recipe: Sparsity, header: StoreHeader) -> None:
        self._recipe = recipe
        self._dtype = SCALE_DTYPES[header.scale_dtype]

    def with_hessian(self, weights: Mapping[str, Tensor], hessian_II: Tensor) -> Made:
        """SparseGPT or Wanda, for layers that share an input."""
        zeros = {name: self._recipe.levels.zeros(weight.numel()) for name, weight in weights.items()}
        if self._recipe.method is SparsityMethod.WANDA:
            layers: dict[str, Levels] = {}
            for name, weight_OI in weights.items():
                masks = wanda_masks(weight_OI, hessian_II, list(zeros[name].values()))
                layers[name] = {
                    label: MaskedWeight.of(weight_OI, keep_OI, self._dtype)
                    for label, keep_OI in zip(zeros[name], masks, strict=True)
                }
            return Made(layers)
        wanted = [Wanted(name, label, count) for name, counts in zeros.items() for label, count in counts.items()]
        found, used = sparsegpt(weights, hessian_II, wanted, value_dtype=self._dtype, damping=self._recipe.damping)
        return Made(found, self._recipe.damping_notes(found, used))

    def alone(self, weight_OI: Tensor) -> Levels:
        """The largest weights of the layer stay."""
        return prune_by_magnitude(weight_OI, self._recipe.levels.zeros(weight_OI.numel()), self._dtype)


def prune_by_magnitude(weight_OI: Tensor, zeros: Mapping[str, int], dtype: torch.dtype) -> dict[str, MaskedWeight]:
    """The largest weights of a layer, at each level.

    Args:
        weight_OI: float32 [O, I].
        zeros: level -> weights to go.
        dtype: that values are stored in.
    """
    return {
        label: MaskedWeight.of(weight_OI, magnitude_mask(weight_OI, count), dtype) for label, count in zeros.items()
    }


def recipe(settings: BuildSettings, facts: Facts) -> Sparsity:
    """The recipe that a user asks for."""
    levels: Sparsities | Steps
    if settings.target_sparsity is not None:
        width = int(getattr(facts.config.get_text_config(), "hidden_size", 0))
        steps = USUAL_STEPS if settings.steps is None else settings.steps
        levels = Steps.usual(settings.target_sparsity, steps, settings.step_weights, width)
    else:
        levels = Sparsities.parse(USUAL_LEVELS if settings.levels is None else settings.levels)
    level = settings.hessian_level
    if level is not None and isinstance(levels, Sparsities):
        level = parse_sparsity(level)
    return Sparsity(
        method=SparsityMethod(settings.method or SparsityMethod.SPARSEGPT),
        levels=levels,
        damping=settings.damping,
        hessian_inputs=HessianInputs(settings.hessian_inputs),
        hessian_level=level,
        tokens_per_pass=settings.tokens_per_pass,
    )


def level_costs(out_features: int, in_features: int, header: StoreHeader) -> dict[str, LevelCost]:
    """Exact cost of each level that a layer of this shape has room for."""
    weights = out_features * in_features
    zeros = levels_of(header.levels, header.settings).zeros(weights)
    return {label: masked_cost(weights, weights - count, header.scale_dtype) for label, count in zeros.items()}


def record_bytes(header: StoreHeader) -> int:
    """Nothing: a mask and values are all that is stored."""
    return 0
