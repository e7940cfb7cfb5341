"""Which race policy finds good children for the fewest tokens? Replays policies on recorded losses; needs no model.

python -m benchmarks.race RUN [--policies fixed halving sequential] [--survivors 8,2,1] [--tokens 512,2048,8192]

RUN is the run directory of any search. Of each of its generations, the candidates that have at least `--least` tokens
in common race again, on the blocks that they share: half of the blocks, drawn at random, are what the race is told
from, the other half is the truth, and both are drawn anew in each repetition. An ordinary run shares few blocks among
few candidates; one made for this measures all of them on the whole of the last rung:

evoray search ... --generations 8 --offspring 32 --survivors 32,1 --tokens 512,32768 --race halving

Told of each policy: candidate tokens a generation, regret (true loss of the winner minus that of the best child or
parent), how often a child won, and how often one won that is in truth no better than the parent. Intervals are over
generations, which are the sample; repetitions of one only make its figure less noisy.
"""

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.log import append, table
from evoray.evolve import FixedRace, HalvingRace, RaceFactory, SequentialRace, rungs
from evoray.evolve.race import loss_per_token
from evoray.run.journal import Journal
from evoray.space import Genotype
from evoray.store import Location

POLICIES: dict[str, RaceFactory] = {"fixed": FixedRace, "halving": HalvingRace, "sequential": SequentialRace}


@dataclass(frozen=True)
class Recorded:
    """Losses of a generation on blocks that its candidates share.

    Attributes:
        genotypes: N, the parent first.
        losses_NB: sums in nats.
        tokens_B: of each block.
    """

    genotypes: tuple[Genotype, ...]
    losses_NB: np.ndarray
    tokens_B: np.ndarray


@dataclass(frozen=True)
class Replay:
    """How one race went, by the truth."""

    tokens: int
    regret: float
    child_won: bool
    in_vain: bool


def recorded(journal: Journal, least: int) -> Iterator[Recorded]:
    """Of each generation with a parent: who has at least so many tokens in common with the parent, on those blocks."""
    parent: Genotype | None = None
    for row in journal.rows:
        losses: dict[Genotype, dict[tuple[int, int], float]] = {}
        batches = {
            (batch["rung"], batch["batch"]): list(zip(batch["blocks"], batch["cuts"], strict=True))
            for batch in journal.batches(row.generation).to_pylist()
        }
        for each in journal.evaluations(row).to_pylist():
            blocks = batches[each["rung"], each["batch"]]
            losses.setdefault(tuple(each["genotype"]), {}).update(zip(blocks, each["losses"], strict=True))
        if parent in losses:
            enough = {
                genotype: there.keys()
                for genotype, there in losses.items()
                if sum(cut for _, cut in there.keys() & losses[parent].keys()) >= least
            }
            shared = sorted(set.intersection(*map(set, enough.values())))
            genotypes = (parent, *(genotype for genotype in enough if genotype != parent))
            if len(genotypes) > 1 and sum(cut for _, cut in shared) >= least:
                losses_NB = np.array([[losses[genotype][block] for block in shared] for genotype in genotypes])
                yield Recorded(genotypes, losses_NB, np.array([cut for _, cut in shared]))
        parent = row.winner


def replay(policy: RaceFactory, of: Recorded, survivors: str, tokens: str, rng: np.random.Generator) -> Replay:
    """One race on half of the blocks, judged on the other half. Of the parent nothing is known, as after it has won."""
    blocks = rng.permutation(len(of.tokens_B))
    told, truth = np.array_split(blocks, 2)
    parent = of.genotypes[0]
    row = {genotype: number for number, genotype in enumerate(of.genotypes)}
    steps = rungs([int(each) for each in survivors.split(",")], [int(each) for each in tokens.split(",")], 1)
    orders: dict[tuple[int, bool], np.ndarray] = {}

    def on(index: int, lasting: bool, skip: int, count: int) -> np.ndarray:
        order = orders.setdefault((index, lasting), rng.permutation(told))
        starts = np.cumsum(np.take(of.tokens_B, order[skip:], mode="wrap"))
        return order[skip : skip + 1 + int(np.searchsorted(starts, count))]

    race, spent = policy(of.genotypes[1:], (parent,), steps, {}), 0
    while (wanted := race.ask()) is not None:
        draw = wanted.drawn
        chosen = on(draw.index, draw.lasting, draw.skip, wanted.tokens)
        losses_NB = of.losses_NB[np.ix_([row[genotype] for genotype in wanted.genotypes], chosen)]
        race.tell(losses_NB, of.tokens_B[chosen])
        spent += len(wanted.genotypes) * int(of.tokens_B[chosen].sum())
    means = loss_per_token(of.losses_NB[:, truth], of.tokens_B[truth])
    winner = row[race.result.winner]
    return Replay(spent, means[winner] - min(means), winner > 0, winner > 0 and means[winner] >= means[0])


def _interval(values: list[float], digits: int) -> str:
    """Mean and half the width of its 95% interval."""
    if len(values) < 2:
        return f"{np.mean(values):.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {1.96 * np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}"


def main() -> None:
    """Parses arguments, replays, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--survivors", default="8,2,1")
    parser.add_argument("--tokens", default="512,2048,8192")
    parser.add_argument("--least", type=int, help="tokens in common; default: nearly twice those of the last rung")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--name", help="what the log calls the run; default: its folder's name")
    given = parser.parse_args()
    last = int(given.tokens.split(",")[-1])
    # A little less than twice as many: the last block may be cut.
    least = given.least or 2 * last * 19 // 20
    generations = list(recorded(Journal(Location.parse(given.run)), least))
    if not generations:
        parser.error(f"no generation of {given.run} has candidates that share {least} tokens; lower "
                     "--least and --tokens, or record a run as this script's help says")  # fmt: skip
    lines = []
    for name in given.policies:
        races = [
            [
                replay(POLICIES[name], each, given.survivors, given.tokens, np.random.default_rng([number, repeat]))
                for repeat in range(given.repeats)
            ]
            for number, each in enumerate(generations)
        ]
        won = sum(race.child_won for each in races for race in each)
        lines.append(
            [
                name,
                _interval([float(np.mean([race.tokens for race in each])) for each in races], 0),
                _interval([float(np.mean([race.regret for race in each])) for each in races], 6),
                _interval([float(np.mean([race.child_won for race in each])) for each in races], 3),
                f"{sum(race.in_vain for each in races for race in each) / max(1, won):.3f}",
            ]
        )
    candidates = [len(each.genotypes) - 1 for each in generations]
    append(
        f"race policies replayed on {given.name or os.path.basename(given.run.rstrip('/'))}",
        f"{len(generations)} generations of {min(candidates)} to {max(candidates)} children, {given.repeats} "
        f"repetitions; survivors {given.survivors}, tokens {given.tokens}; means over generations, 95% intervals.\n\n"
        + table(["policy", "candidate tokens", "regret, nats/token", "a child won", "of these in vain"], lines),
    )


if __name__ == "__main__":
    main()
