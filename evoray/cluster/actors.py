"""The processes of workers as the driver sees them: asked for, placed, prepared, refused, begun anew.

Holds: `Actors`, `is_loss`.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from evoray.cluster.actor import ModelActor, UnpreparedError
from evoray.cluster.answers import answer, ended
from evoray.cluster.capacity import Node, Room, lacking_gpus, max_gpus, room_for_workers
from evoray.cluster.connection import connect, nodes
from evoray.cluster.environment import check_nodes, packages
from evoray.cluster.logs import WorkerLogs
from evoray.cluster.metrics import RunMetrics
from evoray.cluster.pool import say
from evoray.cluster.ray_errors import LOSSES, first_line, told
from evoray.cluster.worker import DeviceRecord, WorkerSpec
from evoray.errors import EvorayError, UserError
from evoray.settings.workers import worker_range

POLL = 1.0
"""Seconds between looks at the clock while nothing is reported; a report ends the wait at once."""

SAY = 60.0
"""Seconds of starting after which is told how far it is."""

PAUSE = 0.2
"""Seconds before an actor that could not take a call yet is asked again; grows with every failure."""

LONG_PAUSE = 60.0
"""Seconds between tries of an actor that failed `TRIES` times in a row."""

TRIES = 20
"""Failed starts in a row, or losses in a row without a result, that a dying node or a restart may explain."""

HANGS = 3
"""Starts in a row that hang, after which it is no matter of chance: two may be."""

PLACING = 30.0
"""Seconds that Ray takes at most to start a process where there is room for it."""


@dataclass(eq=False)
class Actor:
    """The driver's view of one actor.

    It is asked first whether it lives (`hello`), which tells that it has a place, then to build its worker, which may
    take long. `starting` is the call of these that is on its way, `since` that time; `again_at` is when to ask once
    more after one that failed. `ending` is one that hung and is being killed; `hangs` counts the starts that did, since
    the last that did not; `absent` the times it was asked while Ray had no process for it.
    """

    index: int
    handle: Any
    starting: Any = None
    since: float = 0.0
    again_at: float = 0.0
    placed: bool = False
    ready: bool = False
    refused: bool = False
    node: str | None = None
    pid: int | None = None
    failures: int = 0
    hangs: int = 0
    absent: int = 0
    ending: bool = False


class Actors:
    """Workers as actors of Ray, without anything to do. For the arguments see `open_pool`.

    Args:
        actor_class: what runs in the workers' processes.

    Attributes:
        workers: how many there are.
        record: what the bits of the workers depend on.
        notes: what they say of the model.
    """

    workers: int
    record: DeviceRecord
    notes: tuple[str, ...]

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        workers: int | str | None = None,
        address: str | None = None,
        allow_mixed: bool = False,
        wait: float = 600.0,
        memory: int = 0,
        hung_at_start: float = 7200.0,
        note: Callable[[str], None] = say,
        keep_log: Callable[[str, bytes], None] | None = None,
        run: str | None = None,
        actor_class: type[ModelActor],
    ) -> None:
        # See `Pool.at`.
        self._at = json.dumps({} if run is None else {"run": run})
        self._note, self._wait, self._hung_at_start = note, wait, hung_at_start
        self._logs = WorkerLogs(keep_log)
        self._actors: list[Actor] = []
        self._last_failure: str | None = None
        self._ready_since: float | None = None
        self._least, most = worker_range(workers)
        connection = connect(address, most, spec.threads)
        self._started_ray = connection.ours
        self._grows = most is None and not connection.alone
        try:
            self._metrics = RunMetrics()
            if not connection.alone:
                check_nodes(packages())
            found = nodes()
            gpus = any(node.gpus >= spec.gpus for node in found)
            device = spec.device if spec.device != "auto" else ("cuda" if gpus or spec.gpus > 1 else "cpu")
            on_gpu = device.startswith("cuda")
            # A cluster that grows on demand brings its first GPU when a number of workers asks for one.
            if on_gpu and not gpus and (most is None or connection.alone):
                raise UserError(lacking_gpus(found, spec.gpus))
            self._on_gpu = on_gpu
            self._room = room_for_workers(
                found, memory, threads=spec.threads, on_gpu=on_gpu, workers=most, gpus=spec.gpus
            )
            self._note_room(self._room, most)
            self.spec = replace(spec, device=device)
            if self._room.spared:
                self.spec = replace(self.spec, variant_bytes=min(spec.variant_bytes, self._room.variants))
            self._allow_mixed = allow_mixed
            options: dict[str, Any] = {
                "num_cpus": spec.threads if not on_gpu else 1,
                "num_gpus": spec.gpus if on_gpu else 0,
                "max_restarts": -1,
                "max_task_retries": 0,
            }
            if self._room.memory:
                options["memory"] = self._room.memory
            self._asked = {key: options[key] for key in ("num_cpus", "num_gpus", "memory") if options.get(key)}
            self._note_missing(found)
            self._remote_class = ray.remote(actor_class).options(**options)
            self._spec_ref = ray.put(self.spec)
            # Not by reference: what restarts could lose it. The token is read whenever it is used, and can come later.
            self._environment = {name: value for name, value in spec.environment.items() if name != "HF_TOKEN"}
            self._create(self._room.workers)
            self._until = time.monotonic() + wait
            begun = told = time.monotonic()
            while sum(actor.ready for actor in self._actors) < self._least:
                self._check_wait(self._least)
                self._ask_to_start()
                self._await((), self._until)
                if time.monotonic() > told + SAY:
                    told = time.monotonic()
                    self._note(f"workers have been starting for {told - begun:.0f} s: {self._how_far()}")
            self._ready_since = time.monotonic()
            self._note_unplaced()
        except BaseException:
            self.close()
            raise

    def _how_far(self) -> str:
        ready = sum(actor.ready for actor in self._actors)
        loading = sum(actor.placed and not actor.ready for actor in self._actors)
        waiting = len(self._actors) - ready - loading
        return f"{ready} are ready, {loading} load the model, {waiting} wait for a place or for their process"

    def publish(self, run: str, figures: Mapping[str, float], busy: Sequence[float] = ()) -> None:
        self._metrics.publish(run, figures, busy)

    def close(self) -> None:
        for actor in self._actors:
            self._logs.fetch(actor.index, actor.node, actor.pid)
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

    def _create(self, count: int) -> None:
        """Asks Ray for so many more. Those without a place make a cluster that can grow do so."""
        first = len(self._actors)
        self._actors += [
            Actor(index, self._remote_class.remote(self._environment, index)) for index in range(first, first + count)
        ]
        self.workers = len(self._actors)

    def _again(self, actor: Actor, pause: float) -> None:
        """It begins anew: asked first whether it has a place."""
        actor.starting, actor.placed, actor.ready, actor.ending = None, False, False, False
        actor.again_at = time.monotonic() + pause

    def _note_missing(self, found: Sequence[Node]) -> None:
        """Says what is there when it does not do, before the wait for more."""
        if self._room.fitting < self._least:
            on_one = f" (at most {max_gpus(found):g} on one)" if self.spec.gpus > 1 else ""
            memory = sum(node.memory for node in found)
            self._note(
                f"room for {self._room.fitting} workers, and {self._least} are needed to begin: each asks for "
                f"{self._asked}, and the cluster has {sum(node.cpus for node in found):g} cores, "
                f"{sum(node.gpus for node in found):g} GPUs{on_one} and {memory / 1e9:.1f} GB for "
                f"workers on {len(found)} nodes; waiting {self._wait:.0f} s for more"
            )

    def _note_room(self, room: Room, asked: int | None) -> None:
        """Says when memory is what limits workers that nobody counted."""
        if asked is None and room.workers < room.slots:
            self._note(
                f"{room.workers} workers, where cores or GPUs would do for {room.slots}: each asks for "
                f"{room.memory / 1e9:.2f} GB of memory"
                + ("; a lower --variant-memory may let more in" if room.variants else "")
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
        """Asks every actor that is neither ready nor being prepared, once its pause is over. Kills those whose start
        hangs. One without a place does not: `_check_wait` limits the wait for that."""
        now = time.monotonic()
        for actor in self._actors:
            if not actor.ready and not actor.refused and actor.starting is None and now >= actor.again_at:
                start, hello = actor.handle.start, actor.handle.hello
                actor.starting = start.remote(self._at, self._spec_ref) if actor.placed else hello.remote()
                actor.since = now
            loading = actor.starting is not None and actor.placed and not actor.ending
            if loading and now > actor.since + self._hung_at_start:
                actor.hangs += 1
                self._end(actor, f"has not loaded {self.spec.model} within {self._hung_at_start:g} s")

    def _end(self, actor: Actor, why: str) -> None:
        """Kills one that hangs; as a lost one it comes back."""
        actor.ending = True
        self._note(f"worker {actor.index} (process {actor.pid}) {why}; it is restarted")
        ray.kill(actor.handle, no_restart=False)

    def _check_wait(self, least: int = 1) -> None:
        """Ends a wait without enough workers. Loading is no waiting, but the retries of an actor that failed are."""
        if sum(actor.ready or (actor.placed and not actor.failures) for actor in self._actors) >= least:
            self._until = time.monotonic() + self._wait
        placed = sum(actor.placed for actor in self._actors)
        if time.monotonic() <= self._until or placed >= least:
            return
        lacking = f"{placed} of at least {least} workers" if placed else "no worker"
        if self._last_failure is not None:
            raise EvorayError(f"{lacking} for {self._wait:.0f} s: {self._last_failure}")
        raise EvorayError(
            f"{lacking} for {self._wait:.0f} s: each asks for {self._asked}, free in the cluster are "
            f"{ray.available_resources()}; add nodes, lower --workers, or give --wait"
        )

    def _await(self, calls: Iterable[Any] = (), until: float = math.inf) -> list[Any]:
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
        refs = ended(waiting, count=1, timeout=timeout)
        if refs:
            # With many workers many answer meanwhile.
            refs = ended(waiting, count=len(waiting), timeout=0)
        for ref in refs:
            if ref in starting:
                self._settle_start(starting[ref])
        return [ref for ref in refs if ref not in starting]

    def _settle_start(self, actor: Actor) -> None:
        ref, actor.starting = actor.starting, None
        try:
            result = answer(ref)
        except RayError as error:
            self._failed_start(actor, error)
            return
        if not actor.placed:
            actor.node, actor.pid = result
            actor.placed, actor.absent = True, 0
            return
        record, notes = result
        if not hasattr(self, "record"):
            self.record, self.notes = record, notes
        differing = record.differences(self.record)
        if differing and not self._allow_mixed:
            self._refuse(actor, "; ".join(differing))
            return
        actor.failures = actor.hangs = 0
        actor.ready = True

    def _failed_start(self, actor: Actor, error: RayError) -> None:
        """An actor died, or could not build its worker: it begins anew after a pause, unless that can't help."""
        if isinstance(error, ActorUnavailableError) and not actor.placed:
            # Ray has yet to start it again, maybe on a node that has yet to come: no failure of its own, and
            # `_check_wait` limits the wait. On a busy machine a process alone takes a minute.
            actor.absent = min(TRIES, actor.absent + 1)
            actor.again_at = time.monotonic() + PAUSE * actor.absent
            return
        actor.placed, actor.ending = False, False
        actor.failures += 1
        others = any(
            other.ready or (other.placed and other.failures < TRIES and other.hangs < HANGS) for other in self._actors
        )
        if isinstance(error, LOSSES):
            self._logs.fetch(actor.index, actor.node, actor.pid)
            # A process that dies whenever it loads, on nodes that live, won't get better by itself.
            if actor.hangs >= HANGS and not others:
                raise EvorayError(
                    f"{HANGS} starts of worker {actor.index} in a row did not load {self.spec.model} within "
                    f"{self._hung_at_start:g} s each; see the logs of workers, or give --hung-at-start"
                ) from None
            if actor.failures >= TRIES and not others:
                raise EvorayError(f"workers die while they load {self.spec.model}: {first_line(error)}") from None
            if actor.failures == TRIES:
                self._note(f"worker {actor.index} died {TRIES} times while it loaded")
        else:
            cause = error.cause if isinstance(error, RayTaskError) else error
            # A device in use or a broken download is a matter of this node, now; what the user got wrong stays wrong.
            if isinstance(cause, UserError) or not isinstance(cause, EvorayError | OSError):
                raise told(error) from None
            self._last_failure = first_line(cause)
            if actor.failures in (1, TRIES):
                self._note(f"worker {actor.index} could not start and is tried again: {self._last_failure}")
            # A new process, maybe elsewhere: this one may hold half a model.
            ray.kill(actor.handle, no_restart=False)
        patient = actor.failures >= TRIES or actor.hangs >= HANGS
        actor.again_at = time.monotonic() + (LONG_PAUSE if patient else PAUSE * actor.failures)

    def _refuse(self, actor: Actor, differing: str) -> None:
        """Sends an actor away for good whose losses would have other bits."""
        actor.refused, actor.placed = True, False
        ray.kill(actor.handle)
        why = f"differs from the first one in {differing}; use nodes of one kind, or --allow-mixed"
        if all(other.refused for other in self._actors):
            raise UserError(f"the last worker {why}")
        self._note(f"worker {actor.index} is refused: it {why}")


def is_loss(error: RayError) -> bool:
    """Whether a call failed because its worker was lost, or was another process than the one that was prepared."""
    return isinstance(error, LOSSES) or (isinstance(error, RayTaskError) and isinstance(error.cause, UnpreparedError))
