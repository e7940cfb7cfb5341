"""Workers as Ray actors that may die at any time.

Holds: `RayPool`.

What was seen of Ray 2.60, and shapes this file: all calls queued on a dying actor fail; what an actor put into the
object store dies with it; errors of lost owners, objects and nodes are not actor errors. So actors restart by
themselves, no call is retried by Ray, and the driver does lost work again.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from evoray.cluster.dispatch import Dispatcher, Item
from evoray.cluster.pool import Pool
from evoray.cluster.worker import DeviceRecord, Worker, WorkerSpec
from evoray.errors import EvorayError, UserError
from evoray.evaluator import Work
from evoray.fitness import Fitness, TeacherBlock

log = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between looks at the clock while nothing is reported; a report ends the wait at once."""

PAUSE = 0.2
"""Seconds before an actor that could not take a call yet is asked again."""

BASE_MODEL = -1
"""The candidate of a `teach` call, in messages."""


class WorkerActor:
    """The worker's process. Building it may fail, so that is a call with a result, not the constructor."""

    def __init__(self) -> None:
        self.worker: Worker | None = None

    def prepare(self, spec: WorkerSpec) -> tuple[DeviceRecord, tuple[str, ...], str, int]:
        """Builds the worker; returns its record, notes, node and process id."""
        if self.worker is None:
            self.worker = Worker(spec)
        return self.worker.record, self.worker.notes, ray.get_runtime_context().get_node_id(), os.getpid()

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        """See `Evaluator.losses`."""
        return self._ready().losses(rows_NL, work, fitness)

    def teach(self, work: Work) -> list[TeacherBlock]:
        """See `Evaluator.teach`."""
        return self._ready().teach(work)

    def _ready(self) -> Worker:
        if self.worker is None:
            raise _Unprepared
        return self.worker


class _Unprepared(Exception):
    """The process was restarted while it had no call; it has to be prepared again, and no work is to blame."""


@dataclass(eq=False)
class _Actor:
    """The driver's view of one actor.

    `starting` is the call that prepares it, None while it is ready; `again_at` is when to ask once more after a call
    that it could not take.
    """

    handle: Any
    starting: Any = None
    again_at: float = 0.0
    ready: bool = False
    node: str | None = None
    pid: int | None = None
    failures: int = 0


