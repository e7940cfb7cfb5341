"""Values as the page of a report spells them.

Holds: `number`, `exact`, `whole`, `duration`, `flat`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None, digits: int = 6) -> str:
    """A measured value: `0.00703475`; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else f"{value:.{digits}g}"


def exact(value: float | None) -> str:
    """A cost, four digits behind the point, as tables on the terminal have it."""
    return "–" if value is None else f"{value:.4f}"


def whole(value: int | None) -> str:
    """A count: `1,179,648`."""
    return "–" if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """`2 h 5 min`, `3 min 20 s`, `4.2 s`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def flat(value: Any) -> str:
    """A value of settings on one line: lists with commas, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {flat(each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(flat, value)) or "none"
    return "yes" if value is True else "no" if value is False else str(value)
