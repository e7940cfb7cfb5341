"""What an item of work costs the driver, in microseconds, by the number of workers that it has.

    python -m benchmarks.driver_cost [--workers 8 64 512 1024]

The pool is the real one, with its dispatcher, its calls of Ray, `ray.wait` and `ray.get`; it only believes that it has
so many workers. Behind all of them stand two processes that answer at once, and say that they took as long as an 8B
model would. So everything waits for the driver, which is when its cost matters.

CPU time of the driver's thread, so that other work on the machine does not count: of the dispatcher, of sending calls,
of `ray.wait`, of `ray.get`, of `ray.put` (once for each batch), and of the rest of the pool's loop. A generation of the
paper's schedule, several times. Not in it: Ray's own threads in the driver's process, beside it on another core.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray

from benchmarks.log import append, table
from benchmarks.simulate_cluster import BLOCKS, LAYERS_PER_BLOCK, SCHEDULES, Population
from evoray.cluster import ray_pool
from evoray.cluster.actor import WorkerActor
from evoray.cluster.actors import Actor
from evoray.cluster.dispatch import Dispatcher, Item
from evoray.cluster.ray_pool import RayPool
from evoray.cluster.worker import DeviceRecord, WorkerSpec
from evoray.evaluator import Work
from evoray.fitness import Fitness

PARTS = ("dispatcher", "send", "wait", "take", "put")
BEHIND = 2
"""Processes that answer for all workers."""

TOKEN_SECONDS = 100e-6
"""Of a token through the model, as `simulate_cluster` takes it."""


class Answers(WorkerActor):
    """Answers at once, with the time that the work would have taken."""

    def prepare(self, spec: WorkerSpec) -> tuple[DeviceRecord, tuple[str, ...]]:
        return DeviceRecord("none", "", "", "", 1, 0, "", "", "", ""), ()

    def measure(self, at: str, count: int, rows: bytes, work: Work, fitness: str) -> tuple[np.ndarray, float]:
        return np.zeros((count, len(work.cuts))), count * work.ids.size * TOKEN_SECONDS


class Spent:
    """CPU seconds of this thread by part, and how often each was called."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def run(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*given, **named)
            finally:
                self.seconds[part] += time.thread_time() - began
                self.calls[part] += 1

        return run

    @contextmanager
    def around(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Times a function of a module while the context lasts."""
        own = getattr(owner, name)
        setattr(owner, name, self.timed(part, own))
        try:
            yield
        finally:
            setattr(owner, name, own)


class _Handle:
    """An actor's handle whose calls are timed as they are sent."""

    def __init__(self, handle: Any, spent: Spent) -> None:
        self.measure = self
        self.remote = spent.timed("send", handle.measure.remote)


def timed_dispatcher(spent: Spent) -> type[Dispatcher]:
    """The dispatcher, with its own time counted."""

    class Timed(Dispatcher):
        def __init__(self, *given: Any, **named: Any) -> None:
            spent.timed("dispatcher", super().__init__)(*given, **named)

        def assign(self, now: float) -> Iterator[tuple[Any, Item]]:
            assigned = super().assign(now)
            step = spent.timed("dispatcher", lambda: next(assigned, None))
            while (found := step()) is not None:
                yield found

        def add(self, worker: Any) -> None:
            spent.timed("dispatcher", super().add)(worker)

        def done(self, *given: Any, **named: Any) -> None:
            spent.timed("dispatcher", super().done)(*given, **named)

    return Timed


def generation_cost(
    pool: RayPool, handles: Sequence[Any], draws: np.random.Generator, per_pass: int
) -> tuple[int, float, Spent]:
    """One generation: items, CPU seconds of the driver's thread for all, and for the parts.

    Args:
        pool: that believes in its workers.
        handles: of the processes that answer for them.
        draws: for the population.
        per_pass: tokens of a batch.
    """
    offspring, survivors, rungs = next(iter(SCHEDULES.values()))
    population, spent = Population(offspring + 1, draws), Spent()
    for actor in pool._actors:
        actor.handle = _Handle(handles[actor.index % BEHIND], spent)
    whole, own = 0.0, ray_pool.Dispatcher
    ray_pool.Dispatcher = timed_dispatcher(spent)  # type: ignore[misc]
    try:
        with (
            spent.around(ray, "wait", "wait"),
            spent.around(ray, "get", "take"),
            spent.around(ray, "put", "put"),
        ):
            for count, tokens in zip([offspring, *survivors[:-1]], rungs, strict=True):
                chosen = sorted(draws.choice(offspring + 1, size=count, replace=False).tolist())
                ids = np.zeros((1, min(tokens, per_pass)), np.int32)
                works = [Work(ids, (ids.size,)) for _ in range(max(1, tokens // per_pass))]
                began = time.thread_time()
                pool.measure(population.rows_NL[chosen], works, Fitness.kl)
                whole += time.thread_time() - began
    finally:
        ray_pool.Dispatcher = own  # type: ignore[misc]
    return spent.calls["send"], whole, spent


def driver_row(workers: int, generations: int, per_pass: int) -> list[str]:
    """The table's line: medians over generations, microseconds for each item."""
    spec = WorkerSpec(model="none", store=None, device="cpu", threads=1)
    with RayPool(spec, workers=f"{BEHIND}..{BEHIND}", hung_after=3600.0, actor_class=Answers) as pool:
        there = pool._actors
        handles = [actor.handle for actor in there]
        pool._actors = [Actor(index, None, placed=True, ready=True) for index in range(workers)]
        draws, found = np.random.default_rng(0), list[list[float]]()
        for number in range(generations + 1):
            items, whole, spent = generation_cost(pool, handles, draws, per_pass)
            parts = [spent.seconds[part] for part in PARTS]
            if number:  # in the first, speeds are not known yet
                found.append([items, *(1e6 * part / items for part in (whole, *parts, whole - sum(parts)))])
        pool._actors = there
    items, whole, *parts = (statistics.median(column) for column in zip(*found, strict=True))
    return [
        f"{workers:,}",
        f"{items:,.0f}",
        f"{whole:,.0f}",
        *(f"{part:,.0f}" for part in parts),
        f"{1e6 / whole:,.0f}",
    ]


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512, 1024])
    parser.add_argument("--tokens-per-pass", type=int, default=512)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--no-log", action="store_true")
    given = parser.parse_args()
    lines = [driver_row(workers, given.generations, given.tokens_per_pass) for workers in given.workers]
    header = ["workers", "items", "us/item", *PARTS, "rest of the loop", "items/s at most"]
    body = (
        f"CPU time of the driver's thread, medians of {given.generations} generations of "
        f"{next(iter(SCHEDULES))}, passes of {given.tokens_per_pass} tokens, {BLOCKS * LAYERS_PER_BLOCK} layers; "
        f"{BEHIND} processes answer at once for all workers.\n\n{table(header, lines)}"
    )
    if given.no_log:
        print(body)
    else:
        append("what an item of work costs the driver", body)


if __name__ == "__main__":
    main()
