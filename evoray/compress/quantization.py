"""The kind quantization: levels are bits per code. `Quantization`, `Method`, `parse_levels`.

Shape letters: O out, I in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from torch import Tensor

from evoray.compress.gptq import gptq
from evoray.compress.plan import check_group_size
from evoray.compress.recipe import (
    AUTO,
    PER_ROW,
    HessianInputs,
    HessianPart,
    Levels,
    Made,
    Scales,
    check_dtype,
    check_inputs_level,
)
from evoray.compress.rtn import rtn
from evoray.errors import UserError
from evoray.formats import costs
from evoray.formats.costs import SCALE_BYTES, CostFormat
from evoray.formats.packed import SCALE_DTYPES, QuantizedWeight
from evoray.store import LevelCost, StoreHeader

if TYPE_CHECKING:
    from evoray.model import Facts
    from evoray.settings import BuildSettings

LEAST_BITS, MOST_BITS = 2, 8
USUAL_LEVELS = ("2", "3", "4", "5", "6")


class Method(StrEnum):
    """How codes are chosen."""

    RTN = "rtn"
    GPTQ = "gptq"


@dataclass(frozen=True, kw_only=True)
class Quantization(HessianPart):
    """How quantized variants are made.

    Attributes:
        method: round to nearest, or GPTQ.
        levels: bits per code, any of 2 to 8, rising.
        group_size: input columns per scale; -1 (or 0) for one scale per row.
        symmetric: without zero points.
        scales: how the range of a group is chosen.
        scale_dtype: dtype that scales are stored in; "auto" for the checkpoint's.
        cost_format: how bytes are counted.
        act_order: GPTQ: columns are done in the order of the Hessian's diagonal, largest first.
        hessian_level: GPTQ: bits of the model quantized so far; None for the level nearest the middle.

    Raises:
        UserError: a value is not among those allowed.
    """

    kind = "quantization"
    textless = (Method.RTN.value, "rounded to nearest")

    method: Method = Method.GPTQ
    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    group_size: int = 128
    symmetric: bool = True
    scales: Scales = Scales.MSE
    scale_dtype: str = AUTO
    cost_format: CostFormat = CostFormat.COMPRESSED_TENSORS
    act_order: bool = True
    hessian_level: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", parse_levels(self.levels))
        check_scales(self.group_size, self.scale_dtype)
        if self.group_size == 0:
            object.__setattr__(self, "group_size", PER_ROW)
        super().__post_init__()
        if self.hessian_level is not None:
            check_inputs_level(self.hessian_level, self.levels)

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

    @property
    def inputs_level(self) -> str:
        """The same as a label."""
        return str(self.quantized_level)

    def settings(self) -> dict[str, Any]:
        """What decides the result and has no place of its own in a store's header."""
        settings: dict[str, Any] = {"scales": self.scales.value}
        if self.method is Method.GPTQ:
            settings |= {**self.hessian_settings(self.quantized_level), "act_order": self.act_order}
        return settings

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Refuses a group size that does not fit all layers."""
        check_group_size({name: columns for name, (_, columns) in shapes.items()}, self.group_size)

    def stored_dtype(self, checkpoint_dtype: str) -> str:
        """The dtype that scales are stored in."""
        return resolve_scale_dtype(self.scale_dtype, checkpoint_dtype)

    def compressor(self, header: StoreHeader) -> Quantizer:
        """Makes the levels of a store with this header."""
        return Quantizer(self, header)


class Quantizer:
    """Makes quantized weights by a recipe, for a store with a header."""

    def __init__(self, recipe: Quantization, header: StoreHeader) -> None:
        self._recipe = recipe
        self._scale_dtype = SCALE_DTYPES[header.scale_dtype]

    def with_hessian(self, weights: Mapping[str, Tensor], hessian_II: Tensor) -> Made:
        """GPTQ for layers that share an input."""
        recipe = self._recipe
        solution = gptq(
            weights,
            hessian_II,
            recipe.levels,
            group_size=group_width(recipe.group_size, len(hessian_II)),
            symmetric=recipe.symmetric,
            scales=recipe.scales,
            scale_dtype=self._scale_dtype,
            damping=recipe.damping,
            act_order=recipe.act_order,
        )
        layers = {name: _labelled(levels) for name, levels in solution.weights.items()}
        return Made(layers, recipe.damping_notes(layers, solution.damping))

    def alone(self, weight_OI: Tensor) -> Levels:
        """Round to nearest."""
        return _labelled(
            rtn(
                weight_OI,
                self._recipe.levels,
                group_size=group_width(self._recipe.group_size, weight_OI.shape[1]),
                symmetric=self._recipe.symmetric,
                scales=self._recipe.scales,
                scale_dtype=self._scale_dtype,
            )
        )


def _labelled(levels: Mapping[int, QuantizedWeight]) -> dict[str, QuantizedWeight]:
    return {str(bits): weight for bits, weight in levels.items()}


def recipe(settings: BuildSettings, facts: Facts) -> Quantization:
    """The recipe that a user asks for."""
    level = settings.hessian_level
    return Quantization(
        method=Method(settings.method or Method.GPTQ),
        levels=parse_levels(USUAL_LEVELS if settings.levels is None else settings.levels),
        group_size=settings.group_size,
        symmetric=settings.symmetric,
        scales=Scales(settings.scales),
        scale_dtype=settings.scale_dtype,
        cost_format=CostFormat(settings.cost_format),
        damping=settings.damping,
        act_order=settings.act_order,
        hessian_inputs=HessianInputs(settings.hessian_inputs),
        hessian_level=None if level is None else parse_levels([level])[0],
        tokens_per_pass=settings.tokens_per_pass,
    )


def level_costs(out_features: int, in_features: int, header: StoreHeader) -> dict[str, LevelCost]:
    """Exact cost of each level of a layer of this shape."""
    return {level: level_cost(out_features, in_features, int(level), header) for level in header.levels}


def level_cost(out_features: int, in_features: int, bits: int, header: StoreHeader) -> LevelCost:
    """Exact cost of a layer at some bits, as the header counts it."""
    return costs.cost(
        out_features,
        in_features,
        bits=bits,
        group_size=group_width(header.group_size, in_features),
        symmetric=header.symmetric,
        scale_dtype=header.scale_dtype,
        cost_format=header.cost_format,
    )


def record_bytes(header: StoreHeader) -> int:
    """Bytes that every compressed layer takes at any level, beside its codes."""
    return costs.record_bytes(header.cost_format)


def group_width(group_size: int, in_features: int) -> int:
    """Input columns per scale in a layer of that many input columns."""
    return in_features if group_size == PER_ROW else group_size


def check_scales(group_size: int, scale_dtype: str) -> None:
    """Refuses a group size or a dtype that scales can't have.

    Raises:
        UserError: naming those that they can.
    """
    if group_size < PER_ROW:
        raise UserError(f"group size {group_size}: choose a positive one, or -1 for one group per row")
    if scale_dtype not in (AUTO, *SCALE_BYTES):
        raise UserError(f"scale dtype '{scale_dtype}': choose one of {', '.join((AUTO, *SCALE_BYTES))}")


def resolve_scale_dtype(scale_dtype: str, checkpoint_dtype: str) -> str:
    """The dtype that scales are stored in.

    Raises:
        UserError: it shall be the checkpoint's, which is none that scales can have.
    """
    if scale_dtype != AUTO:
        return scale_dtype
    return check_dtype(checkpoint_dtype, "scales", f"choose one by --scale-dtype: {', '.join(SCALE_BYTES)}")


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
