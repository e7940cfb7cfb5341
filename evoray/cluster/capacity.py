"""How many workers the nodes have room for, and how much memory each may ask for. Pure logic: no Ray.

Holds: `HostMemory`, `Node`, `Room`, `room_for_workers`, `max_gpus`, `lacking_gpus`, `usable_cores`, `share_of_time`.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evoray.errors import UserError

GPU_HOST_MEMORY = 8 << 30
"""Most bytes of host memory that a worker on a GPU asks for: a weight file of usual size, and libraries."""


class HostMemory(int):
    """Bytes of host memory that a worker would like. A plain number of bytes is one that nothing can be spared of.

    Args:
        size: bytes.
        variants: bytes of it for ready variants. Where memory is short a worker can do with less: they are decoded
            again when they are needed, and no bit depends on them.
        layer: bytes of `variants` that it should have at least: those of one layer.
    """

    variants: int
    layer: int

    def __new__(cls, size: int, variants: int = 0, layer: int = 0) -> "HostMemory":
        made = super().__new__(cls, size)
        made.variants, made.layer = variants, min(layer, variants)
        return made

    def __getnewargs__(self) -> tuple[int, int, int]:
        return int(self), self.variants, self.layer


@dataclass(frozen=True)
class Node:
    """What a node has for workers: cores, GPUs, and bytes of memory."""

    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Room:
    """What was found.

    Attributes:
        workers: how many to start.
        slots: how many the cores (or GPUs) of the nodes would do for.
        fitting: how many of these size have room on the nodes of now.
        memory: bytes that each asks for; 0 for none.
        spared: bytes fewer than it would like.
        variants: bytes of it for ready variants.
    """

    workers: int
    slots: int
    fitting: int
    memory: int
    spared: int
    variants: int


def room_for_workers(
    nodes: Sequence[Node], memory: int, *, threads: int, on_gpu: bool, workers: int | None = None, gpus: int = 1
) -> Room:
    """How many workers, and of what size.

    On CPUs ready variants give way to workers: as many workers as fit when each has the least memory (but no more than
    were asked for), and then as much memory for each as still lets that many fit.

    Args:
        nodes: that are alive.
        memory: bytes that a worker would like, a `HostMemory` where it can do with less; 0 where it does not matter.
        threads: cores of a worker on CPUs.
        on_gpu: each worker has a GPU, or several.
        workers: asked for; None for as many as fit, and at least one.
        gpus: of a worker on GPUs; all on one node.

    Raises:
        UserError: no node that has the cores or the GPUs has the memory for one worker.
    """
    most = min(memory, GPU_HOST_MEMORY) if on_gpu else int(memory)
    likes = memory if isinstance(memory, HostMemory) else HostMemory(memory)
    least = most if on_gpu else most - (likes.variants - likes.layer)
    # A node without place for any worker, such as a head that only directs, says nothing about what others hold.
    able = [node for node in nodes if (node.gpus >= gpus if on_gpu else node.cpus >= threads)]
    each = [int(node.gpus // gpus) if on_gpu else int(node.cpus // threads) for node in able]
    slots = sum(each)

    def fitting(size: int) -> int:
        return sum(min(n, int(node.memory // size)) if size else n for n, node in zip(each, able, strict=True))

    if able and not fitting(least):
        largest = max(node.memory for node in able)
        raise UserError(
            f"each worker asks for at least {least / 1e9:.2f} GB of memory, and the largest node has "
            f"{largest / 1e9:.2f} GB for workers; {'lower --variant-memory, ' if likes.variants else ''}"
            "add a larger node, or use --workers 0"
        )
    wanted = fitting(least) if workers is None else min(workers, fitting(least))
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fitting(middle) >= wanted else (low, middle - 1)
    return Room(
        workers=max(1, wanted) if workers is None else workers,
        slots=slots,
        fitting=fitting(low),
        memory=low,
        spared=most - low,
        variants=likes.variants - (most - low),
    )


def max_gpus(nodes: Sequence[Node]) -> float:
    """The most GPUs that a node has."""
    return max((node.gpus for node in nodes), default=0)


def lacking_gpus(nodes: Sequence[Node], gpus: int) -> str:
    """What is there, and what is missing, where no node has the GPUs of a worker."""
    if gpus == 1:
        return (
            "device cuda: the Ray cluster has no GPU; add GPU nodes, give --workers MIN..MAX where it grows on demand, "
            "or use --device cpu"
        )
    return (
        f"--gpus-per-worker {gpus}: the Ray cluster has {sum(node.gpus for node in nodes):g} GPUs on {len(nodes)} "
        f"nodes, at most {max_gpus(nodes):g} on one, and a worker needs {gpus} on one; add such nodes, give --workers "
        "MIN..MAX where it grows on demand, or lower it"
    )


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, within its container's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, share_of_time(Path("/sys/fs/cgroup")) or cores)


def share_of_time(groups: Path) -> int | None:
    """Whole cores that a container's share of time is worth, rounded up; None without a limit that can be read.

    Args:
        groups: where the system shows control groups, of version 2 or 1.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(word) for name in names for word in (groups / name).read_text("ascii").split())
            # Version 1 writes -1 where there is no limit; version 2 writes "max", which is no number.
            return max(1, math.ceil(quota / period)) if quota > 0 else None
    return None
