"""Answers of Ray's tasks and actors, waited for so that a signal ends the wait in Python, not inside of Ray.

Holds: `ended`, `answer`.

While Ray waits, it runs what this process does at a signal, and knows of KeyboardInterrupt and SystemExit alone. After
any other exception the call ends in a SystemError, and who asked to stop is lost. (Seen of Ray 2.60.)
"""

from collections.abc import Sequence
from typing import Any

import ray

from evoray.stopping import to_the_end

LONGEST = 1.0
"""Seconds of one wait; a signal has its effect afterwards."""


def ended(waiting: Sequence[Any], count: int, timeout: float) -> list[Any]:
    """Which calls have ended, as soon as so many have or the time is over. At most `LONGEST`, then none may have.

    Args:
        waiting: references of calls, at least one.
        count: how many are waited for.
        timeout: seconds.
    """
    with to_the_end():
        return ray.wait(waiting, num_returns=count, timeout=min(timeout, LONGEST))[0]


def answer(ref: Any, timeout: float | None = None) -> Any:
    """What a call answered that has ended.

    Args:
        ref: its reference.
        timeout: seconds until what it answered has come from its node; by default without a limit.

    Raises:
        RayError: what it ended with instead.
        GetTimeoutError: it has not come.
    """
    with to_the_end():
        return ray.get(ref, timeout=timeout)
