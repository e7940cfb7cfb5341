"""Sparse and quantized weights: a bit mask, integer codes of the weights it keeps, scales and zero points.

Holds `MaskedCodes` (mask and quantized weight) and `dense_weight` (out of the store).

The mask lies as in `masked`. The codes of the kept weights, in row-major order, are one unsigned little-endian bit
stream: the e-th kept code takes the bits [e*b, (e+1)*b); the last byte is filled up with zeros. Zero points are such a
stream, too, of all groups in row-major order. There is no padding of rows: nothing but evoray reads these.

Shape letters: O out, I in, G groups, N weights in row-major order, K kept weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evoray.formats.masked import pack_mask, read_mask
from evoray.formats.packed import (
    SCALE_DTYPES,
    QuantizedWeight,
    bytes_of,
    pack_codes,
    scale_name,
    tensor_of,
    unpack_codes,
)
from evoray.store.variants import Buffer, Variant

MASKED_CODES = "masked_codes"
"""Name of this format in the `meta` of a variant."""

# Codes are packed and unpacked in rows of this many: whole 32-bit words for any number of bits, so that rows join
# without a seam, and short enough that a piece of them stays in a CPU's cache.
_ROW = 4096


@dataclass(frozen=True)
class MaskedCodes:
    """One weight matrix of which some weights are kept, as integer codes.

    Attributes:
        keep_OI: bool [O, I].
        weight: codes, scales and zero points; where a weight is not kept its code is the zero point.

    Raises:
        ValueError: where the mask does not fit the codes.
    """

    keep_OI: Tensor
    weight: QuantizedWeight

    def __post_init__(self) -> None:
        if self.keep_OI.dtype is not torch.bool or self.keep_OI.shape != self.weight.codes_OI.shape:
            raise ValueError(
                f"the mask is {self.keep_OI.dtype} {list(self.keep_OI.shape)}; "
                f"it must be bool {list(self.weight.codes_OI.shape)}"
            )

    @classmethod
    def of(cls, weight: QuantizedWeight, keep_OI: Tensor) -> MaskedCodes:
        """Keeps some weights of a quantized matrix."""
        codes_OI = torch.where(keep_OI, weight.codes_OI, _zero_points(weight))
        return cls(keep_OI, QuantizedWeight(codes_OI, weight.scale_OG, weight.zero_OG, weight.bits, weight.group_size))

    @property
    def kept(self) -> int:
        """Number of kept weights, those that are rounded to zero among them."""
        return int(self.keep_OI.sum())

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, [O, I] in `dtype`; exactly zero where it is not kept."""
        return self.weight.dequantize(dtype)

    def to_variant(self, layer: str, level: str, error: float) -> Variant:
        """This weight as the store takes it: columns `mask`, `codes`, `scales` and, unless symmetric, `zeros`.

        Args:
            layer: module path.
            level: label of the level, such as "4x0.5".
            error: layer error of this variant.
        """
        weight = self.weight
        columns: dict[str, Buffer] = {
            "mask": bytes_of(pack_mask(self.keep_OI)),
            "codes": _stream(weight.codes_OI[self.keep_OI], weight.bits),
            "scales": bytes_of(weight.scale_OG),
        }
        if weight.zero_OG is not None:
            columns["zeros"] = _stream(weight.zero_OG.reshape(-1), weight.bits)
        meta = {
            "format": MASKED_CODES,
            "bits": weight.bits,
            "group_size": weight.group_size,
            "shape": list(weight.codes_OI.shape),
            "scale_dtype": scale_name(weight.scale_OG.dtype),
            "symmetric": weight.symmetric,
            "kept": self.kept,
        }
        return Variant(layer=layer, level=level, columns=columns, meta=meta, error=error)


def decode(variant: Variant, device: torch.device | str = "cpu") -> MaskedCodes:
    """Undoes `MaskedCodes.to_variant`; the packed bytes travel to `device` and are unpacked there.

    Raises:
        ValueError: where columns and meta do not belong together.
    """
    meta = variant.meta
    rows, columns = (int(size) for size in meta["shape"])
    bits, group_size = int(meta["bits"]), int(meta["group_size"])
    groups = columns // group_size
    keep_N = read_mask(variant, device)
    try:
        scale_OG = tensor_of(variant.columns["scales"], SCALE_DTYPES[meta["scale_dtype"]]).view(rows, groups)
    except RuntimeError as error:
        raise ValueError(f"scales do not fit their description {dict(meta)}: {error}") from error
    # `clone` on the CPU: the scales of the result must not alias read-only memory.
    scale_OG = scale_OG.clone() if torch.device(device).type == "cpu" else scale_OG.to(device)
    zero_OG = None
    if not meta["symmetric"]:
        zero_OG = _unstream(variant.columns["zeros"], bits, rows * groups, device).view(rows, groups)
    code_K = _unstream(variant.columns["codes"], bits, int(meta["kept"]), device)
    blank_OI = torch.zeros(rows, columns, dtype=torch.uint8, device=device)
    blank = QuantizedWeight(blank_OI, scale_OG, zero_OG, bits, group_size)
    codes_OI = _zero_points(blank).expand(rows, columns).contiguous()
    codes_OI.view(-1).masked_scatter_(keep_N, code_K)
    return MaskedCodes(keep_N.view(rows, columns), QuantizedWeight(codes_OI, scale_OG, zero_OG, bits, group_size))


def dense_weight(variant: Variant, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The variant's weight, [O, I] in `dtype` on `device`."""
    return decode(variant, device).dequantize(dtype)


def _zero_points(weight: QuantizedWeight) -> Tensor:
    """The code that stands for zero: uint8 [O, I], or [1, 1] where all are the same."""
    if weight.zero_OG is None:
        return torch.full((1, 1), 1 << (weight.bits - 1), dtype=torch.uint8, device=weight.codes_OI.device)
    return weight.zero_OG.repeat_interleave(weight.group_size, 1)


def _stream(code_K: Tensor, bits: int) -> Buffer:
    """Codes as one bit stream, ceil(K * bits / 8) bytes."""
    rows_KR = torch.nn.functional.pad(code_K, (0, -len(code_K) % _ROW)).view(-1, _ROW)
    return bytes_of(pack_codes(rows_KR, bits))[: math.ceil(len(code_K) * bits / 8)]


def _unstream(stream: Buffer, bits: int, codes: int, device: torch.device | str) -> Tensor:
    """Undoes `_stream`: uint8 [codes] on `device`."""
    if len(stream) != math.ceil(codes * bits / 8):
        raise ValueError(f"{len(stream)} bytes for {codes} codes of {bits} bits")
    rows = math.ceil(codes / _ROW)
    packed = torch.zeros(rows * _ROW * bits // 8, dtype=torch.uint8, device=device)
    packed[: len(stream)] = tensor_of(stream, torch.uint8).to(device)
    return unpack_codes(packed.view(torch.int32).view(rows, _ROW * bits // 32), bits, _ROW).view(-1)[:codes]
