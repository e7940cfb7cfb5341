"""Sparse weights as a bit mask and the values it keeps: what they are, how they lie in the store, and back.

Holds `pack_mask` and `unpack_mask` (the bits), `MaskedWeight` (mask and values), `dense_weight` (out of the store).

The mask has one bit per weight in row-major order, the first in the lowest bit of the first byte; the last byte is
filled up with zeros. The values are those of the kept weights in the same order, in the dtype of the checkpoint. A kept
weight may happen to be zero.

Decoding stands on the evaluator's hot path: it spreads the mask by a table of 256 words and scatters the values, both
on the device that the result is for.

Shape letters: O out, I in, N weights in row-major order, K kept weights.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evoray.formats.packed import SCALE_DTYPES, bytes_of, scale_name, tensor_of
from evoray.store.variants import Variant

MASKED = "masked"
"""Name of this format in the `meta` of a variant."""

# Keep the temporaries of packing a mask small: eight bytes per weight otherwise.
_PIECE_BYTES = 1 << 20


@functools.cache
def _spread_256(device: torch.device) -> Tensor:
    """For each byte its eight bits as eight bytes of 0 or 1, lowest first, in one int64."""
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1
    return bits.to(torch.uint8).view(torch.int64).view(-1).to(device)


def pack_mask(keep: Tensor) -> Tensor:
    """Packs a mask.

    Args:
        keep: bool, any shape and device.

    Returns:
        uint8 [ceil(N / 8)] on the same device.
    """
    keep_N = keep.reshape(-1)
    packed = torch.empty(math.ceil(len(keep_N) / 8), dtype=torch.uint8, device=keep.device)
    place_8 = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=keep.device)
    for first in range(0, len(packed), _PIECE_BYTES):
        piece_N = keep_N[8 * first : 8 * (first + _PIECE_BYTES)]
        bits_N = torch.nn.functional.pad(piece_N.to(torch.uint8), (0, -len(piece_N) % 8))
        packed[first : first + _PIECE_BYTES] = (bits_N.view(-1, 8) * place_8).sum(1, dtype=torch.uint8)
    return packed


def unpack_mask(packed: Tensor, weights: int) -> Tensor:
    """Undoes `pack_mask`.

    Args:
        packed: uint8 [ceil(weights / 8)]; any device.
        weights: bits that count.

    Returns:
        bool [N] on the same device.

    Raises:
        ValueError: on another shape or type.
    """
    if packed.dtype is not torch.uint8 or tuple(packed.shape) != (math.ceil(weights / 8),):
        raise ValueError(
            f"the mask is {packed.dtype} {list(packed.shape)}; {weights} weights take uint8 [{math.ceil(weights / 8)}]"
        )
    spread = _spread_256(packed.device)
    return torch.index_select(spread, 0, packed.to(torch.int32)).view(torch.bool)[:weights]


@dataclass(frozen=True)
class MaskedWeight:
    """One weight matrix of which only some weights are kept.

    Attributes:
        keep_OI: bool [O, I].
        weight_OI: [O, I] in the dtype it is stored in (float16, bfloat16 or float32); zero where not kept.

    Raises:
        ValueError: where shapes and types do not belong together.
    """

    keep_OI: Tensor
    weight_OI: Tensor

    def __post_init__(self) -> None:
        if self.keep_OI.dtype is not torch.bool or self.keep_OI.shape != self.weight_OI.shape:
            raise ValueError(
                f"the mask is {self.keep_OI.dtype} {list(self.keep_OI.shape)}; "
                f"it must be bool {list(self.weight_OI.shape)}"
            )
        if self.weight_OI.dtype not in SCALE_DTYPES.values():
            raise ValueError(f"values are {self.weight_OI.dtype}; they must be {', '.join(SCALE_DTYPES)}")

    @classmethod
    def of(cls, weight_OI: Tensor, keep_OI: Tensor, dtype: torch.dtype) -> MaskedWeight:
        """Keeps some weights of a matrix, rounded to the dtype they are stored in.

        Values beyond the dtype's range become its largest.
        """
        most = torch.finfo(dtype).max
        rounded_OI = weight_OI.clamp(-most, most).to(dtype)
        return cls(keep_OI, torch.where(keep_OI, rounded_OI, torch.zeros((), dtype=dtype, device=weight_OI.device)))

    @property
    def kept(self) -> int:
        """Number of kept weights, those that happen to be zero among them."""
        return int(self.keep_OI.sum())

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, [O, I] in `dtype`, on the device of the values."""
        return self.weight_OI.to(dtype)

    def to_variant(self, layer: str, level: str, error: float) -> Variant:
        """This weight as the store takes it: columns `mask` and `values`.

        Args:
            layer: module path.
            level: label of the level, such as "0.5".
            error: layer error of this variant.
        """
        columns = {"mask": bytes_of(pack_mask(self.keep_OI)), "values": bytes_of(self.weight_OI[self.keep_OI])}
        meta = {
            "format": MASKED,
            "shape": list(self.weight_OI.shape),
            "dtype": scale_name(self.weight_OI.dtype),
            "kept": self.kept,
        }
        return Variant(layer=layer, level=level, columns=columns, meta=meta, error=error)


def read_mask(variant: Variant, device: torch.device | str) -> Tensor:
    """The mask of a variant, bool [N] on `device`.

    Raises:
        ValueError: it does not fit the shape.
    """
    rows, columns = (int(size) for size in variant.meta["shape"])
    return unpack_mask(tensor_of(variant.columns["mask"], torch.uint8).to(device), rows * columns)


def dense_weight(variant: Variant, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The variant's weight, [O, I] in `dtype` on `device`.

    Raises:
        ValueError: where columns and meta do not belong together.
    """
    keep_N = read_mask(variant, device)
    value_K = tensor_of(variant.columns["values"], SCALE_DTYPES[variant.meta["dtype"]])
    # The mask itself is not counted, which would make an accelerator wait: one checksum covers it and `meta`.
    if len(value_K) != int(variant.meta["kept"]):
        raise ValueError(f"{len(value_K)} values for {variant.meta['kept']} kept weights")
    weight_N = torch.zeros(len(keep_N), dtype=dtype, device=device)
    weight_N.masked_scatter_(keep_N, value_K.to(device).to(dtype))
    return weight_N.view(*(int(size) for size in variant.meta["shape"]))
