"""Workers as Ray actors that may die at any time.

Holds: `RayPool`, `WorkerActor`.

What was seen of Ray 2.60, and shapes this file: all calls queued on a dying actor fail; what an actor put into the
object store dies with it. So actors restart by themselves, no call is retried by Ray, and the driver does lost work
again.
"""

import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from evoray.cluster.dispatch import Dispatcher, Item
from evoray.cluster.pool import Pool, say
from evoray.cluster.ray_errors import LOSSES, first_line, process_died, told
from evoray.cluster.worker import DeviceRecord, Worker, WorkerSpec
from evoray.errors import EvorayError, UserError
from evoray.evaluator import Work
from evoray.fitness import Fitness, TeacherBlock

POLL = 1.0
"""Seconds between looks at the clock while nothing is reported; a report ends the wait at once."""

GPU_HOST_MEMORY = 8 << 30
"""Most bytes of host memory that a worker on a GPU asks for: a weight file of usual size, and libraries."""

PAUSE = 0.2
"""Seconds before an actor that could not take a call yet is asked again; grows with every failure."""

LONG_PAUSE = 60.0
"""Seconds between tries of an actor that failed `TRIES` times in a row."""

TRIES = 20
"""Failed starts in a row, or losses in a row without a result, that a dying node or a restart may explain."""

CONNECT = 10.0
"""Seconds for a connection to a cluster's address."""

DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl(2), which only Linux has: a signal for when the parent, Ray's node process, is gone."""

MANY_ASIDE = 4
"""Candidates set aside in one measurement beyond which it is not the candidates that kill workers."""


