"""How many workers, as people write it.

Holds: `Workers`, `worker_range`.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_RANGE = re.compile(r"\s*(\d*)\s*\.\.\s*(\d+)\s*")

MOST_WORKERS = 100_000
"""More could not be told apart from a slip."""


def _parsed(value: Any) -> Any:
    """None for auto, a number, or `MIN..MAX`."""
    wanted = "should be auto, a number, or a range such as 4..16"
    if isinstance(value, str):
        if value.strip() == "auto":
            return None
        if (found := _RANGE.fullmatch(value)) is not None:
            least, most = int(found[1] or 1), int(found[2])
            if not 1 <= least <= most <= MOST_WORKERS:
                raise ValueError(f"{wanted}, from 1 on, the larger number last")
            return f"{least}..{most}"
        try:
            value = int(value)
        except ValueError:
            raise ValueError(wanted) from None
    if value is None:
        return None
    if not isinstance(value, int):
        raise ValueError(wanted)
    if not 0 <= value <= MOST_WORKERS:
        raise ValueError(f"{wanted}, not less than 0 nor more than {MOST_WORKERS}")
    return value


Workers = Annotated[int | str | None, BeforeValidator(_parsed)]


def worker_range(workers: int | str | None) -> tuple[int, int | None]:
    """How many are needed to begin, and how many are wanted; None for as many as there is room for.

    Raises:
        ValueError: not of this form.
    """
    workers = _parsed(workers)
    if workers is None:
        return 1, None
    if isinstance(workers, int):
        return min(1, workers), workers
    least, most = workers.split("..")
    return int(least), int(most)
