"""Whether the nodes of a cluster have the driver's Python, before a worker is started on them.

Holds: `check_nodes`, `packages`.

Each worker compares for itself, too: nodes may come later. But one that lacks evoray can't even say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evoray.cluster.answers import answer, ended
from evoray.cluster.worker import versions
from evoray.errors import UserError

ANSWER = 15.0
"""Seconds for a node's answer; Ray starts a process for it, and perhaps makes a runtime environment first. A node that
is slower is left to its worker's own comparison."""

SHOWN = 3
"""Nodes that differ are told by name, up to so many."""


def packages() -> dict[str, str]:
    """What has to be the same on driver and nodes: name -> version."""
    return {**versions(), "ray": version("ray")}


def check_nodes(wanted: dict[str, str], asking: Callable[[tuple[str, ...]], Callable[[], Any]] | None = None) -> None:
    """Compares the versions on all nodes with the driver's.

    Args:
        wanted: name -> version, as `packages` gives it.
        asking: makes what is run on a node; tests give one that answers otherwise.

    Raises:
        UserError: a node has other versions, or lacks a package.
    """
    question = ray.remote((asking or _asking)(tuple(wanted)))
    calls = {}
    for entry in ray.nodes():
        if entry["Alive"]:
            there = NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)
            ref = question.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()
            calls[ref] = entry["NodeManagerHostname"]
    until, waiting, unlike = time.monotonic() + ANSWER, list(calls), list[str]()
    while waiting and (left := until - time.monotonic()) > 0:
        refs = ended(waiting, count=1, timeout=left)
        waiting = [ref for ref in waiting if ref not in refs]
        for ref in refs:
            try:
                found = answer(ref)
            except RayError:
                continue  # the node is going, or its runtime environment failed: whoever works there says why
            differing = [
                f"{name} {found[name]}, not {want}" if found[name] is not None else f"no {name}"
                for name, want in wanted.items()
                if found[name] != want
            ]
            if differing:
                unlike.append(f"node {calls[ref]} has {', '.join(differing)}")
    for ref in waiting:
        ray.cancel(ref)
    if unlike:
        more = f"; and {len(unlike) - SHOWN} more" if len(unlike) > SHOWN else ""
        raise UserError(
            f"{'; '.join(sorted(unlike)[:SHOWN])}{more}; give all nodes the driver's image, or a runtime_env with the "
            "same versions"
        )


def _asking(names: tuple[str, ...]) -> Callable[[], dict[str, str | None]]:
    """Of a function inside another Ray sends the code, so that a node without evoray runs it, too."""

    def found() -> dict[str, str | None]:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        there: dict[str, str | None] = {}
        for name in names:
            try:
                there[name] = version(name) if name != "python" else ".".join(platform.python_version_tuple()[:2])
            except PackageNotFoundError:
                there[name] = None
        return there

    return found
