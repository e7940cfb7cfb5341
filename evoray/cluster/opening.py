"""Which pool: the driver's own process, or actors of Ray. And crews of builds, which are always the latter.

Holds: `open_pool`, `open_crew`, `joins_cluster`, `crew_device`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from evoray.cluster.pool import LocalPool, Pool, say
from evoray.cluster.worker import WorkerSpec
from evoray.settings.workers import worker_range

if TYPE_CHECKING:
    from evoray.cluster.build_worker import BuildSpec
    from evoray.cluster.ray_crew import RayCrew


def open_pool(
    spec: WorkerSpec,
    *,
    workers: int | str | None = None,
    address: str | None = None,
    allow_mixed: bool = False,
    wait: float = 600.0,
    memory: int = 0,
    hung_after: float = 600.0,
    hung_at_start: float = 7200.0,
    note: Callable[[str], None] = say,
    keep_log: Callable[[str, bytes], None] | None = None,
    run: str | None = None,
) -> Pool:
    """Opens a pool.

    Args:
        spec: how each worker is built.
        workers: 0 for this process, without Ray; None for one per GPU of the cluster, or one per core over
            `spec.threads`, as far as the nodes' memory goes; "MIN..MAX" to begin with the one number and let more join.
        address: of a running Ray cluster; None joins the one this job was submitted to, else starts a local one.
        allow_mixed: let workers of other devices in, and give up bit-equal losses.
        wait: seconds to wait for a worker to find its place when there is none, at the start and whenever all are lost.
            Loading is not counted, as long as it does not fail.
        memory: bytes of host memory that each actor asks Ray for; 0 for no such limit. Of a `HostMemory` the part for
            ready variants, and with it `spec.variant_bytes`, shrinks on CPUs where more workers have room then.
        hung_after: seconds without an answer, and 20 times what was expected, after which a worker is restarted.
        hung_at_start: the same before any speed is known: while a worker is built, and at the first work of a kind.
        note: told of lost and refused workers, of missing room and of candidates set aside, a line each.
        keep_log: given a name and the end of the log of each worker's process that is lost, or ends with the pool.
        run: place of the run, for log lines of workers.

    Raises:
        UserError: no such cluster, no node with memory for a worker, or workers that can't load what the spec names.
        EvorayError: no worker within `wait`.
    """
    if workers == 0:
        return LocalPool(spec)
    # Late, so that a search in one process needs no Ray.
    from evoray.cluster.ray_pool import RayPool

    return RayPool(
        spec,
        workers=workers,
        address=address,
        allow_mixed=allow_mixed,
        wait=wait,
        memory=memory,
        hung_after=hung_after,
        hung_at_start=hung_at_start,
        note=note,
        keep_log=keep_log,
        run=run,
    )


def open_crew(
    spec: BuildSpec,
    *,
    workers: int | str | None = None,
    address: str | None = None,
    wait: float = 600.0,
    memory: int = 0,
    hung_after: float = 7200.0,
    note: Callable[[str], None] = say,
    keep_log: Callable[[str, bytes], None] | None = None,
) -> RayCrew:
    """Opens the crew of a build; use it as a context manager.

    Args:
        spec: how each worker is built.
        workers, address, wait, memory, keep_log: as for `open_pool`; 0 workers are none of Ray's.
        hung_after: seconds after which a worker is restarted that is still being built, or at one piece of work.
        note: told of lost and refused workers and of missing room, a line each.

    Raises:
        UserError: no such cluster, no node with memory for a worker, or workers that can't load what the spec names.
        EvorayError: no worker within `wait`.
    """
    from evoray.cluster.ray_crew import RayCrew

    return RayCrew(
        spec,
        workers=workers,
        address=address,
        wait=wait,
        memory=memory,
        hung_after=hung_after,
        note=note,
        keep_log=keep_log,
    )


def joins_cluster(address: str | None) -> bool:
    """Whether workers would be on a cluster that is there already, whose devices may be others than this machine's."""
    import ray

    return address is not None or "RAY_ADDRESS" in os.environ or ray.is_initialized()


def crew_device(address: str | None, workers: int | str | None, threads: int) -> str:
    """Where the workers of a build on a cluster would run: "cuda" where it has GPUs, else "cpu".

    A store's header names it before there are workers, and a driver's own machine may have other devices.

    Raises:
        UserError: no such cluster.
    """
    import ray

    from evoray.cluster.connection import connect, nodes

    connection = connect(address, worker_range(workers)[1], threads)
    try:
        return "cuda" if any(node.gpus >= 1 for node in nodes()) else "cpu"
    finally:
        if connection.ours:
            ray.shutdown()
