"""How long workers are idle in a generation, with and without what is measured ahead of being asked for.

python -m benchmarks.idle [--workers 4] [--schedules scaled default]
python -m benchmarks.idle --runs RUN [RUN ...]          # of searches that real workers have made

The real strategy, race and dispatcher on a synthetic loss; workers take the stated time per token, and the clock is
only added to. Each race policy is run with and without what it may ask for next. Idle is the share of the workers' time
in which they compute nothing. Of what was measured ahead, the share is told that was asked for afterwards. Of a run,
idle is the share of its generations' time in which a worker had no work in hand.
"""

import argparse
import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.log import append, table
from evoray.cluster.dispatch import Dispatcher, Item, shares
from evoray.cluster.speeds import Speeds
from evoray.evolve import (
    FixedRace,
    HalvingRace,
    Learned,
    LevelSwitch,
    Measurement,
    OnePlusLambda,
    RaceFactory,
    SequentialRace,
    Told,
    rungs,
)
from evoray.run.journal import Journal
from evoray.space import Gene, Genotype, Space
from evoray.store import Location

GENES, BITS = 84, (2, 3, 4, 5, 6)
BLOCK = 256
"""Tokens of a block."""

SCHEDULES = {
    "scaled": (32, (8, 2, 1), (512, 4096, 16384)),
    "default": (128, (16, 4, 1), (2048, 16384, 131072)),
}
POLICIES: dict[str, RaceFactory] = {"fixed": FixedRace, "halving": HalvingRace, "sequential": SequentialRace}

Batch = tuple[int, ...]
Pair = tuple[Batch, Genotype]


