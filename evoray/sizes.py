"""Sizes as people write them.

Holds: `parse_size`, `human_bytes`.
"""

import math
import re
from fractions import Fraction

from evoray.errors import UserError

_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Bytes of a size as people write it: `3.5GB` (powers of 1000), `3.2GiB` (of 1024), `900MB`, `3500000000`.

    Raises:
        UserError: not a size, or less than one byte.
    """
    match = _SIZE.fullmatch(str(text))
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UserError(f"{text!r} is not a size; write bytes as a whole number, or like 3.5GB, 3.2GiB, 900MB")
    size = math.floor(Fraction(match[1]) * unit)
    if size < 1:
        raise UserError(f"a size of {text!r} is less than one byte; write it like 3.5GB, 3.2GiB, 900MB")
    return size


def human_bytes(count: int) -> str:
    """`1.50 GB`: powers of 1000, as sizes on the command line."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:.2f} {units[0]}"
