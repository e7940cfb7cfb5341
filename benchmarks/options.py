"""What options of a search are worth, each against the defaults at equal candidate tokens.

python -m benchmarks.options --model FOLDER --data TEXT.txt --judge-data HELD_OUT.txt
    [--row bits-2.5] [--seeds 0] [--options race=fixed proposals=screened race=fixed,proposals=mutation]

Every search has the same offspring, rungs and seed, and is stopped after the same number of candidate tokens. Told of
each is the held-out KL of its parent on the way, after so many tokens. Searches that are finished
are kept in the folder and not made again.
"""

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

import evoray
from benchmarks.log import append, table
from benchmarks.trials import ROWS, SCHEDULE, add_flags, built_store, folder_of, kl_of, path_of, trial
from evoray.run.progress import RichProgress
from evoray.space import Genotype

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the tokens, after which the parent on the way is looked at."""


def parents(path: list[tuple[int, Genotype]], tokens: int) -> list[Genotype]:
    """The parent after each share of the tokens: of the last generation that was whole by then, or of the first.

    The last generation of a search may end beyond the limit, and does not count then.
    """
    return [next((parent for used, parent in path[::-1] if used <= share * tokens), path[0][1]) for share in SHARES]


def measure(option: str, seed: int, given: argparse.Namespace, folder: Path) -> list[Any]:
    """One search: its tokens, how many generations and new parents, and the KL on the way."""
    row = ROWS[given.row]
    shared = {
        **trial(given, row, seed, folder),
        **SCHEDULE,
        "generations": 1000,
        "max_tokens": given.tokens,
        **dict(each.split("=", 1) for each in option.split(",") if each),
    }
    run = folder / f"options-{given.row}-{seed}-{option.replace('=', '-') or 'default'}"
    with RichProgress() as progress:
        built_store(given, row["store"], folder, progress)
        found = evoray.search(run=str(run), judge_tokens=2048, progress=progress, **shared)
    path = path_of(found.run)
    on_the_way = parents(path, given.tokens)
    kl = kl_of(on_the_way, shared, given.judge_tokens)
    new = sum(before != after for (_, before), (_, after) in itertools.pairwise(path))
    return [found.best["candidate_tokens"], len(path), new, *(f"{kl[parent]:.6f}" for parent in on_the_way)]


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, judge_tokens=65536)
    parser.add_argument("--row", choices=list(ROWS), default="bits-2.5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--options", nargs="*", default=[], help="a search each, such as race=fixed,proposals=mutation")
    parser.add_argument("--tokens", type=int, default=720000, help="after which a search stops")
    given = parser.parse_args()
    folder = folder_of(given)
    lines = [
        [option or "the defaults", seed, *measure(option, seed, given, folder)]
        for seed in given.seeds
        for option in ("", *given.options)
    ]
    append(
        f"options of a search on {os.path.basename(given.model.rstrip('/'))}, {given.row}",
        f"Each stopped after {given.tokens:,} candidate tokens; {SCHEDULE['offspring']} offspring, survivors "
        f"{SCHEDULE['survivors']}, tokens {SCHEDULE['tokens']}. Held-out KL on {given.judge_tokens:,} tokens of "
        f"{os.path.basename(given.judge_data)}, of the parent after shares of the tokens.\n\n"
        + table(
            ["option", "seed", "tokens", "generations", "new parents", *(f"KL at {share:g}" for share in SHARES)],
            lines,
        ),
    )


if __name__ == "__main__":
    main()
