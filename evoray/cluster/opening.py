"""Which pool: the driver's own process, or actors of Ray.

Holds: `open_pool`.
"""

from collections.abc import Callable

from evoray.cluster.pool import LocalPool, Pool, say
from evoray.cluster.worker import WorkerSpec


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