def synthetic_space() -> Space:
    """Layers of one size at 3 bits on average."""
    names = tuple(f"layer.{number}" for number in range(GENES))
    levels = tuple(map(str, BITS))
    genes = tuple(Gene(name, number // 7, (name,), levels, BITS, BITS, BITS) for number, name in enumerate(names))
    return Space(genes, 3 * GENES, names, (levels,) * GENES, weights=GENES, level="3")


class Loss:
    """Falls with every bit, by as much as the layer matters, with a spread over blocks of which most is shared."""

    def __init__(self, seed: int) -> None:
        draws = np.random.default_rng(seed)
        self._weight_GK = np.exp(draws.standard_normal(GENES))[:, None] * 4.0 ** -np.arange(len(BITS)) / GENES
        self._blocks_BG = np.exp(0.5 * draws.standard_normal((8192, GENES)))

    def __call__(self, genotypes: Sequence[Genotype], blocks: Sequence[int]) -> np.ndarray:
        """Sums per block, float64 [N, B]."""
        levels_NG = np.array(genotypes)
        of_NG = self._weight_GK[np.arange(GENES), levels_NG]
        losses_NB: np.ndarray = of_NG @ self._blocks_BG[list(blocks)].T * BLOCK
        return losses_NB


@dataclass
class Workers:
    """Workers that all take the same time for a token, give or take some noise."""

    count: int
    token_seconds: float
    noise: float = 0.03
    latency: float = 0.001
    now: float = 0.0
    busy: float = 0.0
    ahead_seconds: float = 0.0
    ahead_used: float = 0.0
    free: list[float] = field(default_factory=list)
    kept: dict[Pair, float] = field(default_factory=dict)
    late: dict[int, tuple[float, float, Pair | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = [0.0] * self.count
        self._speeds, self._draws, self._number = Speeds(), np.random.default_rng(0), 0

    def measure(self, genotypes: Sequence[Genotype], batches: Sequence[Batch], ahead: Sequence[Pair]) -> None:
        """Lets the clock run until every genotype is through on every batch."""
        order = sorted(range(len(genotypes)), key=lambda number: genotypes[number])
        of = shares(np.array([genotypes[number] for number in order]))
        wanted = {(batch, g): (i, j) for j, batch in enumerate(batches) for i, g in enumerate(genotypes)}
        self._end_late()
        known = {place: np.zeros(1) for pair, place in wanted.items() if pair in self.kept}
        self.ahead_used += sum(self.kept.pop(pair) for pair in [pair for pair in wanted if pair in self.kept])
        adopted = [(worker, *entry) for worker, entry in self.late.items() if entry[2] in wanted]
        spare = [pair for pair in ahead if pair not in wanted and pair not in self.kept]
        dispatcher = Dispatcher(
            len(genotypes),
            [1] * len(batches),
            weights=[float(len(batch) * BLOCK) for batch in batches],
            order=order,
            shares=of,
            speeds=self._speeds,
            workers=self.count,
            known=known,
            under_way=[(worker, *wanted[pair], since) for worker, _, since, pair in adopted if pair],
            spare=[float(len(batch) * BLOCK) for batch, _ in spare],
        )
        events: list[tuple[float, int, int, Item | None, float]] = []
        for (worker, item), (_, end, since, _) in zip(dispatcher.adopted, adopted, strict=True):
            self.ahead_used += end - since
            heapq.heappush(events, (end, self._next(), worker, item, end - since))
            del self.late[worker]
        for worker, (end, _, _) in self.late.items():
            heapq.heappush(events, (end, self._next(), worker, None, 0.0))
        for worker in set(range(self.count)) - self.late.keys() - {worker for worker, _ in dispatcher.adopted}:
            dispatcher.add(worker)
        calls: dict[int, list[tuple[float, float, Item]]] = {worker: [] for worker in range(self.count)}
        while not dispatcher.finished:
            for worker, item in dispatcher.assign(self.now):
                took = item.cost * self.token_seconds * max(0.5, self._draws.normal(1, self.noise))
                start = max(self.free[worker], self.now + self.latency)
                self.free[worker] = start + took
                self.busy += took
                self.ahead_seconds += took if item.spare is not None else 0.0
                calls[worker].append((start + took, start, item))
                heapq.heappush(events, (start + took, self._next(), worker, item, took))
            if not events or dispatcher.wake < events[0][0]:
                self.now = dispatcher.wake
                continue
            when, _, worker, done, took = heapq.heappop(events)
            self.now = max(self.now, when)
            if done is None:
                end, since, pair = self.late.pop(worker)
                if pair is not None:
                    self.kept[pair] = end - since
                dispatcher.add(worker)
                continue
            calls[worker] = [call for call in calls[worker] if call[2] is not done]
            if done.spare is not None:
                self.kept[spare[done.spare]] = took
            dispatcher.done(worker, done, np.zeros((len(done.candidates), 1)), self.now, took)
        for worker, there in calls.items():
            for end, start, item in there:
                self.late[worker] = (end, start, spare[item.spare] if item.spare is not None else None)

    def _end_late(self) -> None:
        for worker, (end, since, pair) in list(self.late.items()):
            if end <= self.now:
                del self.late[worker]
                if pair is not None:
                    self.kept[pair] = end - since

    def _next(self) -> int:
        self._number += 1
        return self._number


def batches_of(measurement: Measurement, generation: int, per_pass: int) -> list[Batch]:
    """Block numbers of each pass."""
    draw = measurement.drawn
    order = np.random.default_rng([0 if draw.lasting else generation + 1, draw.index]).permutation(8192)
    blocks = np.roll(order, -draw.skip)[: -(-measurement.tokens // BLOCK)].tolist()
    size = max(1, per_pass // BLOCK)
    return [tuple(blocks[first : first + size]) for first in range(0, len(blocks), size)]


def searched(
    policy: RaceFactory, schedule: str, workers: Workers, generations: int, ahead: bool, per_pass: int
) -> None:
    """A search on the synthetic loss; the workers say how long it took."""
    offspring, survivors, tokens = SCHEDULES[schedule]
    space, loss = synthetic_space(), Loss(0)
    strategy = OnePlusLambda(
        space,
        offspring=offspring,
        rungs=rungs(survivors, tokens, 1),
        mutation=LevelSwitch(),
        proposals=Learned(space, LevelSwitch()),
        race=policy,
        seed=0,
        generations=generations,
    )
    while not strategy.stop:
        race, told, generation = strategy.ask(), list[Told](), strategy.generation
        while (wanted := race.ask()) is not None:
            batches = batches_of(wanted, generation, per_pass)
            blocks = [block for batch in batches for block in batch]
            hints = [
                (batch, genotype)
                for each in (race.ahead(lambda of: -(-of.tokens // BLOCK)) if ahead else ())
                for batch in batches_of(each.measurement, generation + each.later, per_pass)
                for genotype in each.measurement.genotypes
            ]
            workers.measure(wanted.genotypes, batches, hints)
            told.append(Told(wanted, loss(wanted.genotypes, blocks), np.full(len(blocks), BLOCK)))
            race.tell(told[-1].losses_NB, told[-1].tokens_B)
        strategy.tell(strategy.outcome(race.result), told)


def idle_of_runs(runs: Sequence[str]) -> str:
    """A table of finished searches: their idle share as a whole, and over generations."""
    lines = []
    for run in runs:
        rows = [row for row in Journal(Location.parse(run)).rows if row.generation and row.busy_seconds]
        idle = [1 - sum(row.busy_seconds) / (len(row.busy_seconds) * row.seconds) for row in rows]
        whole = sum(len(row.busy_seconds) * row.seconds for row in rows)
        lines.append(
            [
                Path(run).name,
                len(rows[0].busy_seconds),
                len(rows),
                f"{sum(row.tokens for row in rows):,}",
                f"{1 - sum(sum(row.busy_seconds) for row in rows) / whole:.3f}",
                f"{statistics.median(idle):.3f}",
                f"{max(idle):.3f}",
            ]
        )
    return table(["run", "workers", "generations", "candidate tokens", "idle", "median", "most"], lines)


def main() -> None:
    """Parses arguments, simulates or reads, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[4])
    parser.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--token-us", type=float, default=250.0, help="microseconds of a token through the model")
    parser.add_argument("--tokens-per-pass", type=int, default=2048)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--runs", nargs="+", default=[], help="run directories: tell of these instead")
    parser.add_argument("--no-log", action="store_true")
    given = parser.parse_args()
    if given.runs:
        text = idle_of_runs(given.runs)
        if given.no_log:
            print(text)
        else:
            append("idle workers in a generation, real ones", text)
        return
    lines = []
    for schedule in given.schedules:
        for count in given.workers:
            for name, policy in POLICIES.items():
                found = []
                for ahead in (False, True):
                    workers = Workers(count, given.token_us * 1e-6)
                    searched(policy, schedule, workers, given.generations, ahead, given.tokens_per_pass)
                    found.append(workers)
                without, having = found
                lines.append(
                    [
                        schedule,
                        count,
                        name,
                        f"{1 - without.busy / (count * without.now):.3f}",
                        f"{1 - having.busy / (count * having.now):.3f}",
                        f"{having.ahead_used / having.ahead_seconds:.2f}" if having.ahead_seconds else "",
                        f"{without.now / given.generations:.2f}",
                        f"{having.now / given.generations:.2f}",
                    ]
                )
    text = table(
        [
            "schedule",
            "workers",
            "race",
            "idle",
            "idle, measuring ahead",
            "of that asked for",
            "s/generation",
            "measuring ahead",
        ],
        lines,
    )
    if given.no_log:
        print(text)
        return
    append(
        "idle workers in a generation, simulated",
        f"Real strategy, races and dispatcher; {given.generations} generations, {given.token_us:g} us a token, passes "
        f"of {given.tokens_per_pass} tokens, times ± 3%. scaled: 32 offspring, 8 2 1, 512 4096 16384; default: 128, "
        "16 4 1, 2048 16384 131072. Seconds are of the simulated clock.\n\n" + text,
    )


if __name__ == "__main__":
    main()
