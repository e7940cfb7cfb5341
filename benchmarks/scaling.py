"""What more workers of one thread bring on one machine: a rung of real work by pools of 1, 2 and 4.

    python -m benchmarks.scaling [--model FOLDER --data TEXT.txt] [--workers 1 2 4]

The pools are open together and measure the same rungs in turn, several times; the bits of all of them are the same,
which is checked each time. Efficiency: candidate tokens per second of N workers over N times those of one, as the
median of the rounds. The goal is 0.9 at 4 workers, on a machine that has a core for each; where it has fewer, the row
says so, and the efficiency is told per core as well.

What is told beside it: how much more CPU time the work took than with one worker (cut prefixes, memory and caches that
the workers share), how many cores the driver and its workers had in truth (CPU time over wall time), and how many
anything else had meanwhile, Ray's own processes among it. A pool that did not have its cores says nothing of scaling.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import psutil
import ray

import evoray
from benchmarks.clock import Clock
from benchmarks.log import append, table
from benchmarks.population import offspring, whole_blocks
from evoray.cluster.capacity import usable_cores
from evoray.cluster.ray_pool import RayPool
from evoray.cluster.worker import WorkerSpec
from evoray.evaluator import Work
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.run.shapes import Shapes
from evoray.run.teacher import teach_text
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore
from evoray.tokens import draw_batches

GOAL = 0.9
"""Least efficiency where each worker has a core."""

CROWDED = 0.9
"""Cores that each worker must have had for the goal to be judged: with fewer, others took them."""

WARM_UPS = 2
"""Measurements before the first that counts: the first makes variants ready and tells speeds, by which work is cut."""


@dataclass
class Rounds:
    """What a pool took for a rung, each time.

    Attributes:
        wall, cpu: seconds; `cpu` of the driver and the pool's workers.
        others: cores that anything else had meanwhile.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Rung:
    """The same work for every pool.

    Attributes:
        rows_NL: int8, the candidates.
        works: batches with the teacher's part.
        tokens: of all batches.
    """

    rows_NL: np.ndarray
    works: Sequence[Work]
    tokens: int

    @property
    def candidate_tokens(self) -> int:
        """Tokens times candidates."""
        return self.tokens * len(self.rows_NL)


def machine_seconds() -> float:
    """CPU time that was used on this machine, by whomever; of a virtual one also what its host took away."""
    used = psutil.cpu_times()
    # Time of guests is in that of users already.
    return float(used.user + used.nice + used.system + used.irq + used.softirq + used.steal)


def measured(pool: RayPool, rung: Rung, rounds: Rounds) -> np.ndarray:
    """Measures a rung once and adds what it took; returns the losses, float64 [N, B]."""
    processes = [actor.pid for actor in pool._actors if actor.pid]
    before = machine_seconds()
    wall, (cpu, losses_NB) = Clock.wall.time(
        lambda: Clock.cpu.time(lambda: pool.measure(rung.rows_NL, rung.works, Fitness.kl), processes)
    )
    rounds.wall.append(wall)
    rounds.cpu.append(cpu)
    rounds.others.append(max(0.0, machine_seconds() - before - cpu) / wall)
    # Who is still at what another one was earlier with would take a core from the next pool.
    if late := list(pool._late):
        ray.wait(late, num_returns=len(late))
    return losses_NB


def compared(pools: dict[int, RayPool], rung: Rung, times: int) -> dict[int, Rounds]:
    """Measures a rung by each pool in turn, so many times.

    Returns:
        Number of workers -> what they took.
    """
    expected = pools[min(pools)].measure(rung.rows_NL, rung.works, Fitness.kl)
    for pool in pools.values():
        for _ in range(WARM_UPS):
            measured(pool, rung, Rounds())
    found = {workers: Rounds() for workers in pools}
    for number in range(times):
        # The other way round every second time, so that no pool always follows the same one.
        for workers in list(pools)[:: -1 if number % 2 else 1]:
            losses_NB = measured(pools[workers], rung, found[workers])
            assert losses_NB.tobytes() == expected.tobytes(), f"{workers} workers found other bits"
    return found


