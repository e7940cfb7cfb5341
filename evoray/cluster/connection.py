"""Joining or starting Ray, and what its nodes have.

Holds: `connect`, `Connection`, `nodes`, `draining`.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from evoray.cluster.capacity import Node, usable_cores
from evoray.cluster.ray_errors import first_line
from evoray.errors import EvorayError, UserError
from evoray.stopping import Stopped

OTHER_VERSIONS = "Version mismatch: "
"""How Ray begins to say so, in several lines."""

CONNECT = 10.0
"""Seconds for a connection to a cluster's address."""


@dataclass(frozen=True)
class Connection:
    """How this process came to Ray.

    Attributes:
        ours: it was joined or started here, and is to be left here.
        alone: it is this machine's alone, started here: no node will come.
    """

    ours: bool
    alone: bool


def connect(address: str | None, workers: int | None, threads: int) -> Connection:
    """Joins or starts Ray.

    Raises:
        UserError: no cluster at this address.
        EvorayError: Ray does not start here.
    """
    if ray.is_initialized():
        return Connection(ours=False, alone=False)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    alone = address == "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Nobody else's names are seen, and nobody sees ours.
    options["namespace"] = f"evoray-{uuid.uuid4().hex[:12]}"
    if alone:
        options["include_dashboard"] = False
        # By itself Ray gives its workers so little priority that they starve beside whatever else the machine does.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Ray knows the limits of a container. Only a laptop asked for more workers than it has cores needs more.
        if (workers or 0) * threads > usable_cores():
            options["num_cpus"] = (workers or 0) * threads
    try:
        _check_answers(address)
        with _own_signals():
            ray.init(address=address, **options)
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at {address!r} asks for a token: {first_line(error)}; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN to the cluster's"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        if str(error).startswith(OTHER_VERSIONS):
            raise UserError(f"{' '.join(str(error).split())}; use the cluster's Python and Ray") from None
        if alone:
            raise EvorayError(
                f"Ray did not start on this machine: {first_line(error)}; --workers 0 does without it"
            ) from error
        raise UserError(
            f"no Ray cluster at {address!r}: {first_line(error)}; start one, leave out --address, or give its token by "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from None
    return Connection(ours=True, alone=alone)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Takes back what a driver does at SIGTERM: Ray lets it exit with code 15, from the first moment of joining."""
    mine = signal.getsignal(signal.SIGTERM)
    if not callable(mine) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            raise Stopped(signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, mine)


def nodes() -> list[Node]:
    """The nodes that are alive."""
    found = [entry["Resources"] for entry in ray.nodes() if entry["Alive"]]
    return [Node(has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)) for has in found]


def draining() -> frozenset[str]:
    """Ids of nodes that will be gone soon: preempted, idle or taken back. They end what they have, and get no more."""
    # What Ray's own libraries ask; it has no public name for it. Without it, work on such nodes is lost and done again.
    try:
        return frozenset(ray._private.worker.global_worker.gcs_client.get_draining_nodes(timeout=CONNECT))
    except Exception:
        return frozenset()


def _check_answers(address: str) -> None:
    """Raises OSError where nothing listens: Ray itself would go on trying for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
