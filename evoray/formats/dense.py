"""Weights as they are: the bytes of the matrix in row-major order, little-endian, in a dtype of their own.

Holds `DenseWeight` (into the store) and `dense_weight` (out of it). For variants that others made, whose codes are not
known.

Shape letters: O out, I in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evoray.formats.packed import SCALE_DTYPES, bytes_of, scale_name, tensor_of
from evoray.store.variants import Variant

DENSE = "dense"
"""Name of this format in the `meta` of a variant."""


@dataclass(frozen=True)
class DenseWeight:
    """One weight matrix as it is.

    Attributes:
        weight_OI: [O, I] in float16, bfloat16 or float32.

    Raises:
        ValueError: another dtype.
    """

    weight_OI: Tensor

    def __post_init__(self) -> None:
        if self.weight_OI.dtype not in SCALE_DTYPES.values():
            raise ValueError(f"the weight is {self.weight_OI.dtype}; it must be {', '.join(SCALE_DTYPES)}")

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, [O, I] in `dtype`."""
        return self.weight_OI.to(dtype)

    def to_variant(self, layer: str, level: str, error: float) -> Variant:
        """This weight as the store takes it: one column, `weight`.

        Args:
            layer: module path.
            level: label of the level.
            error: layer error of this variant.
        """
        # By its bits, because numpy knows no bfloat16.
        columns = {"weight": bytes_of(self.weight_OI)}
        meta = {"format": DENSE, "shape": list(self.weight_OI.shape), "dtype": scale_name(self.weight_OI.dtype)}
        return Variant(layer=layer, level=level, columns=columns, meta=meta, error=error)


def dense_weight(variant: Variant, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The variant's weight, [O, I] in `dtype` on `device`.

    Raises:
        ValueError: where the bytes do not fit the shape.
    """
    shape = tuple(int(size) for size in variant.meta["shape"])
    try:
        weight_OI = tensor_of(variant.columns["weight"], SCALE_DTYPES[variant.meta["dtype"]]).view(*shape)
    except RuntimeError as error:
        raise ValueError(f"the weight does not fit its description {dict(variant.meta)}: {error}") from error
    # Always a copy: the result must not alias read-only memory.
    return torch.empty(shape, dtype=dtype, device=device).copy_(weight_OI)
