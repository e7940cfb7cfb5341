"""What an error of Ray's tells: that work was lost, who is to blame, or that something failed.

Holds: `LOSSES`, `process_died`, `told`, `first_line`.

What was seen of Ray 2.60: errors of lost owners, objects and nodes are not actor errors. A killed process, a killed
node and a broken connection all look the same (`ActorUnavailableError`), and for up to half a minute the cluster lists
a dead node as alive.
"""

import socket

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from evoray.errors import EvorayError

LOSSES = (RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)
"""Errors after which the same call may succeed elsewhere. All others are failures."""

ANSWER = 2.0
"""Seconds in which a living node accepts a connection."""


def process_died(error: RayError, node: str | None) -> bool:
    """Whether a worker died by itself: not with its node, not preempted, and not because the node's memory was full.

    Args:
        error: what its call ended with.
        node: id of the node it was on.
    """
    if not isinstance(error, RayActorError | WorkerCrashedError) or getattr(error, "preempted", False):
        return False
    # Whom Ray kills when memory is short need not be the one who filled it.
    return "low on memory" not in str(error) and _lives(node)


def _lives(node: str | None) -> bool:
    for entry in ray.nodes():
        if entry["NodeID"] == node and entry["Alive"]:
            try:
                socket.create_connection((entry["NodeManagerAddress"], entry["NodeManagerPort"]), ANSWER).close()
            except OSError:
                return False
            return True
    return False


def told(error: RayError) -> EvorayError:
    """What a worker raised, as the driver raises it: one line."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, EvorayError):
        return cause
    failure = EvorayError(f"a worker failed with {type(cause).__name__}: {first_line(cause)}")
    failure.__cause__ = error
    return failure


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
