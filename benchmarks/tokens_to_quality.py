"""How many candidate tokens a strategy needs for what the paper's schedule finds, and how often it errs on the way.

python -m benchmarks.tokens_to_quality --model FOLDER --data TEXT.txt --judge-data HELD_OUT.txt
    [--rows bits-3 bits-2.5 sparsity-0.5] [--seeds 0 1 2 3 4] [--option race=fixed] [--folder FOLDER]

For each row and seed there is a reference, `--preset evopress` scaled down, and the strategy under test with the same
offspring, rungs and seed, stopped at a share of the reference's tokens. Told of each:

- held-out KL of what both found, on all held-out tokens;
- after how many tokens the strategy's parent was as good as what the reference ends with, both on the same part of the
  held-out tokens;
- how many of its accepted children (20 drawn at random where there are more) are no better than the parent they
  replaced, paired on search tokens.

Runs and figures that are finished are kept in the folder and not made again.
"""

import argparse
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import evoray
from benchmarks.accepted import accepted, drawn, losses
from benchmarks.log import append, table
from benchmarks.trials import ROWS, SCHEDULE, add_flags, built_store, folder_of, path_of, trial
from evoray.cluster import open_pool
from evoray.run.ground import plan_ground
from evoray.run.journal import Journal
from evoray.run.progress import RichProgress
from evoray.settings import SearchSettings
from evoray.store import Location

REFERENCE = {"preset": "evopress", "generations": 30}


def measure(name: str, seed: int, label: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row and seed: both searches, judged together."""
    kept = folder / f"{name}-{seed}-{label}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    row = ROWS[name]
    shared = trial(given, row, seed, folder)
    few = {"judge_tokens": 2048}  # judged below, all together
    schedule = {name: getattr(given, name) for name in SCHEDULE}
    options = dict(option.split("=", 1) for option in given.option)
    with RichProgress() as progress:
        built_store(given, row["store"], folder, progress)
        reference = evoray.search(
            run=str(folder / f"run-{name}-{seed}-reference"),
            progress=progress,
            **shared | few | schedule | REFERENCE,
        )
        spent = reference.best["candidate_tokens"]
        tested = evoray.search(
            run=str(folder / f"run-{name}-{seed}-{label}"),
            progress=progress,
            **shared | few | schedule | {"generations": 1000, "max_tokens": math.ceil(given.share * spent)} | options,
        )
        settings = SearchSettings(run=str(folder / "unused"), judge_tokens=given.judge_tokens, **shared)
        _, ground = plan_ground(settings)
        rows = Journal(Location.parse(tested.run)).rows
        start = rows[0].winner if rows[0].generation == 0 else ground.space.uniform()
        assert start is not None
        ends = [ground.space.genotype(result.configuration) for result in (reference, tested)]
        path = list(dict.fromkeys([start, *(row.winner for row in rows)]))
        pairs = accepted([row for row in rows if row.generation], start)
        looked = drawn(pairs, seed)
        with open_pool(ground.spec, workers=given.workers, memory=ground.memory) as pool:
            progress.note("judging what was found")
            ends_NB = losses(pool, ground, ends, ground.judge_text, given.judge_tokens)
            part_NB = losses(pool, ground, [ends[0], *path], ground.judge_text, given.path_tokens)
            progress.note(f"looking again at {len(looked)} accepted children")
            both = list(dict.fromkeys(genotype for pair in looked for genotype in pair))
            again_N = losses(pool, ground, both, ground.text, given.accept_tokens).sum(1) if both else np.zeros(0)
    judged = ground.judge_text.tokens
    on_part = dict(zip(path, part_NB[1:].sum(1).tolist(), strict=True))
    target = part_NB[0].sum()
    reached = next((used for used, parent in path_of(tested.run) if on_part[parent] <= target), None)
    again = dict(zip(both, again_N.tolist(), strict=True))
    found = {
        "reference_tokens": spent,
        "reference_kl": ends_NB[0].sum() / judged,
        "reference_seconds": reference.best["seconds"],
        "tokens": tested.best["candidate_tokens"],
        "kl": ends_NB[1].sum() / judged,
        "seconds": tested.best["seconds"],
        "difference_spread": float((ends_NB[1] - ends_NB[0]).std() * math.sqrt(ends_NB.shape[1]) / judged),
        "judged_tokens": judged,
        "reached": reached,
        "generations": len(rows),
        "accepted": len(looked),
        "false_accepts": sum(again[child] >= again[parent] for parent, child in looked),
    }
    kept.write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, judge_tokens=131072)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["bits-3", "bits-2.5", "sparsity-0.5"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--option", nargs="*", default=[], help="of the search under test, such as race=fixed")
    parser.add_argument("--share", type=float, default=0.25, help="of the reference's tokens, after which it stops")
    parser.add_argument("--path-tokens", type=int, default=32768)
    parser.add_argument("--accept-tokens", type=int, default=131072)
    for name, value in SCHEDULE.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args()
    folder = folder_of(given)
    label = "-".join(option.replace("=", "-") for option in sorted(given.option)) or "default"
    lines, summary = [], []
    for name in given.rows:
        seeds = {seed: measure(name, seed, label, given, folder) for seed in given.seeds}
        for seed, each in seeds.items():
            lines.append(
                [
                    name,
                    seed,
                    f"{each['reference_kl']:.6f}",
                    f"{each['kl']:.6f}",
                    f"{each['kl'] - each['reference_kl']:+.6f} ± {1.96 * each['difference_spread']:.6f}",
                    f"{each['tokens'] / each['reference_tokens']:.3f}",
                    f"{each['reached'] / each['reference_tokens']:.3f}" if each["reached"] else "not",
                    f"{each['false_accepts']} of {each['accepted']}",
                ]
            )
        needed = [
            each["reached"] / each["reference_tokens"] if each["reached"] else math.inf for each in seeds.values()
        ]
        looked = sum(each["accepted"] for each in seeds.values())
        summary.append(
            [
                name,
                f"{statistics.median(needed):.3f}",
                f"{sum(each['kl'] < each['reference_kl'] for each in seeds.values())} of {len(seeds)}",
                f"{sum(each['false_accepts'] for each in seeds.values())} of {looked}",
            ]
        )
    append(
        f"tokens to the reference's quality on {os.path.basename(given.model.rstrip('/'))}: {label}",
        f"Reference: `--preset evopress`, 30 generations. Both: {given.offspring} offspring, survivors "
        f"{given.survivors}, tokens {given.tokens}, ties fused for bits. Under test: "
        f"{' '.join(given.option) or 'the defaults'}, stopped after {given.share} of the reference's tokens. Held-out: "
        f"{given.judge_tokens:,} tokens of {os.path.basename(given.judge_data)}, of them {given.path_tokens:,} to see "
        f"when the reference's KL was reached; accepted children are compared again on {given.accept_tokens:,} search "
        "tokens.\n\n"
        + table(["", "tokens to reach it (median)", "lower KL at the end", "false accepts"], summary)
        + "\n\n"
        + table(
            ["", "seed", "reference's KL", "KL", "difference (95%)", "tokens", "reached it after", "false accepts"],
            lines,
        ),
    )


if __name__ == "__main__":
    main()
