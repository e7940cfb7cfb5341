"""Workers as Ray actors that may die at any time.

Holds: `RayPool`.

What was seen of Ray 2.60, and shapes this file: all calls queued on a dying actor fail; what an actor put into the
object store dies with it. So actors restart by themselves, no call is retried by Ray, and the driver does lost work
again.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from evoray.cluster.actor import UnpreparedError, WorkerActor
from evoray.cluster.capacity import Room, room_for_workers
from evoray.cluster.connection import connect, nodes
from evoray.cluster.dispatch import Dispatcher, Item
from evoray.cluster.environment import check_nodes, packages
from evoray.cluster.logs import WorkerLogs
from evoray.cluster.metrics import RunMetrics
from evoray.cluster.pool import Pool, say
from evoray.cluster.ray_errors import LOSSES, first_line, process_died, told
from evoray.cluster.worker import WorkerSpec
from evoray.errors import EvorayError, UserError

if TYPE_CHECKING:
    from evoray.evaluator import Work
    from evoray.fitness import Fitness

POLL = 1.0
"""Seconds between looks at the clock while nothing is reported; a report ends the wait at once."""

PAUSE = 0.2
"""Seconds before an actor that could not take a call yet is asked again; grows with every failure."""

LONG_PAUSE = 60.0
"""Seconds between tries of an actor that failed `TRIES` times in a row."""

TRIES = 20
"""Failed starts in a row, or losses in a row without a result, that a dying node or a restart may explain."""

PLACING = 30.0
"""Seconds that Ray takes at most to start a process where there is room for it."""

MANY_ASIDE = 4
"""Candidates set aside in one measurement beyond which it is not the candidates that kill workers."""


@dataclass(eq=False)
class _Actor:
    """The driver's view of one actor.

    It is asked first whether it lives (`hello`), which tells that it has a place, then to build its worker, which may
    take long. `starting` is the call of these that is on its way; `again_at` is when to ask once more after one that
    failed.
    """

    handle: Any
    starting: Any = None
    again_at: float = 0.0
    placed: bool = False
    ready: bool = False
    refused: bool = False
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
        keep_log: Callable[[str, bytes], None] | None = None,
        actor_class: type[WorkerActor] = WorkerActor,
    ) -> None:
        super().__init__()
        self._note, self._wait = note, wait
        self._logs = WorkerLogs(keep_log)
        self._barren = 0
        self._actors: list[_Actor] = []
        self._last_failure: str | None = None
        self._ready_since: float | None = None
        connection = connect(address, workers, spec.threads)
        self._started_ray = connection.ours
        try:
            self._metrics = RunMetrics()
            if not connection.alone:
                check_nodes(packages())
            found = nodes()
            gpus = any(node.gpus >= 1 for node in found)
            device = spec.device if spec.device != "auto" else ("cuda" if gpus else "cpu")
            on_gpu = device.startswith("cuda")
            # A cluster that grows on demand brings its first GPU when a number of workers asks for one.
            if on_gpu and not gpus and (workers is None or connection.alone):
                raise UserError("device cuda: the Ray cluster has no GPU; add GPU nodes, or use --device cpu")
            self._room = room_for_workers(found, memory, threads=spec.threads, on_gpu=on_gpu, workers=workers)
            self.workers = self._room.workers
            self._note_room(self._room, workers)
            self.spec = replace(spec, device=device)
            if self._room.spared:
                self.spec = replace(self.spec, variant_bytes=min(spec.variant_bytes, self._room.variants))
            self._allow_mixed = allow_mixed
            options: dict[str, Any] = {
                "num_cpus": spec.threads if not on_gpu else 1,
                "num_gpus": 1 if on_gpu else 0,
                "max_restarts": -1,
                "max_task_retries": 0,
            }
            if self._room.memory:
                options["memory"] = self._room.memory
            self._asked = {key: options[key] for key in ("num_cpus", "num_gpus", "memory") if options.get(key)}
            remote_class = ray.remote(actor_class).options(**options)
            self._spec_ref = ray.put(self.spec)
            # Not by reference: what restarts could lose it. The token is read whenever it is used, and can come later.
            environment = {name: value for name, value in spec.environment.items() if name != "HF_TOKEN"}
            self._actors += [_Actor(remote_class.remote(environment)) for _ in range(self.workers)]
            self._until = time.monotonic() + wait
            while not any(actor.ready for actor in self._actors):
                self._check_wait()
                self._ask_to_start()
                self._await({}, self._until)
            self._ready_since = time.monotonic()
            self._note_unplaced()
        except BaseException:
            self.close()
            raise

    def publish(self, run: str, figures: Mapping[str, float], busy: Sequence[float] = ()) -> None:
        self._metrics.publish(run, figures, busy)

    def close(self) -> None:
        for index, actor in enumerate(self._actors):
            self._logs.fetch(index, actor.node, actor.pid)
        self._logs.finish()
        for actor in self._actors:
            # What is left of a cluster that broke down may refuse even this.
            with contextlib.suppress(Exception):
                ray.kill(actor.handle)
        self._actors = []
        if self._started_ray:
            self._started_ray = False
            ray.shutdown()

    # Starting

    def _note_room(self, room: Room, asked: int | None) -> None:
        """Says when memory is what limits workers that nobody counted."""
        if asked is None and room.workers < room.slots:
            self._note(
                f"{room.workers} workers, where cores or GPUs would do for {room.slots}: each asks for "
                f"{room.memory / 1e9:.2f} GB of memory; a lower --variant-memory may let more in"
            )

    def _note_unplaced(self) -> None:
        """Says once when some workers find no place. Not before those that have room had the time to start."""
        if self._ready_since is None:
            return
        placed = sum(actor.placed for actor in self._actors)
        if placed == len(self._actors):
            self._ready_since = None
        elif placed >= self._room.fitting or time.monotonic() > self._ready_since + PLACING:
            self._ready_since = None
            self._note(
                f"{placed} of {len(self._actors)} workers are placed; each asks for {self._asked}, "
                "and the others join when there is room"
            )

    def _ask_to_start(self) -> None:
        """Asks every actor that is neither ready nor being prepared, once its pause is over."""
        now = time.monotonic()
        for actor in self._actors:
            if not actor.ready and not actor.refused and actor.starting is None and now >= actor.again_at:
                prepare = actor.handle.prepare
                actor.starting = prepare.remote(self._spec_ref) if actor.placed else actor.handle.hello.remote()

    def _check_wait(self) -> None:
        """Ends a wait without a worker. Loading is no waiting, but the retries of an actor that failed are."""
        if any(actor.ready or (actor.placed and not actor.failures) for actor in self._actors):
            self._until = time.monotonic() + self._wait
        if time.monotonic() <= self._until or any(actor.placed for actor in self._actors):
            return
        if self._last_failure is not None:
            raise EvorayError(f"no worker for {self._wait:.0f} s: {self._last_failure}")
        raise EvorayError(
            f"no worker for {self._wait:.0f} s: each asks for {self._asked}, free in the cluster are "
            f"{ray.available_resources()}; add nodes, lower --workers, or give --wait"
        )

    def _await(self, calls: dict[Any, tuple[_Actor, Item]], until: float = math.inf) -> list[Any]:
        """Waits for a call or a start to end, but never long. Settles starts; returns calls that ended."""
        starting = {actor.starting: actor for actor in self._actors if actor.starting is not None}
        resting = [actor for actor in self._actors if not actor.ready and not actor.refused and actor.starting is None]
        now = time.monotonic()
        # Past the time, one that loads is waited for as long as it takes.
        left = POLL if now > until else until - now
        timeout = max(0.0, min(POLL, left, *(actor.again_at - now for actor in resting)))
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
            result = ray.get(ref)
        except RayError as error:
            self._failed_start(actor, error)
            return
        if not actor.placed:
            actor.node, actor.pid = result
            actor.placed = True
            return
        record, notes = result
        if not hasattr(self, "record"):
            self.record, self.notes = record, notes
        differing = record.differences(self.record)
        if differing and not self._allow_mixed:
            self._refuse(actor, "; ".join(differing))
            return
        actor.failures = 0
        actor.ready = True

    def _failed_start(self, actor: _Actor, error: RayError) -> None:
        """An actor died, or could not build its worker: it begins anew after a pause, unless that can't help."""
        actor.placed = False
        actor.failures += 1
        index = self._actors.index(actor)
        others = any(other.ready or (other.placed and other.failures < TRIES) for other in self._actors)
        if isinstance(error, LOSSES):
            self._logs.fetch(index, actor.node, actor.pid)
            # A process that dies whenever it loads, on nodes that live, won't get better by itself.
            if actor.failures >= TRIES and not others:
                raise EvorayError(f"workers die while they load {self.spec.model}: {first_line(error)}") from None
            if actor.failures == TRIES:
                self._note(f"worker {index} died {TRIES} times while it loaded")
        else:
            cause = error.cause if isinstance(error, RayTaskError) else error
            # A device in use or a broken download is a matter of this node, now; what the user got wrong stays wrong.
            if isinstance(cause, UserError) or not isinstance(cause, EvorayError | OSError):
                raise told(error) from None
            self._last_failure = first_line(cause)
            if actor.failures in (1, TRIES):
                self._note(f"worker {index} could not start and is tried again: {self._last_failure}")
            # A new process, maybe elsewhere: this one may hold half a model.
            ray.kill(actor.handle, no_restart=False)
        actor.again_at = time.monotonic() + (PAUSE * actor.failures if actor.failures < TRIES else LONG_PAUSE)

    def _refuse(self, actor: _Actor, differing: str) -> None:
        """Sends an actor away for good whose losses would have other bits."""
        actor.refused, actor.placed = True, False
        ray.kill(actor.handle)
        why = f"differs from the first one in {differing}; use nodes of one kind, or --allow-mixed"
        if all(other.refused for other in self._actors):
            raise UserError(f"the last worker {why}")
        self._note(f"worker {self._actors.index(actor)} is refused: it {why}")

    # Measuring

    def _measure(
        self, rows_NL: np.ndarray, works: Sequence[Work], fitness: Fitness, progress: Callable[[float], None] | None
    ) -> np.ndarray:
        order = np.lexsort(rows_NL.T[::-1]) if rows_NL.shape[1] else np.arange(len(rows_NL))
        dispatcher = Dispatcher(
            len(rows_NL),
            [len(work.cuts) for work in works],
            order=order.tolist(),
            workers=sum(not actor.refused for actor in self._actors),
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

    def each(
        self,
        works: Sequence[Work],
        method: str,
        *arguments: Any,
        progress: Callable[[float], None] | None = None,
    ) -> list[Any]:
        dispatcher = Dispatcher(1, [1] * len(works), workers=1)
        refs = [ray.put(work) for work in works]
        results: dict[int, Any] = {}

        def submit(handle: Any, item: Item) -> Any:
            return handle.each.remote(method, refs[item.batch], *arguments)

        def take(item: Item, result: Any) -> np.ndarray:
            results[item.batch] = result
            return np.zeros((1, 1))

        def aside(_: int) -> None:
            raise EvorayError(
                f"workers die while they measure the base model {self.spec.model}; lower --tokens-per-pass"
            )

        self._drive(dispatcher, submit, take, aside, progress)
        return [results[index] for index in range(len(works))]

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
        self._until = time.monotonic() + self._wait
        for index in range(len(self._actors)):
            self.busy.forget(index)  # of calls that an error left behind
        while not dispatcher.finished:
            for index, actor in enumerate(self._actors):
                if not actor.ready:
                    continue
                if index not in added:
                    dispatcher.add(index)
                    added.add(index)
                while (item := dispatcher.next_for(index)) is not None:
                    calls[submit(actor.handle, item)] = (actor, item)
                    self.busy.begin(index)
            self._check_wait()
            self._note_unplaced()
            self._ask_to_start()
            for ref in self._await(calls):
                actor, item = calls.pop(ref)
                index = self._actors.index(actor)
                try:
                    result = ray.get(ref)
                except RayError as error:
                    unprepared = isinstance(error, RayTaskError) and isinstance(error.cause, UnpreparedError)
                    if not unprepared and not isinstance(error, LOSSES):
                        raise told(error) from None
                    added.discard(index)
                    self._keep_finished(actor, index, dispatcher, take, calls)
                    self._lose(actor, index, error, dispatcher, aside)
                else:
                    self._barren = 0
                    self.busy.end(index)
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
        self.busy.forget(index)
        self._logs.fetch(index, actor.node, actor.pid)
        self._note(f"worker {index} (process {actor.pid}) was lost, its work is done again: {first_line(error)}")
        actor.starting, actor.placed, actor.ready = None, False, False
        actor.again_at = time.monotonic() + PAUSE
        blame = process_died(error, actor.node)
        for candidate in dispatcher.lost(index, blame=blame):
            aside(candidate)
        if len(dispatcher.set_aside) > MANY_ASIDE or self._barren > TRIES + 2 * len(self._actors):
            raise EvorayError(
                f"workers die again and again, whatever they measure: {first_line(error)}; see Ray's logs of the "
                "workers, or lower --tokens-per-pass, --work-memory or --variant-memory"
            )
