"""Quantized weights as packed integer codes: what they are, how they lie in the store, and back.

Holds `pack_codes` and `unpack_codes` (the bit stream), `QuantizedWeight` (codes, scales, zero points),
`encode`, `describe` and `to_variant` (into the store), `decode` and `dense_weight` (out of it).

The codes of one row of the weight are an unsigned little-endian bit stream: element e takes the bits
[e*b, (e+1)*b), and each row is padded with zero bits to whole 32-bit words. This is what compressed-tensors
(0.18 and later) calls `pack-quantized`, with codes offset by 2^(b-1); zero points are packed the same way down
the OUT dimension. So an export copies these bytes and never rounds again.

Shape letters: O out, I in, G groups, W packed 32-bit words.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evoray.store.variants import Buffer, Variant

PACKED = "packed"
"""Name of this format in the `meta` of a variant."""

MIN_BITS, MAX_BITS = 2, 8
SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# Eight codes fill one int64. Spreading b-bit codes to bytes is three steps, each halving the run of codes that
# still lie close together; (field width in bytes, mask of one low field per pair of fields).
_STEPS = ((4, 0x00000000_00000001), (2, 0x00000001_00000001), (1, 0x0001_0001_0001_0001))

# On a CPU the int64 temporaries of a piece of this many codes stay in the second-level cache.
_CPU_PIECE = 1 << 18

# `warnings.catch_warnings` swaps a global list, so two threads must not do it at once.
_WARNINGS = threading.Lock()


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{bits} bits per code; packed codes have {MIN_BITS} to {MAX_BITS}")


def _masks(bits: int) -> list[tuple[int, int, int]]:
    """(shift, mask of the fields that stay, mask of the fields that move) for each step of the spreading."""
    steps: list[tuple[int, int, int]] = []
    for width, ones in _STEPS:
        low = ones * ((1 << (width * bits)) - 1)
        steps.append((width * (8 - bits), low, low << (width * 8)))
    return steps


def _row_words(elements: int, bits: int) -> int:
    """32-bit words that one packed row of `elements` codes takes."""
    return math.ceil(elements * bits / 32)


def _pieces(rows: int, columns: int, device: torch.device) -> range:
    """First rows of the pieces to work through; one piece on an accelerator, cache-sized ones on a CPU."""
    step = max(1, _CPU_PIECE // max(columns, 1)) if device.type == "cpu" else max(rows, 1)
    return range(0, rows, step)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs unsigned codes, row by row, into 32-bit words.

    Args:
        codes: uint8 [O, I], every value below 2^bits; any device.
        bits: bits per code, 2 to 8.

    Returns:
        int32 [O, ceil(I * bits / 32)] on the same device.

    Raises:
        ValueError: on another shape, type or bit count, or a code that does not fit.
    """
    _check_bits(bits)
    if codes.dtype is not torch.uint8 or codes.ndim != 2:
        raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}; packing takes uint8 [O, I]")
    if codes.numel() and int(codes.max()) >= 1 << bits:
        raise ValueError(f"the largest code is {int(codes.max())}; {bits} bits hold at most {(1 << bits) - 1}")
    rows, columns = codes.shape
    eights = math.ceil(columns / 8)
    row_bytes = 4 * _row_words(columns, bits)
    packed = torch.zeros(rows, row_bytes, dtype=torch.uint8, device=codes.device)
    pieces = _pieces(rows, columns, codes.device)
    for first in pieces:
        piece = codes[first : first + pieces.step]
        if bits == 8:
            packed[first : first + pieces.step, :columns] = piece
            continue
        # A copy into memory of its own: what the caller gave need not start or step at multiples of eight bytes.
        spread = torch.zeros(len(piece), 8 * eights, dtype=torch.uint8, device=codes.device)
        spread[:, :columns] = piece
        words = spread.view(torch.int64)
        for shift, low, high in reversed(_masks(bits)):
            words = (words & low) | ((words & high) >> shift)
        filled = words.view(torch.uint8).view(-1, eights, 8)[:, :, :bits].reshape(-1, eights * bits)
        # The last eight codes may be partly padding that reaches past the row's last word; it is all zero there.
        used = min(eights * bits, row_bytes)
        packed[first : first + pieces.step, :used] = filled[:, :used]
    return packed.view(torch.int32)


