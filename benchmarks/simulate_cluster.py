"""The real dispatcher with simulated workers: how much of a large cluster a search of an 8B model would use.

A clock that is only added to. Workers take the stated time per token; each has a speed of its own, and answers vary.
The driver is one process: the dispatcher's own time is measured as it runs, and calls of Ray cost what they cost on
this machine, measured first: sending a call, and `ray.wait` and `ray.get` with that many calls on their way. Both are
CPU time of the driver's thread, so that other work on the machine does not count.

Efficiency: seconds that one worker of their mean speed would need for the same candidates, with all their prefixes
shared, over seconds of the workers together. So it has in it what is lost by cutting, by waiting at the end of each
rung, by the driver, and by workers that die. Not in it: variants that are not ready yet, and the way of batches to the
nodes.

What an item costs a driver that everything waits for is measured by `benchmarks/driver_cost.py`.

    python -m benchmarks.simulate_cluster
"""

import argparse
import heapq
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.log import append, table
from evoray.cluster.dispatch import Dispatcher, Item, shares
from evoray.cluster.speeds import Speeds

BLOCKS, LAYERS_PER_BLOCK = 32, 7
HEAD = 0.065
"""Share of the head in a pass of Llama-3-8B: 128,256 x 4,096 of 8.0e9 weights."""

SCHEDULES = {
    "128 offspring, 16 4 1, 2048 16384 131072 (the paper's, and the default)": (128, (16, 4, 1), (2048, 16384, 131072)),
    "64 offspring, 8 2 1, 2048 16384 65536 (the paper's for sparsity)": (64, (8, 2, 1), (2048, 16384, 65536)),
}


@dataclass(frozen=True)
class Costs:
    """Seconds of the driver for Ray: to send a call, to wait for calls (each time, and for each on its way), to take a
    result; and of the way there."""

    send: float
    wait: float
    wait_each: float
    take: float
    latency: float = 0.0005


@dataclass(frozen=True)
class Cluster:
    """The workers.

    Attributes:
        workers: how many.
        token_seconds: of a token through the whole model, at speed 1.
        spread: standard deviation of the workers' speeds around 1.
        noise: of the time of a call around what it should take.
        slow: share of workers at a third of the speed.
        deaths: of workers, per second of a worker. They come back after `restart` seconds.
        restart: see `deaths`.
    """

    workers: int
    token_seconds: float
    spread: float = 0.0
    noise: float = 0.02
    slow: float = 0.0
    deaths: float = 0.0
    restart: float = 20.0


