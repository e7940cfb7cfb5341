"""How many children that replaced their parent are in truth no better than it.

python -m benchmarks.accepted RUN [RUN ...] [--tokens 131072] [--most 20]

Of each finished search the accepted children (so many of them, drawn at random, where there are more) are measured
again beside the parents that they replaced, on the same search tokens, drawn anew.

Holds: `accepted`, `drawn`, `losses`, beside the command.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.log import append, table
from evoray.cluster import Pool, open_pool
from evoray.evaluator import Work
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.run.ground import Ground, plan_ground, settings_of_run
from evoray.run.journal import GenerationRow, Journal
from evoray.space import Genotype
from evoray.store import Location
from evoray.tokens import TokenText, draw_batches

MOST = 20
"""Accepted children that are looked at again, of each run."""

Pair = tuple[Genotype, Genotype]
"""Parent, and the child that replaced it."""


def losses(pool: Pool, ground: Ground, genotypes: list[Genotype], text: TokenText, tokens: int) -> np.ndarray:
    """KL per block in nats, float64 [genotypes, blocks], on that many tokens drawn from a text."""
    tokens_per_pass = 2048
    batches = draw_batches(text, min(tokens, text.tokens), rng(1, 0, Purpose.BATCHES), tokens_per_pass)
    parts = []
    for first in range(0, len(batches), 32):
        plain = [Work(batch.ids(text), batch.cuts) for batch in batches[first : first + 32]]
        taught = zip(plain, pool.teach(plain), strict=True)
        works = [Work(work.ids, work.cuts, tuple(blocks)) for work, blocks in taught]
        parts.append(pool.measure(ground.space.rows(genotypes), works, Fitness.kl))
    return np.concatenate(parts, axis=1)


def accepted(rows: Sequence[GenerationRow], start: Genotype) -> list[Pair]:
    """A pair for each generation in which a child replaced the parent.

    Args:
        rows: of a journal, without the race for the start.
        start: the first parent.
    """
    parents = [start, *(row.winner for row in rows)]
    return [(parent, row.winner) for parent, row in zip(parents, rows, strict=False) if row.winner != parent]


def drawn(pairs: Sequence[Pair], seed: int, most: int = MOST) -> list[Pair]:
    """Some of the pairs, at random, in their order; all where there are no more."""
    return [pairs[number] for number in sorted(np.random.default_rng(seed).permutation(len(pairs))[:most].tolist())]


def audited(run: str, tokens: int, most: int, workers: int) -> list[object]:
    """Accepted children of a run, how many were looked at and were no better, and the least gain in standard errors."""
    location = Location.parse(run)
    settings, ground = plan_ground(settings_of_run(location))
    rows = Journal(location).rows
    start = rows[0].winner if rows[0].generation == 0 else ground.space.uniform()
    assert start is not None
    whole = accepted([row for row in rows if row.generation], start)
    pairs = drawn(whole, settings.seed, most)
    genotypes = list(dict.fromkeys(genotype for pair in pairs for genotype in pair))
    with open_pool(ground.spec, workers=workers, memory=ground.memory) as pool:
        again = dict(zip(genotypes, losses(pool, ground, genotypes, ground.text, tokens), strict=True))
    gains = [again[parent] - again[child] for parent, child in pairs]
    errors = [float(gain.sum() / max(gain.std() * len(gain) ** 0.5, 1e-300)) for gain in gains]
    false = sum(float(gain.sum()) <= 0 for gain in gains)
    return [Path(run).name, len(whole), len(pairs), false, f"{min(errors):.1f}" if errors else ""]


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories of searches for the KL divergence")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--most", type=int, default=MOST)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    lines = [audited(run, given.tokens, given.most, given.workers) for run in given.runs]
    append(
        "accepted children, looked at again",
        f"Beside the parents they replaced, paired, on {given.tokens:,} search tokens.\n\n"
        + table(["run", "accepted", "looked at", "no better", "least gain in standard errors"], lines),
    )


if __name__ == "__main__":
    main()