def unpack_codes(packed: Tensor, bits: int, in_features: int) -> Tensor:
    """Undoes `pack_codes`.

    Args:
        packed: int32 [O, ceil(in_features * bits / 32)]; any device.
        bits: bits per code, 2 to 8.
        in_features: codes per row.

    Returns:
        uint8 [O, in_features] on the same device.

    Raises:
        ValueError: on another shape, type or bit count.
    """
    _check_bits(bits)
    words_wanted = _row_words(in_features, bits)
    if packed.dtype is not torch.int32 or packed.ndim != 2 or packed.shape[1] != words_wanted:
        raise ValueError(
            f"packed codes are {packed.dtype} {list(packed.shape)}; "
            f"{in_features} codes of {bits} bits take int32 [O, {words_wanted}]"
        )
    rows = packed.shape[0]
    stream = packed.reshape(-1).view(torch.uint8).view(rows, 4 * words_wanted)
    if bits == 8:
        return stream[:, :in_features].clone(memory_format=torch.contiguous_format)
    eights = math.ceil(in_features / 8)
    missing = eights * bits - stream.shape[1]
    if missing > 0:
        stream = torch.nn.functional.pad(stream, (0, missing))
    stream = stream[:, : eights * bits]
    codes = torch.empty(rows, eights * 8, dtype=torch.uint8, device=packed.device)
    spread = codes.view(torch.int64)
    steps = _masks(bits)
    pieces = _pieces(rows, in_features, packed.device)
    for first in pieces:
        piece = stream[first : first + pieces.step].reshape(-1, eights, bits)
        words = spread[first : first + pieces.step]
        words.zero_()
        words.view(torch.uint8).view(-1, eights, 8)[:, :, :bits].copy_(piece)
        for shift, low, high in steps:
            moved = (words << shift).bitwise_and_(high)
            words.bitwise_and_(low).bitwise_or_(moved)
    return codes if codes.shape[1] == in_features else codes[:, :in_features].contiguous()


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight matrix as integer codes with a scale, and maybe a zero point, per group of input columns.

    Attributes:
        codes_OI: uint8 [O, I], values below 2^bits.
        scale_OG: [O, G] in the dtype it is stored in (float16, bfloat16 or float32).
        zero_OG: uint8 [O, G], values below 2^bits; None when symmetric, where every zero point is 2^(bits-1).
        bits: bits per code, 2 to 8.
        group_size: input columns per scale; divides I.

    Raises:
        ValueError: where shapes, types, bits and group size do not belong together.
    """

    codes_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor | None
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        rows, columns = self.codes_OI.shape
        if self.group_size < 1 or columns % self.group_size:
            raise ValueError(f"group size {self.group_size} does not divide the input width {columns}")
        wanted = (rows, columns // self.group_size)
        if self.codes_OI.dtype is not torch.uint8:
            raise ValueError(f"codes are {self.codes_OI.dtype}; they must be uint8")
        if tuple(self.scale_OG.shape) != wanted or self.scale_OG.dtype not in SCALE_DTYPES.values():
            raise ValueError(
                f"scales are {self.scale_OG.dtype} {list(self.scale_OG.shape)}; "
                f"they must be {', '.join(SCALE_DTYPES)} {list(wanted)}"
            )
        if self.zero_OG is not None and (tuple(self.zero_OG.shape) != wanted or self.zero_OG.dtype is not torch.uint8):
            raise ValueError(
                f"zero points are {self.zero_OG.dtype} {list(self.zero_OG.shape)}; they must be uint8 {list(wanted)}"
            )

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 2^(bits-1)."""
        return self.zero_OG is None

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight that a compressed-tensors checkpoint of these codes dequantizes to.

        (code - zero) is a whole number of at most 8 bits and a sign, exact in every scale dtype; its product with
        the scale is rounded once, to the scale's dtype, and only then cast.

        Args:
            dtype: of the result.

        Returns:
            [O, I] in `dtype`, on the device of the codes.
        """
        rows, columns = self.codes_OI.shape
        weight = self.codes_OI.to(self.scale_OG.dtype).view(rows, -1, self.group_size)
        if self.zero_OG is None:
            weight.sub_(1 << (self.bits - 1))
        else:
            weight.sub_(self.zero_OG.to(self.scale_OG.dtype).unsqueeze(-1))
        weight.mul_(self.scale_OG.unsqueeze(-1))
        return weight.view(rows, columns).to(dtype)

    def to_variant(self, layer: str, level: str, error: float) -> Variant:
        """This weight as the store takes it: see the function of that name."""
        return to_variant(layer, level, self, error)


def scale_name(dtype: torch.dtype) -> str:
    """The name of a dtype in `SCALE_DTYPES`."""
    return next(name for name, known in SCALE_DTYPES.items() if known is dtype)


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes in row-major order, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def tensor_of(buffer: Buffer, dtype: torch.dtype) -> Tensor:
    """A flat tensor over the buffer's own memory, which nobody may write to."""
    if not len(buffer):
        return torch.empty(0, dtype=dtype)
    with _WARNINGS, warnings.catch_warnings():
        # torch has no read-only tensors and warns of that; the tensor never leaves these files unconverted.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.frombuffer(buffer, dtype=dtype)


