"""The kind joint: levels are bits, sparsities, or both. `Joint`, `JointMethod`, `JointLevel`.

"4" is a quantized layer as in the kind quantization, "0.5" a sparse one as in the kind sparsity, "4x0.5" one whose kept
half has codes of 4 bits.

Shape letters: O out, I in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import Tensor

from evoray.compress.gptq import gptq
from evoray.compress.grid import Grid, fit_grid, nearest_codes
from evoray.compress.masks import magnitude_mask
from evoray.compress.plan import check_group_size
from evoray.compress.quantization import check_scales, group_width, level_cost, parse_levels, resolve_scale_dtype
from evoray.compress.recipe import (
    AUTO,
    PER_ROW,
    Compressed,
    HessianInputs,
    HessianPart,
    Levels,
    Made,
    Scales,
    check_dtype,
    check_inputs_level,
)
from evoray.compress.sparsegpt import BLOCK, Wanted, sparsegpt
from evoray.compress.sparsity import prune_by_magnitude
from evoray.compress.zeros import parse_sparsity, zeros_at
from evoray.errors import UserError
from evoray.formats import costs
from evoray.formats.costs import SCALE_BYTES, CostFormat, masked_codes_cost, masked_cost
from evoray.formats.masked_codes import MaskedCodes
from evoray.formats.packed import SCALE_DTYPES
from evoray.store import LevelCost, StoreHeader

if TYPE_CHECKING:
    from evoray.model import Facts
    from evoray.settings import BuildSettings

USUAL_LEVELS = ("2", "3", "4", "4x0.5", "0.5")


class JointMethod(StrEnum):
    """How weights and codes are chosen: magnitude and round to nearest, or SparseGPT and GPTQ."""

    MAGNITUDE = "magnitude"
    SPARSEGPT = "sparsegpt"


@dataclass(frozen=True)
class JointLevel:
    """One level.

    Attributes:
        bits: per code; None where weights keep their values.
        sparsity: share of zeros, as a decimal; None without a mask.
    """

    bits: int | None
    sparsity: str | None

    @classmethod
    def parse(cls, text: float | str) -> JointLevel:
        """A level as a user or a store writes it.

        Raises:
            UserError: no bits, no sparsity, and not both.
        """
        written = str(text).strip()
        bits, times, sparsity = written.partition("x")
        if not times and "." in written:
            bits, sparsity = "", written
        elif times and not (bits and sparsity):
            raise UserError(f"level '{text}' is none; write bits (4), a sparsity (0.5), or both (4x0.5)")
        found = cls(parse_levels([bits])[0] if bits else None, parse_sparsity(sparsity) if sparsity else None)
        if found.bits is None and found.sparsity is None:
            raise UserError(f"level '{text}' is none; write bits (4), a sparsity (0.5), or both (4x0.5)")
        if found.sparsity == "0":
            raise UserError(f"level '{text}' has no zeros; write its bits alone, or a sparsity above 0")
        return found

    @property
    def label(self) -> str:
        """As a store names it."""
        return "x".join(str(part) for part in (self.bits, self.sparsity) if part is not None)

    def zeros(self, weights: int) -> int:
        """Weights of a layer that go."""
        return 0 if self.sparsity is None else zeros_at(weights, self.sparsity)

    def stored_bits(self, value_bits: int) -> Fraction:
        """Bits per weight of codes or values and mask; scales are left out, which all coded levels have alike."""
        kept = 1 - Fraction(self.sparsity or 0)
        return (value_bits if self.bits is None else self.bits) * kept + (self.sparsity is not None)


@dataclass(frozen=True, kw_only=True)
class Joint(HessianPart):
    """How variants of bits and sparsities are made.

    Attributes:
        method: magnitude and round to nearest, or SparseGPT and GPTQ.
        levels: in any order; afterwards smallest first.
        value_dtype: the checkpoint's dtype, in which sparse levels without codes keep their values.
        group_size: input columns per scale; -1 (or 0) for one scale per row.
        symmetric: without zero points.
        scales: how the range of a group is chosen.
        scale_dtype: dtype that scales are stored in; "auto" for the checkpoint's.
        cost_format: how bytes of levels without a mask are counted.
        act_order: levels without a mask: columns are done in the order of the Hessian's diagonal, largest first.
        hessian_level: label of the model compressed so far; None for the one of middle cost.

    Raises:
        UserError: a value is not among those allowed.
    """

    kind = "joint"
    textless = (JointMethod.MAGNITUDE.value, "pruned by magnitude and rounded to nearest")

    method: JointMethod = JointMethod.SPARSEGPT
    levels: tuple[JointLevel, ...] = field(default_factory=lambda: parse_joint_levels(USUAL_LEVELS))
    value_dtype: str = "float16"
    group_size: int = 128
    symmetric: bool = True
    scales: Scales = Scales.MSE
    scale_dtype: str = AUTO
    cost_format: CostFormat = CostFormat.COMPRESSED_TENSORS
    act_order: bool = True
    hessian_level: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scales(self.group_size, self.scale_dtype)
        if self.group_size == 0:
            object.__setattr__(self, "group_size", PER_ROW)
        value_bits = 8 * SCALE_BYTES[check_dtype(self.value_dtype, "stored values", "convert it to bfloat16 first")]
        # Of two that take the same room, the one without a mask first: it is read faster.
        ordered = sorted(self.levels, key=lambda level: (level.stored_bits(value_bits), level.sparsity is not None))
        object.__setattr__(self, "levels", tuple(ordered))
        if self.hessian_level is not None:
            check_inputs_level(self.hessian_level, self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The levels as a store names them, smallest first."""
        return tuple(level.label for level in self.levels)

    @property
    def needs_text(self) -> bool:
        """Whether Hessians are needed."""
        return self.method is JointMethod.SPARSEGPT

    @property
    def inputs_level(self) -> str:
        """The level of the model compressed so far, where its inputs make Hessians."""
        return self.labels[len(self.levels) // 2] if self.hessian_level is None else self.hessian_level

    def settings(self) -> dict[str, Any]:
        """What decides the result and has no place of its own in a store's header."""
        settings: dict[str, Any] = {"scales": self.scales.value}
        if self.needs_text:
            settings |= self.hessian_settings(self.inputs_level)
            settings |= {"act_order": self.act_order, "mask_columns": BLOCK}
        return settings

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuses a group size that does not fit all layers."""
        check_group_size({name: columns for name, (_, columns) in shapes.items()}, self.group_size)

    def stored_dtype(self, checkpoint_dtype: str) -> str:
        """The dtype that scales are stored in."""
        return resolve_scale_dtype(self.scale_dtype, checkpoint_dtype)

    def compressor(self, header: StoreHeader) -> JointCompressor:
        """Makes the levels of a store with this header."""
        return JointCompressor(self, header)


class JointCompressor:
    """Makes weights of bits and sparsities by a recipe, for a store with a header."""

    def __init__(self, recipe: Joint, header: StoreHeader) -> None:
        self._recipe = recipe
        self._scale_dtype = SCALE_DTYPES[header.scale_dtype]
        self._value_dtype = SCALE_DTYPES[header.dtype]
        self._plain = [level for level in recipe.levels if level.sparsity is None]
        self._masked = [level for level in recipe.levels if level.sparsity is not None]

    def with_hessian(self, weights: Mapping[str, Tensor], hessian_II: Tensor) -> Made:
        """GPTQ for levels without a mask, SparseGPT for those with one; layers that share an input."""
        recipe = self._recipe
        layers: dict[str, dict[str, Compressed]] = {name: {} for name in weights}
        dampings = {recipe.damping}
        if self._plain:
            solution = gptq(
                weights,
                hessian_II,
                [level.bits for level in self._plain if level.bits is not None],
                group_size=group_width(recipe.group_size, len(hessian_II)),
                symmetric=recipe.symmetric,
                scales=recipe.scales,
                scale_dtype=self._scale_dtype,
                damping=recipe.damping,
                act_order=recipe.act_order,
            )
            dampings.add(solution.damping)
            for name, found in solution.weights.items():
                layers[name] |= {str(bits): weight for bits, weight in found.items()}
        if self._masked:
            wanted = [
                Wanted(
                    name,
                    level.label,
                    level.zeros(weight_OI.numel()),
                    None if level.bits is None else self._grid(weight_OI, level.bits),
                )
                for name, weight_OI in weights.items()
                for level in self._masked
            ]
            masked, used = sparsegpt(weights, hessian_II, wanted, value_dtype=self._value_dtype, damping=recipe.damping)
            dampings.add(used)
            for name in weights:
                layers[name] |= masked[name]
        return Made(layers, recipe.damping_notes(layers, max(dampings)))

    def alone(self, weight_OI: Tensor) -> Levels:
        """The largest weights of the layer stay, and are rounded to nearest."""
        made: dict[str, Compressed] = {}
        for level in self._recipe.levels:
            zeros = level.zeros(weight_OI.numel())
            if level.bits is None:
                made |= prune_by_magnitude(weight_OI, {level.label: zeros}, self._value_dtype)
                continue
            grid = self._grid(weight_OI, level.bits)
            weight = grid.with_codes(nearest_codes(weight_OI, grid))
            masked = level.sparsity is not None
            made[level.label] = MaskedCodes.of(weight, magnitude_mask(weight_OI, zeros)) if masked else weight
        return made

    def _grid(self, weight_OI: Tensor, bits: int) -> Grid:
        """Scales of the weight as it was, the same whatever goes."""
        return fit_grid(
            weight_OI,
            bits=bits,
            group_size=group_width(self._recipe.group_size, weight_OI.shape[1]),
            symmetric=self._recipe.symmetric,
            scales=self._recipe.scales,
            scale_dtype=self._scale_dtype,
        )


def parse_joint_levels(levels: Iterable[float | str]) -> tuple[JointLevel, ...]:
    """Levels as a user wrote them.

    Raises:
        UserError: none, one that is no level, or one named twice.
    """
    found: list[JointLevel] = []
    for level in levels:
        parsed = JointLevel.parse(level)
        if parsed in found:
            raise UserError(f"level {parsed.label} is named twice; name it once")
        found.append(parsed)
    if not found:
        raise UserError("no levels to build; give bits (4), sparsities (0.5), or both (4x0.5)")
    return tuple(found)


def recipe(settings: BuildSettings, facts: Facts) -> Joint:
    """The recipe that a user asks for."""
    level = settings.hessian_level
    return Joint(
        method=JointMethod(settings.method or JointMethod.SPARSEGPT),
        levels=parse_joint_levels(USUAL_LEVELS if settings.levels is None else settings.levels),
        value_dtype=facts.dtype,
        group_size=settings.group_size,
        symmetric=settings.symmetric,
        scales=Scales(settings.scales),
        scale_dtype=settings.scale_dtype,
        cost_format=CostFormat(settings.cost_format),
        damping=settings.damping,
        act_order=settings.act_order,
        hessian_inputs=HessianInputs(settings.hessian_inputs),
        hessian_level=None if level is None else JointLevel.parse(level).label,
        tokens_per_pass=settings.tokens_per_pass,
    )


def level_costs(out_features: int, in_features: int, header: StoreHeader) -> dict[str, LevelCost]:
    """Exact cost of each level of a layer of this shape."""
    return {label: _cost(out_features, in_features, JointLevel.parse(label), header) for label in header.levels}


def _cost(out_features: int, in_features: int, level: JointLevel, header: StoreHeader) -> LevelCost:
    weights = out_features * in_features
    kept = weights - level.zeros(weights)
    if level.bits is None:
        return masked_cost(weights, kept, header.dtype)
    if level.sparsity is None:
        return level_cost(out_features, in_features, level.bits, header)
    return masked_codes_cost(
        out_features,
        in_features,
        kept,
        bits=level.bits,
        group_size=group_width(header.group_size, in_features),
        symmetric=header.symmetric,
        scale_dtype=header.scale_dtype,
    )


def record_bytes(header: StoreHeader) -> int:
    """Bytes that every compressed layer takes at any level, as quantized ones do."""
    return costs.record_bytes(header.cost_format)
