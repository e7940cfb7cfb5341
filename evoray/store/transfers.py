"""What goes to object storage and comes from it: tried again when it fails, and counted.

Holds: `TRANSFERS`, `Transfers`, `retried`, `ATTEMPTS`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from evoray.store.uris import is_users

ATTEMPTS = 6
"""Tries of one request. With the waits between them they outlast 4 to 8 seconds of storage that answers nothing."""

FIRST_WAIT, LONGEST_WAIT = 0.25, 4.0
"""Seconds before the second try, doubled for each one after, and their limit."""

_Result = TypeVar("_Result")


class Transfers:
    """Counts of this process. Threads may share it.

    Attributes:
        hits: files that the node's cache had.
        fetched: bytes that came from object storage.
        retries: requests that were made again.
    """

    def __init__(self) -> None:
        self.hits = 0
        self.fetched = 0
        self.retries = 0
        self._lock = threading.Lock()

    def add(self, *, hits: int = 0, fetched: int = 0, retries: int = 0) -> None:
        """Counts more of each."""
        with self._lock:
            self.hits += hits
            self.fetched += fetched
            self.retries += retries


TRANSFERS = Transfers()
"""Those of this process since it began."""


def retried(request: Callable[[], _Result]) -> _Result:
    """Makes a request until it works, waiting longer each time.

    Args:
        request: makes it; may be repeated.

    Raises:
        FileNotFoundError, or an error that asks the user to act: at once.
        pyarrow.ArrowException, OSError: the last of `ATTEMPTS`.
    """
    wait = FIRST_WAIT
    for left in reversed(range(ATTEMPTS)):
        try:
            return request()
        except (pa.ArrowException, OSError) as error:
            if not left or isinstance(error, FileNotFoundError) or is_users(str(error)):
                raise
        TRANSFERS.add(retries=1)
        # Workers that failed together must not come back together.
        time.sleep(wait * (0.5 + secrets.randbelow(500) / 1000))
        wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("unreachable")