def encode(weight: QuantizedWeight) -> dict[str, Buffer]:
    """The columns of the store for one weight.

    Returns:
        `codes` (int32 [O, W]), `scales` ([O, G] in their dtype) and, unless symmetric, `zeros`
        (int32 [ceil(O * bits / 32), G]), each as row-major little-endian bytes.
    """
    columns: dict[str, Buffer] = {
        "codes": bytes_of(pack_codes(weight.codes_OI, weight.bits)),
        "scales": bytes_of(weight.scale_OG),
    }
    if weight.zero_OG is not None:
        columns["zeros"] = bytes_of(pack_codes(weight.zero_OG.T.contiguous(), weight.bits).T)
    return columns


def describe(weight: QuantizedWeight) -> dict[str, Any]:
    """The `meta` of a variant: what `decode` must know beside the columns."""
    return {
        "format": PACKED,
        "bits": weight.bits,
        "group_size": weight.group_size,
        "shape": list(weight.codes_OI.shape),
        "scale_dtype": scale_name(weight.scale_OG.dtype),
        "symmetric": weight.symmetric,
    }


def to_variant(layer: str, level: str, weight: QuantizedWeight, error: float) -> Variant:
    """A weight as the store takes it.

    Args:
        layer: module path.
        level: label of the level, such as "4".
        weight: the quantized weight.
        error: layer error of this variant.
    """
    return Variant(layer=layer, level=level, columns=encode(weight), meta=describe(weight), error=error)


def decode(
    columns: Mapping[str, Buffer], meta: Mapping[str, Any], device: torch.device | str = "cpu"
) -> QuantizedWeight:
    """Undoes `encode`; the packed bytes travel to `device` and are unpacked there.

    Args:
        columns: as `encode` gives them.
        meta: as `describe` gives it.
        device: where the result shall lie.

    Raises:
        ValueError: where columns and meta do not belong together.
    """
    rows, in_features = (int(size) for size in meta["shape"])
    bits, group_size = int(meta["bits"]), int(meta["group_size"])
    groups = in_features // group_size
    try:
        packed = tensor_of(columns["codes"], torch.int32).view(rows, _row_words(in_features, bits))
        scale_OG = tensor_of(columns["scales"], SCALE_DTYPES[meta["scale_dtype"]]).view(rows, groups)
        zeros = None
        if not meta["symmetric"]:
            zeros = tensor_of(columns["zeros"], torch.int32).view(_row_words(rows, bits), groups)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"columns do not fit their description {dict(meta)}: {error}") from error
    # `clone` on the CPU: the scales of the result must not alias read-only memory.
    scale_OG = scale_OG.clone() if torch.device(device).type == "cpu" else scale_OG.to(device)
    zero_OG = None
    if zeros is not None:
        zero_OG = unpack_codes(zeros.to(device).T.contiguous(), bits, rows).T.contiguous()
    return QuantizedWeight(
        codes_OI=unpack_codes(packed.to(device), bits, in_features),
        scale_OG=scale_OG,
        zero_OG=zero_OG,
        bits=bits,
        group_size=group_size,
    )


def dense_weight(variant: Variant, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The variant's weight, [O, I] in `dtype` on `device`."""
    return decode(variant.columns, variant.meta, device).dequantize(dtype)
