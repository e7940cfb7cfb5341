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
import tempfile
from pathlib import Path
from typing import Any

import evoray
from benchmarks.accepted import losses
from benchmarks.log import append, table
from benchmarks.paper import STORES
from benchmarks.tokens_to_quality import ROWS, SCHEDULE
from evoray.cluster import open_pool
from evoray.run.ground import plan_ground
from evoray.run.journal import GenerationRow, Journal
from evoray.run.progress import RichProgress
from evoray.settings import SearchSettings
from evoray.space import Genotype
from evoray.store import Location

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the tokens, after which the parent on the way is looked at."""


def parents(rows: list[GenerationRow], tokens: int) -> list[Genotype]:
    """The parent after each share of the tokens: of the last generation that was whole by then, or of the first.

    The last generation of a search may end beyond the limit, and does not count then.
    """
    found = []
    for share in SHARES:
        parent, used = rows[0].winner, 0
        for row in rows:
            used += row.tokens
            if used > share * tokens:
                break
            parent = row.winner
        found.append(parent)
    return found


def measure(option: str, seed: int, given: argparse.Namespace, folder: Path) -> list[Any]:
    """One search: its tokens, how many generations and new parents, and the KL on the way."""
    row = dict(ROWS[given.row])
    store = folder / row.pop("store")
    shared: dict[str, Any] = {
        "model": given.model,
        "data": given.data,
        "store": str(store),
        "judge_data": given.judge_data,
        "sequence_length": given.sequence_length,
        "search_tokens": given.search_tokens,
        "seed": seed,
        "workers": given.workers,
        **row,
        **SCHEDULE,
        "generations": 1000,
        "max_tokens": given.tokens,
        **dict(each.split("=", 1) for each in option.split(",") if each),
    }
    run = folder / f"options-{given.row}-{seed}-{option.replace('=', '-') or 'default'}"
    with RichProgress() as progress:
        evoray.build(
            model=given.model,
            data=given.data,
            store=str(store),
            sequence_length=given.sequence_length,
            hessian_tokens=given.hessian_tokens,
            progress=progress,
            **STORES[store.name],
        )
        found = evoray.search(run=str(run), judge_tokens=2048, progress=progress, **shared)
        _, ground = plan_ground(SearchSettings(run=str(folder / "unused"), judge_tokens=given.judge_tokens, **shared))
        rows = Journal(Location.parse(found.run)).rows
        on_the_way = parents(rows, given.tokens)
        distinct = list(dict.fromkeys(on_the_way))
        with open_pool(ground.spec, workers=given.workers, memory=ground.memory) as pool:
            judged_NB = losses(pool, ground, distinct, ground.judge_text, given.judge_tokens)
    kl = dict(zip(distinct, (judged_NB.sum(1) / ground.judge_text.tokens).tolist(), strict=True))
    new = sum(before.winner != after.winner for before, after in itertools.pairwise(rows))
    return [found.best["candidate_tokens"], len(rows), new, *(f"{kl[parent]:.6f}" for parent in on_the_way)]


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="text for Hessians and for the search")
    parser.add_argument("--judge-data", required=True, help="held-out text")
    parser.add_argument("--row", choices=list(ROWS), default="bits-2.5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--options", nargs="*", default=[], help="a search each, such as race=fixed,proposals=mutation")
    parser.add_argument("--tokens", type=int, default=720000, help="after which a search stops")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--hessian-tokens", type=int, default=65536)
    parser.add_argument("--search-tokens", type=int, default=262144)
    parser.add_argument("--judge-tokens", type=int, default=65536)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", default=None, help="where stores and runs go; kept when given")
    given = parser.parse_args()
    folder = Path(given.folder or tempfile.mkdtemp(prefix="evoray-options-"))
    folder.mkdir(parents=True, exist_ok=True)
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