def rows(name: str, rung: Rung, found: dict[int, Rounds], cores: int) -> list[list[str]]:
    """The table's lines of a rung."""
    least = min(found)
    lines = []
    for workers, rounds in found.items():
        more = workers / least
        gains = [one / some for one, some in zip(found[least].wall, rounds.wall, strict=True)]
        efficiency = statistics.median(gains) / more
        had = statistics.median(cpu / wall for cpu, wall in zip(rounds.cpu, rounds.wall, strict=True))
        extra = statistics.median(some / one for one, some in zip(found[least].cpu, rounds.cpu, strict=True))
        if workers == least:
            goal = ""
        elif workers <= cores and had < CROWDED * workers:
            goal = f"not judged: they had {had:.2f} cores"
        elif workers <= cores:
            goal = f">= {GOAL}: {'met' if efficiency >= GOAL else 'missed'}"
        else:
            goal = f"none: {workers} workers on {cores} cores; per core {efficiency * workers / cores:.2f}"
        lines.append(
            [
                name,
                str(workers),
                f"{efficiency:.3f}",
                f"{min(gains) / more:.3f} to {max(gains) / more:.3f}",
                goal,
                f"{rung.candidate_tokens / statistics.median(rounds.wall):,.0f}",
                f"{extra:.3f}",
                f"{had:.2f}",
                f"{statistics.median(rounds.others):.2f}",
            ]
        )
    return lines


HEADER = [
    "rung",
    "workers",
    "efficiency",
    "range",
    "goal",
    "candidate tokens/s",
    "CPU time, of one worker's",
    "cores had",
    "cores of others",
]


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="of each pool, one thread each")
    parser.add_argument("--rungs", nargs="+", default=["128x2048", "16x16384"], help="children x tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens-per-pass", type=int, default=2048)
    parser.add_argument("--no-log", action="store_true")
    given = parser.parse_args()
    counts, cores = sorted(set(given.workers)), usable_cores()
    text = whole_blocks(given.model, given.data, given.sequence_length)
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        evoray.build(model=given.model, store=folder, method="rtn", group_size=given.group_size, threads=1)
        space = quantization_space(VariantStore.open(folder).manifest, Budget(Measure.BITS, 3.0), Tie.NONE)
        # Ray's workers give way to whatever else runs, unless they are told not to.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # One cluster for all pools, which believes in a core for each of their workers.
        ray.init(address="local", num_cpus=sum(counts), include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        spec = WorkerSpec(model=given.model, store=folder, device="cpu", threads=1)
        pools = {
            # From N to N: it begins when all are there.
            workers: stack.enter_context(RayPool(spec, workers=f"{workers}..{workers}", hung_after=3600.0))
            for workers in counts
        }
        taught = teach_text(pools[counts[-1]], text, shapes=Shapes(tokens_per_pass=given.tokens_per_pass))
        for name in given.rungs:
            candidates, tokens = map(int, name.split("x"))
            batches = draw_batches(text, tokens, rng(0, 1, Purpose.BATCHES), given.tokens_per_pass)
            rung = Rung(space.rows(offspring(space, candidates)), taught.works(batches), tokens)
            lines += rows(f"{candidates} x {tokens:,}", rung, compared(pools, rung, given.rounds), cores)
    text_of_machine = f"{cores} cores" + (
        f", which is fewer than the {counts[-1]} workers of the largest pool: its rows show no scaling"
        if counts[-1] > cores
        else ", one or more for each worker"
    )
    body = (
        f"{text_of_machine}. Workers of one thread, children of one parent at 3 bits by the paper's mutation, blocks "
        f"of {given.sequence_length}, passes of {given.tokens_per_pass:,} tokens, {given.rounds} rounds of all pools "
        f"in turn, equal bits in all.\n\n{table(HEADER, lines)}"
    )
    if given.no_log:
        print(body)
    else:
        append(f"scaling of CPU workers on {os.path.basename(given.model.rstrip('/'))}", body)


if __name__ == "__main__":
    main()
