"""Many evaluators as one. The only room that imports ray, and only when a pool of actors is opened.

`dispatch.py`: `Dispatcher`: who does what, and again after a loss; pure logic.
`roster.py`, `speeds.py`: `Roster`, `Speeds`: what each worker has in hand, and how fast it is; pure logic.
`worker.py`: `WorkerSpec`, `DeviceRecord`, `Worker`: one evaluator and the facts that its bits depend on.
`pool.py`: `Pool`, `LocalPool`: what a driver sees.
`opening.py`: `open_pool`: the one or the other; `open_crew`: the workers of a build;
`joins_cluster`, `crew_device`: where they would be, and on what.
`capacity.py`: `HostMemory`, `room_for_workers`, `usable_cores`: how many workers the nodes have room for; pure logic.
`connection.py`: joining or starting Ray.
`actor.py`: `ModelActor`, `WorkerActor`: the process of a worker.
`actors.py`: `Actors`: the processes as the driver sees them.
`ray_pool.py`: `RayPool`: workers as Ray actors that may die, and their work.
`rota.py`: `Rota`: who does what in a build, and again after a loss; pure logic.
`build_worker.py`: `BuildSpec`, `BuildActor`: a worker of a build.
`ray_crew.py`: `RayCrew`: these as Ray actors that may die.
`metrics.py`: `RunMetrics`: figures of a run for whoever watches the cluster.
`logs.py`: `WorkerLogs`: what workers wrote, brought to the driver.
`environment.py`: whether nodes have the driver's Python.
`answers.py`: waiting for Ray's answers, so that a signal ends the wait.
`ray_errors.py`: what an error of Ray's tells.
"""

from evoray.cluster.dispatch import Dispatcher, Item
from evoray.cluster.opening import crew_device, joins_cluster, open_crew, open_pool
from evoray.cluster.pool import LocalPool, Pool
from evoray.cluster.worker import DeviceRecord, Worker, WorkerSpec

__all__ = [
    "DeviceRecord",
    "Dispatcher",
    "Item",
    "LocalPool",
    "Pool",
    "Worker",
    "WorkerSpec",
    "crew_device",
    "joins_cluster",
    "open_crew",
    "open_pool",
]