class Population:
    """Children of one parent by 1 to 3 switches of levels, in the order of their prefixes."""

    def __init__(self, candidates: int, draws: np.random.Generator) -> None:
        layers = BLOCKS * LAYERS_PER_BLOCK
        rows_NL = np.full((candidates, layers), 2, dtype=np.int8)
        for row_L in rows_NL[1:]:
            changed = draws.choice(layers, size=2 * min(draws.integers(1, 4), draws.integers(1, 4)), replace=False)
            row_L[changed] += np.where(np.arange(len(changed)) % 2, 1, -1).astype(np.int8)
        self.rows_NL = rows_NL[np.lexsort(rows_NL.T[::-1])]
        self._first = [
            [int(column) // LAYERS_PER_BLOCK for column in np.flatnonzero(row_L != other_L)[:1]] or [BLOCKS]
            for row_L, other_L in zip(self.rows_NL[1:], self.rows_NL, strict=False)
        ]

    def passes(self, candidates: Sequence[int]) -> float:
        """Passes through the whole model that these take, one after the other, as the evaluator runs them."""
        found, resume = 0.0, 0
        for before, candidate in zip([None, *candidates], candidates, strict=False):
            resume = 0 if before is None else min(first for [first] in self._first[before:candidate])
            found += HEAD + (1 - HEAD) * (BLOCKS - resume) / BLOCKS
        return found


@dataclass
class _Worker:
    speed: float
    calls: deque[tuple[float, Item]]
    free: float = 0.0
    life: int = 0
    dies: float = float("inf")


class Simulation:
    """Generations on a cluster that is not there."""

    def __init__(self, cluster: Cluster, costs: Costs, seed: int = 0) -> None:
        self.cluster, self.costs, self.draws = cluster, costs, np.random.default_rng(seed)
        self.now, self.own_seconds, self.items, self.ideal, self.dead = 0.0, 0.0, 0, 0.0, 0
        self.copied = 0
        speeds = self.draws.normal(1.0, cluster.spread, cluster.workers).clip(0.2)
        speeds[: round(cluster.slow * cluster.workers)] /= 3
        self.workers = [_Worker(speed, deque()) for speed in speeds.tolist()]
        for worker in self.workers:
            self._fate(worker, 0.0)
        self.speeds = Speeds()
        self.events: list[tuple[float, int, str, int, int, Item | None, float]] = []
        self.number = 0

    def _fate(self, worker: _Worker, now: float) -> None:
        if self.cluster.deaths:
            worker.dies = now + self.draws.exponential(1 / self.cluster.deaths)
            worker.life += 1

    @contextmanager
    def _own(self) -> Iterator[None]:
        """The dispatcher's own time passes for the driver."""
        began = time.thread_time()
        yield
        took = time.thread_time() - began
        self.own_seconds += took
        self.now += took

    def _at(self, when: float, what: str, index: int, item: Item | None = None, took: float = 0.0) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what, index, self.workers[index].life, item, took))

    def rung(self, population: Population, candidates: Sequence[int], batches: int, tokens: int) -> None:
        """One measurement, from the first question to the last answer."""
        passes = population.passes(candidates)
        self.ideal += passes * batches * tokens * self.cluster.token_seconds
        ready = {index for index, worker in enumerate(self.workers) if not worker.calls and worker.free <= self.now}
        with self._own():
            dispatcher = Dispatcher(
                len(candidates),
                [1] * batches,
                weights=[tokens] * batches,
                shares=shares(population.rows_NL[list(candidates)]),
                speeds=self.speeds,
                workers=self.cluster.workers,
                per_item=self.costs.send + self.costs.take,
            )
            for index in ready:
                dispatcher.add(index)
        added = set(ready)
        while not dispatcher.finished:
            began = time.thread_time()
            for index, item in dispatcher.assign(self.now):
                self._spend(time.thread_time() - began)
                self.now += self.costs.send
                self._submit(index, item, population, candidates, tokens)
                began = time.thread_time()
            self._spend(time.thread_time() - began)
            on_way = sum(len(worker.calls) for worker in self.workers)
            self.now += self.costs.wait + self.costs.wait_each * on_way
            if not self.events or self.events[0][0] > self.now:
                self.now = min(self.events[0][0] if self.events else dispatcher.wake, dispatcher.wake)
            while self.events and self.events[0][0] <= self.now:
                when, _, what, index, life, event_item, took = heapq.heappop(self.events)
                worker = self.workers[index]
                if what == "back":
                    worker.free = when
                    with self._own():
                        dispatcher.add(index)
                    added.add(index)
                elif life != worker.life:
                    continue
                elif what == "dies":
                    self.dead += 1
                    worker.calls.clear()
                    self._fate(worker, when + self.cluster.restart)
                    self._at(when + self.cluster.restart, "back", index)
                    with self._own():
                        dispatcher.lost(index, blame=False)
                    added.discard(index)
                else:
                    assert event_item is not None
                    worker.calls.popleft()
                    self.now += self.costs.take
                    if index in added:
                        with self._own():
                            dispatcher.done(
                                index, event_item, np.zeros((len(event_item.candidates), 1)), self.now, took
                            )
                    elif not worker.calls:
                        # It was late in the rung before.
                        dispatcher.add(index)
                        added.add(index)

    def _spend(self, seconds: float) -> None:
        self.own_seconds += seconds
        self.now += seconds

    def _submit(self, index: int, item: Item, population: Population, candidates: Sequence[int], tokens: int) -> None:
        worker = self.workers[index]
        work = population.passes([candidates[candidate] for candidate in item.candidates]) * tokens
        took = work * self.cluster.token_seconds / worker.speed * max(0.5, self.draws.normal(1, self.cluster.noise))
        start = max(worker.free, self.now + self.costs.latency)
        worker.free = start + took
        worker.calls.append((worker.free, item))
        self.items += 1
        if worker.free > worker.dies:
            self._at(worker.dies, "dies", index)
        else:
            self._at(worker.free + self.costs.latency, "done", index, item, took)

    def generation(self, offspring: int, survivors: Sequence[int], rungs: Sequence[int], per_pass: int) -> None:
        """A race: all on the first rung, then who survived, and the parent."""
        population = Population(offspring + 1, self.draws)
        counts = [offspring, *survivors[:-1]]
        for count, tokens in zip(counts, rungs, strict=True):
            chosen = sorted(self.draws.choice(offspring + 1, size=count, replace=False).tolist())
            self.rung(population, chosen, max(1, tokens // per_pass), min(tokens, per_pass))

    @property
    def efficiency(self) -> float:
        """See the head of this file."""
        return self.ideal / (self.now * sum(worker.speed for worker in self.workers))


def measured_costs(in_flight: int) -> Costs:
    """What Ray costs the driver here, with that many calls on their way; medians."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")

    @ray.remote
    class Echo:
        def losses(self, rows_NL: np.ndarray, work: object, fitness: object) -> np.ndarray:
            return np.zeros((len(rows_NL), 4))

        def blocks(self, seconds: float) -> None:
            time.sleep(seconds)

    try:
        echo, never = Echo.options(num_cpus=1).remote(), Echo.options(num_cpus=0).remote()
        rows_NL, work = np.zeros((4, BLOCKS * LAYERS_PER_BLOCK), np.int8), ray.put(np.zeros(10_000))
        ray.get(echo.losses.remote(rows_NL, work, None))
        pending = [never.blocks.remote(3600) for _ in range(in_flight)]
        sends, waits, takes = list[float](), list[float](), list[float]()
        for _ in range(200):
            began = time.thread_time()
            ref = echo.losses.remote(rows_NL, work, None)
            sends.append(time.thread_time() - began)
            ray.wait([ref])
            began = time.thread_time()
            ray.wait([*pending, ref], num_returns=1, timeout=1)
            waits.append(time.thread_time() - began)
            began = time.thread_time()
            ray.get(ref)
            takes.append(time.thread_time() - began)
        return Costs(
            statistics.median(sends), 0.0, statistics.median(waits) / (in_flight + 1), statistics.median(takes)
        )
    finally:
        ray.shutdown()


def main() -> None:
    """Parses arguments, measures, simulates, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512, 1024])
    parser.add_argument("--token-us", type=float, nargs="+", default=[40.0, 100.0])
    parser.add_argument("--tokens-per-pass", type=int, nargs="+", default=[2048, 512])
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument(
        "--ray-us", type=float, nargs=3, metavar=("SEND", "WAIT", "TAKE"), help="costs of calls; default: measured here"
    )
    parser.add_argument("--no-log", action="store_true")
    given = parser.parse_args()
    costs = {
        workers: measured_costs(2 * workers)
        if given.ray_us is None
        else Costs(1e-6 * given.ray_us[0], 0.0, 1e-6 * given.ray_us[1], 1e-6 * given.ray_us[2])
        for workers in given.workers
    }
    rows = []
    kinds = {
        "alike": Cluster(0, 0.0),
        "speeds ± 10%": Cluster(0, 0.0, spread=0.1),
        "a quarter 3x slower": Cluster(0, 0.0, spread=0.05, slow=0.25),
        "each dies every 30 min": Cluster(0, 0.0, spread=0.05, deaths=1 / 1800),
    }
    for name, (offspring, survivors, rungs) in SCHEDULES.items():
        for token_us in given.token_us:
            for per_pass in given.tokens_per_pass:
                for workers in given.workers:
                    cells = []
                    for cluster in kinds.values():
                        simulation = Simulation(
                            replace(cluster, workers=workers, token_seconds=token_us * 1e-6), costs[workers]
                        )
                        # The first one is the warm-up, in which speeds are not known yet.
                        simulation.generation(offspring, survivors, rungs, per_pass)
                        began, simulation.ideal, simulation.items, simulation.own_seconds = simulation.now, 0.0, 0, 0.0
                        for _ in range(given.generations):
                            simulation.generation(offspring, survivors, rungs, per_pass)
                        took = simulation.now - began
                        simulation.now = took
                        cells.append((simulation.efficiency, took, simulation.items, simulation.own_seconds))
                    first = cells[0]
                    rows.append(
                        [
                            name.partition(",")[0],
                            f"{token_us:g}",
                            per_pass,
                            workers,
                            *[f"{cell[0]:.3f}" for cell in cells],
                            f"{first[1] / given.generations:.2f}",
                            round(first[2] / given.generations),
                            f"{1e6 * first[3] / first[2]:.0f}",
                        ]
                    )
    header = [
        "schedule",
        "us/token",
        "tokens per pass",
        "workers",
        *kinds,
        "s/generation",
        "items",
        "dispatcher us/item",
    ]
    ray_costs = table(
        ["workers", "send", "wait, each on its way", "take"],
        [[n, *[f"{1e6 * value:.2f}" for value in (c.send, c.wait_each, c.take)]] for n, c in costs.items()],
    )
    body = f"Efficiency by kind of cluster.\n\n{table(header, rows)}\n\nCalls of Ray, microseconds:\n\n{ray_costs}"
    if given.no_log:
        print(body)
    else:
        append("simulated clusters with an 8B model", body)


if __name__ == "__main__":
    main()