class WorkerActor:
    """The worker's process. Building it may fail, so that is a call with a result, not the constructor."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        # After its driver or node was killed, Ray would keep this process, and its device's memory, for a minute.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)

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
            raise _UnpreparedError
        return self.worker


class _UnpreparedError(Exception):
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
    """See `open_pool`.

    Args:
        actor_class: what runs in the workers' processes; tests give one that dies when it is told to.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        workers: int | None = None,
        address: str | None = None,
        allow_mixed: bool = False,
        wait: float = 600.0,
        memory: int = 0,
        note: Callable[[str], None] = say,
        actor_class: type[WorkerActor] = WorkerActor,
    ) -> None:
        super().__init__()
        self._note, self._wait = note, wait
        self._barren = 0
        self._actors: list[_Actor] = []
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
                # On a GPU the weights pass through the host a file at a time.
                options["memory"] = min(memory, GPU_HOST_MEMORY) if on_gpu else memory
            self._asked = {key: options[key] for key in ("num_cpus", "num_gpus", "memory") if options.get(key)}
            remote_class = ray.remote(actor_class).options(**options)
            self._spec_ref = ray.put(self.spec)
            self._actors += [_Actor(remote_class.remote()) for _ in range(workers)]
            until = time.monotonic() + wait
            while not any(actor.ready for actor in self._actors):
                self._check_wait(until)
                self._ask_to_start()
                self._await({}, until)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for actor in self._actors:
            # What is left of a cluster that broke down may refuse even this.
            with contextlib.suppress(Exception):
                ray.kill(actor.handle)
        self._actors = []
        if self._started_ray:
            self._started_ray = False
            ray.shutdown()

    # Starting

    def _ask_to_start(self) -> None:
        """Asks every actor that is neither ready nor being prepared, once its pause is over."""
        now = time.monotonic()
        for actor in self._actors:
            if not actor.ready and actor.starting is None and now >= actor.again_at:
                actor.starting = actor.handle.prepare.remote(self._spec_ref)

    def _check_wait(self, until: float) -> None:
        if time.monotonic() > until:
            raise EvorayError(
                f"no worker for {self._wait:.0f} s: each asks for {self._asked}, free in the cluster are "
                f"{ray.available_resources()}; add nodes, lower --workers, or give --wait"
            )

    def _await(self, calls: dict[Any, tuple[_Actor, Item]], until: float = math.inf) -> list[Any]:
        """Waits for a call or a start to end, but never long. Settles starts; returns calls that ended."""
        starting = {actor.starting: actor for actor in self._actors if actor.starting is not None}
        again = [actor.again_at for actor in self._actors if not actor.ready and actor.starting is None]
        timeout = max(0.0, min(POLL, until - time.monotonic(), *(at - time.monotonic() for at in again)))
        waiting = [*calls, *starting]
        if not waiting:
            time.sleep(timeout)
            return []
        ended = ray.wait(waiting, num_returns=1, timeout=timeout)[0]
        for ref in ended:
            if ref in starting:
                self._settle_start(starting[ref])
        return [ref for ref in ended if ref in calls]

    def _settle_start(self, actor: _Actor) -> None:
        ref, actor.starting = actor.starting, None
        try:
            record, notes, actor.node, actor.pid = ray.get(ref)
        except RayError as error:
            if not isinstance(error, LOSSES):
                raise told(error) from None
            actor.failures += 1
            if actor.failures >= TRIES:
                # A process that dies whenever it loads, on nodes that live, won't get better by itself.
                if not any(other.ready for other in self._actors):
                    raise EvorayError(f"workers die while they load {self.spec.model}: {first_line(error)}") from None
                if actor.failures == TRIES:
                    self._note(f"worker {self._actors.index(actor)} died {TRIES} times while it loaded")
            actor.again_at = time.monotonic() + (PAUSE * actor.failures if actor.failures < TRIES else LONG_PAUSE)
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

        def aside(candidate: int) -> None:
            row = tuple(rows_NL[candidate].tolist())
            self.named_aside.add(row)
            self._note(
                "a candidate kills workers by itself and is set aside with infinite loss; "
                f"its levels by layer are {' '.join(map(str, row))}"
            )

        self._drive(dispatcher, submit, take, aside, progress)
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

        def aside(_: int) -> None:
            raise EvorayError(
                f"workers die while they measure the base model {self.spec.model}; lower --tokens-per-pass"
            )

        self._drive(dispatcher, submit, take, aside, progress)
        return [taught[index] for index in range(len(works))]

    def _drive(
        self,
        dispatcher: Dispatcher,
        submit: Callable[[Any, Item], Any],
        take: Callable[[Item, Any], np.ndarray],
        aside: Callable[[int], None],
        progress: Callable[[float], None] | None,
    ) -> None:
        """Carries items out and results in until the dispatcher has all of them."""
        # Calls that an error leaves behind are not cancelled: that can wedge an actor that works in order.
        calls: dict[Any, tuple[_Actor, Item]] = {}
        added: set[int] = set()
        until = time.monotonic() + self._wait
        while not dispatcher.finished:
            for index, actor in enumerate(self._actors):
                if not actor.ready:
                    continue
                if index not in added:
                    dispatcher.add(index)
                    added.add(index)
                while (item := dispatcher.next_for(index)) is not None:
                    calls[submit(actor.handle, item)] = (actor, item)
            if any(actor.ready for actor in self._actors):
                until = time.monotonic() + self._wait
            self._check_wait(until)
            self._ask_to_start()
            for ref in self._await(calls):
                actor, item = calls.pop(ref)
                index = self._actors.index(actor)
                try:
                    result = ray.get(ref)
                except RayError as error:
                    unprepared = isinstance(error, RayTaskError) and isinstance(error.cause, _UnpreparedError)
                    if not unprepared and not isinstance(error, LOSSES):
                        raise told(error) from None
                    added.discard(index)
                    self._keep_finished(actor, index, dispatcher, take, calls)
                    self._lose(actor, index, error, dispatcher, aside)
                else:
                    self._barren = 0
                    dispatcher.done(index, item, take(item, result))
                    if progress:
                        progress(dispatcher.share_done)

    def _keep_finished(
        self,
        actor: _Actor,
        index: int,
        dispatcher: Dispatcher,
        take: Callable[[Item, Any], np.ndarray],
        calls: dict[Any, tuple[_Actor, Item]],
    ) -> None:
        """What a lost actor had finished counts; its other calls are forgotten."""
        for ref in [ref for ref, (holder, _) in calls.items() if holder is actor]:
            _, item = calls.pop(ref)
            try:
                result = ray.get(ref, timeout=0)
            except (RayError, GetTimeoutError):
                continue
            dispatcher.done(index, item, take(item, result))

    def _lose(
        self, actor: _Actor, index: int, error: RayError, dispatcher: Dispatcher, aside: Callable[[int], None]
    ) -> None:
        """An actor is gone: what it held goes back, and it is prepared again."""
        self.lost += 1
        self._barren += 1
        self._note(f"worker {index} (process {actor.pid}) was lost, its work is done again: {first_line(error)}")
        actor.starting, actor.ready = None, False
        actor.again_at = time.monotonic() + PAUSE
        blame = process_died(error, actor.node)
        for candidate in dispatcher.lost(index, blame=blame):
            aside(candidate)
        if len(dispatcher.set_aside) > MANY_ASIDE or self._barren > TRIES + 2 * len(self._actors):
            raise EvorayError(
                f"workers die again and again, whatever they measure: {first_line(error)}; see Ray's logs of the "
                "workers, or lower --tokens-per-pass, --boundary-memory or --variant-memory"
            )


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
        _check_answers(address)
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if address == "local":
            raise EvorayError(
                f"Ray did not start on this machine: {first_line(error)}; --workers 0 does without it"
            ) from error
        raise UserError(
            f"no Ray cluster at {address!r}: {first_line(error)}; start one, or leave out --address"
        ) from None
    return True


def _check_answers(address: str) -> None:
    """Raises OSError where nothing listens: Ray itself would go on trying for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
