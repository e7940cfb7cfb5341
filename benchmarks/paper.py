"""Every kind of search against its baselines, on one model: sparsity, dropped blocks and sublayers, bitwidths.

python -m benchmarks.paper --model FOLDER --data TEXT.txt --judge-data HELD_OUT.txt [--rows bits-3 sparsity-0.5 ...]

Every row is a budget. Its search and its baselines stand on the same space and texts, and all they choose is judged
in one pass on held-out text, with paired intervals over blocks. Rows that are finished are kept in the folder.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import evoray
from benchmarks.log import append, table
from benchmarks.trials import add_flags, built_store, folder_of, trial
from evoray.cluster import open_pool
from evoray.errors import UserError
from evoray.run.best import judged_candidates
from evoray.run.ground import plan_ground
from evoray.run.problem import find_by_baseline
from evoray.run.progress import RichProgress
from evoray.settings import BaselineSettings

ROWS: dict[str, dict[str, Any]] = {
    **{f"sparsity-{share}": {"store": "sparsity", "target_sparsity": share} for share in (0.5, 0.6, 0.7)},
    "blocks-3": {"drop_blocks": 3, "drop_entire_block": True},
    "attn-3-mlp-3": {"drop_blocks": 3},
    **{f"bits-{bits}": {"store": "quantization", "target_bits": bits} for bits in (2.25, 2.5, 3, 4)},
}
OF_DROPPING = {
    # Few configurations, whose losses are close: fewer generations, more tokens in the last rung.
    "generations": 16,
    "offspring": 16,
    "survivors": "3,1",
    "tokens": "1024,16384",
    "initial_candidates": 64,
    "initial_tokens": 2048,
}
"""What searches that only drop take instead of the flags."""

OF_LEVELS = ("uniform", "random", "dp", "owl")
OF_DEPTH = (
    "uniform",
    "random",
    "cosine",
    "cosine-window",
    "norm-ratio",
    "l2",
    "l2-normalised",
    "perplexity",
    "kl",
    "sequential",
)


def measure(name: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row: searches, lets every baseline choose, and judges all together."""
    kept = folder / f"{name}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    row = ROWS[name]
    store = row.get("store")
    shared = trial(given, row, given.seed, folder)
    with RichProgress() as progress:
        if store is not None:
            built_store(given, store, folder, progress)
        result = evoray.search(
            run=str(folder / f"run-{name}"),
            # Judged below, with all others.
            judge_tokens=2048,
            progress=progress,
            **{name: getattr(given, name) for name in ("generations", "offspring", "survivors", "tokens")}
            | (OF_DROPPING if store is None else {}),
            **shared,
        )
        settings, ground = plan_ground(
            BaselineSettings(method="uniform", run=str(folder / "unused"), judge_tokens=given.judge_tokens, **shared)
        )
        chosen = {"found": ground.space.genotype(result.configuration)}
        tokens = {"found": result.best["candidate_tokens"]}
        with open_pool(ground.spec, workers=given.workers, memory=ground.memory) as pool:
            for baseline in OF_LEVELS if store else OF_DEPTH:
                try:
                    choice = find_by_baseline(
                        baseline, ground, settings, pool, progress, tokens=given.baseline_tokens, candidates=64
                    )
                except UserError as error:
                    progress.note(f"{name}: {error}")
                    continue
                chosen[baseline], tokens[baseline] = choice.genotype, choice.candidate_tokens
            judged = judged_candidates(ground, settings, pool, chosen, progress)
    judged |= {"candidate_tokens": tokens, "seconds": result.best["seconds"]}
    kept.write_text(json.dumps(judged, indent=1))
    return judged


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, judge_tokens=65536)
    parser.set_defaults(search_tokens=131072)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--generations", type=int, default=24)
    parser.add_argument("--offspring", type=int, default=24)
    parser.add_argument("--survivors", default="6,2,1")
    parser.add_argument("--tokens", default="512,2048,8192")
    parser.add_argument("--baseline-tokens", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = folder_of(given)
    rows = []
    for name in given.rows:
        judged = measure(name, given, folder)
        for candidate, figures in judged["candidates"].items():
            better = f"{-figures['found_minus_this_kl']:.5f} ± {figures['interval_95']:.5f}"
            rows.append(
                [
                    name,
                    candidate,
                    f"{figures['bits']:.3f}",
                    f"{figures['sparsity']:.4f}",
                    f"{figures['kl']:.5f}",
                    "" if candidate == "found" else better,
                    f"{figures['perplexity']:.3f}",
                    f"{judged['candidate_tokens'][candidate]:,}",
                ]
            )
    append(
        f"every kind of search on {os.path.basename(given.model.rstrip('/'))}",
        f"{given.generations} generations, {given.offspring} offspring, survivors {given.survivors}, tokens "
        f"{given.tokens} (of dropping: {_named(OF_DROPPING)}); baselines measure on {given.baseline_tokens:,} tokens, "
        f"random takes the best of 64; seed {given.seed}; {given.workers} workers of one thread; judged on "
        f"{judged['tokens']:,} tokens of {os.path.basename(given.judge_data)}. GPTQ levels 2 to 6 in groups of 64, "
        "tied; SparseGPT levels 0.3 to 0.9, untied; `uniform` of dropping spreads it evenly.\n\n"
        + table(
            ["budget", "", "bits", "gone", "held-out KL", "found is better by (95%)", "perplexity", "candidate tokens"],
            rows,
        ),
    )


if __name__ == "__main__":
    main()