class RayPool(Pool):
    """See `open_pool`."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        workers: int | None,
        address: str | None,
        allow_mixed: bool,
        wait: float,
        memory: int,
    ) -> None:
        super().__init__()
        self._started_ray = _connect(address, workers, spec.threads)
        try:
            resources = ray.cluster_resources()
            gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            device = spec.device if spec.device != "auto" else ("cuda" if gpus else "cpu")
            self.spec = replace(spec, device=device)
            on_gpu = device.startswith("cuda")
            if workers is None:
                workers = gpus if on_gpu else max(1, cpus // spec.threads)
            if on_gpu and gpus < 1:
                raise UserError("device cuda: the Ray cluster has no GPU; add GPU nodes, or use --device cpu")
            self.workers = workers
            self._allow_mixed = allow_mixed
            options: dict[str, Any] = {
                "num_cpus": spec.threads if not on_gpu else 1,
                "num_gpus": 1 if on_gpu else 0,
                "max_restarts": -1,
                "max_task_retries": 0,
            }
            if memory:
                options["memory"] = memory
            actor_class = ray.remote(WorkerActor).options(**options)
            self._spec_ref = ray.put(self.spec)
            self._actors = [_Actor(actor_class.remote()) for _ in range(workers)]
            self._records: dict[str, DeviceRecord] = {}
            for actor in self._actors:
                self._prepare(actor)
            self._await_first(wait, options)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for actor in getattr(self, "_actors", []):
            ray.kill(actor.handle)
        self._actors = []
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    # Starting

    def _prepare(self, actor: _Actor) -> None:
        actor.ready = False
        actor.starting = actor.handle.prepare.remote(self._spec_ref)

    def _await_first(self, wait: float, options: dict[str, Any]) -> None:
        until = time.monotonic() + wait
        while not any(actor.ready for actor in self._actors):
            if time.monotonic() > until:
                asked = {key: options[key] for key in ("num_cpus", "num_gpus", "memory") if options.get(key)}
                raise EvorayError(
                    f"no worker started within {wait:.0f} s: each asks for {asked}, free in the cluster are "
                    f"{ray.available_resources()}; add nodes, lower --workers, or give --wait"
                )
            self._look_at_starting(POLL)

    def _look_at_starting(self, timeout: float) -> None:
        """Takes the actors that became ready; asks the others again."""
        now = time.monotonic()
        for actor in self._actors:
            if not actor.ready and actor.starting is None and now >= actor.again_at:
                self._prepare(actor)
        starting = {actor.starting: actor for actor in self._actors if actor.starting is not None}
        if not starting:
            time.sleep(min(timeout, PAUSE))
            return
        for ref in ray.wait(list(starting), num_returns=1, timeout=timeout)[0]:
            self._settle_start(starting[ref])

    def _settle_start(self, actor: _Actor) -> None:
        ref, actor.starting = actor.starting, None
        try:
            record, notes, actor.node, actor.pid = ray.get(ref)
        except RayTaskError as error:
            raise _told(error) from None
        except RayError as error:
            actor.failures += 1
            # A process that dies while it loads, on nodes that live: it won't get better by itself.
            if actor.failures > 20 and not any(other.ready for other in self._actors):
                raise EvorayError(f"workers die while they load {self.spec.model}: {_first_line(error)}") from None
            actor.again_at = time.monotonic() + PAUSE * min(actor.failures, 25)
            return
        if not hasattr(self, "record"):
            self.record, self.notes = record, notes
        differing = record.differences(self.record)
        if differing and not self._allow_mixed:
            raise UserError(
                f"a worker differs from the others in {'; '.join(differing)}; use nodes of one kind, or --allow-mixed"
            )
        actor.failures = 0
        actor.ready = True

    # Measuring

    def _measure(
        self, rows_NL: np.ndarray, works: Sequence[Work], fitness: Fitness, progress: Callable[[float], None] | None
    ) -> np.ndarray:
        order = np.lexsort(rows_NL.T[::-1]) if rows_NL.shape[1] else np.arange(len(rows_NL))
        dispatcher = Dispatcher(
            len(rows_NL), [len(work.cuts) for work in works], order=order.tolist(), workers=len(self._actors)
        )
        refs = [ray.put(work) for work in works]

        def submit(handle: Any, item: Item) -> Any:
            return handle.losses.remote(rows_NL[list(item.candidates)], refs[item.batch], fitness)

        def take(item: Item, result: np.ndarray) -> np.ndarray:
            return result

        self._drive(dispatcher, submit, take, progress)
        self.named_aside |= {tuple(rows_NL[index].tolist()) for index in dispatcher.set_aside}
        return np.concatenate(dispatcher.losses, axis=1)

    def teach(self, works: Sequence[Work], progress: Callable[[float], None] | None = None) -> list[list[TeacherBlock]]:
        dispatcher = Dispatcher(1, [1] * len(works), workers=1)
        refs = [ray.put(work) for work in works]
        taught: dict[int, list[TeacherBlock]] = {}

        def submit(handle: Any, item: Item) -> Any:
            return handle.teach.remote(refs[item.batch])

        def take(item: Item, result: list[TeacherBlock]) -> np.ndarray:
            taught[item.batch] = result
            return np.zeros((1, 1))

        self._drive(dispatcher, submit, take, progress)
        return [taught[index] for index in range(len(works))]

    def _drive(
        self,
        dispatcher: Dispatcher,
        submit: Callable[[Any, Item], Any],
        take: Callable[[Item, Any], np.ndarray],
        progress: Callable[[float], None] | None,
    ) -> None:
        """Carries items out and results in until the dispatcher has all of them."""
        # Calls that an error leaves behind are not cancelled: that can wedge an actor that works in order.
        calls: dict[Any, tuple[_Actor, Item]] = {}
        added: set[int] = set()
        while not dispatcher.finished:
            for index, actor in enumerate(self._actors):
                if not actor.ready:
                    continue
                if index not in added:
                    dispatcher.add(index)
                    added.add(index)
                while (item := dispatcher.next_for(index)) is not None:
                    calls[submit(actor.handle, item)] = (actor, item)
            if any(not actor.ready for actor in self._actors):
                self._look_at_starting(0 if calls else POLL)
            if not calls:
                continue
            for ref in ray.wait(list(calls), num_returns=1, timeout=POLL)[0]:
                if ref not in calls:
                    continue  # lost together with one before it
                actor, item = calls.pop(ref)
                index = self._actors.index(actor)
                try:
                    losses = take(item, ray.get(ref))
                except RayError as error:
                    if isinstance(error, RayTaskError) and not isinstance(error.cause, _Unprepared):
                        raise _told(error) from None
                    calls = {ref: (actor, item), **calls}
                    added.discard(index)
                    self._lose(actor, index, error, dispatcher, take, calls)
                else:
                    dispatcher.done(index, item, losses)
                    if progress:
                        progress(dispatcher.share_done)

    def _lose(
        self,
        actor: _Actor,
        index: int,
        error: RayError,
        dispatcher: Dispatcher,
        take: Callable[[Item, Any], np.ndarray],
        calls: dict[Any, tuple[_Actor, Item]],
    ) -> None:
        """An actor is gone: what it had finished counts, the rest goes back, and it is prepared again."""
        self.lost += 1
        for ref in [ref for ref, (holder, _) in calls.items() if holder is actor]:
            _, item = calls.pop(ref)
            try:
                result = ray.get(ref, timeout=0)
            except (RayError, GetTimeoutError):
                continue
            dispatcher.done(index, item, take(item, result))
        excused = isinstance(error, RayTaskError) or getattr(error, "preempted", False)
        blame = not excused and self._node_lives(actor)
        log.warning("worker %d (pid %s) was lost: %s", index, actor.pid, _first_line(error))
        aside = dispatcher.lost(index, blame=blame)
        actor.starting, actor.ready = None, False
        actor.again_at = time.monotonic() + PAUSE
        if aside:
            log.warning("candidate %s kills workers by itself and is set aside with infinite loss", aside)

    def _node_lives(self, actor: _Actor) -> bool:
        return any(node["NodeID"] == actor.node and node["Alive"] for node in ray.nodes())


def _connect(address: str | None, workers: int | None, threads: int) -> bool:
    """Joins or starts Ray; whether it was started or joined here, and is to be left here."""
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # Never fewer CPUs than were asked for: a laptop may run more workers than it has cores.
        cores = os.cpu_count() or 1
        options |= {"num_cpus": max(cores, (workers or 0) * threads), "include_dashboard": False}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address!r}: {_first_line(error)}; start one, or leave out --address"
        ) from None
    return True


def _told(error: RayTaskError) -> EvorayError:
    """What a worker raised, as the driver raises it."""
    cause = error.cause
    if isinstance(cause, EvorayError):
        return cause
    failure = EvorayError(f"a worker failed with {type(cause).__name__}: {_first_line(cause)}")
    failure.__cause__ = error
    return failure


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
