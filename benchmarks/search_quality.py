"""Is the found configuration better than uniform, and at what price? Build, search and judge at several budgets.

python -m benchmarks.search_quality --model FOLDER --data TEXT.txt --judge-data HELD_OUT.txt
"""

import argparse
import os
import tempfile
import time

import evoray
from benchmarks.log import append, table
from evoray.run.progress import RichProgress


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="text for Hessians and for the search")
    parser.add_argument("--judge-data", required=True, help="held-out text")
    parser.add_argument("--targets", type=float, nargs="+", default=[3.0, 2.5], help="average bits")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--offspring", type=int, default=32)
    parser.add_argument("--survivors", default="8,2,1")
    parser.add_argument("--tokens", default="1024,4096,16384")
    parser.add_argument("--hessian-tokens", type=int, default=65536)
    parser.add_argument("--search-tokens", type=int, default=262144)
    parser.add_argument("--judge-tokens", type=int, default=131072)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="where store and runs go; kept when given")
    given = parser.parse_args()
    folder = given.folder or tempfile.mkdtemp(prefix="evoray-quality-")
    store = os.path.join(folder, "store")
    began = time.monotonic()
    with RichProgress() as progress:
        evoray.build(
            model=given.model,
            data=given.data,
            store=store,
            group_size=given.group_size,
            sequence_length=given.sequence_length,
            hessian_tokens=given.hessian_tokens,
            progress=progress,
        )
    built = time.monotonic() - began
    rows = []
    for target in given.targets:
        with RichProgress() as progress:
            found = evoray.search(
                model=given.model,
                data=given.data,
                judge_data=given.judge_data,
                store=store,
                run=os.path.join(folder, f"run-{target}-{given.seed}"),
                target_bits=target,
                sequence_length=given.sequence_length,
                generations=given.generations,
                offspring=given.offspring,
                survivors=given.survivors,
                tokens=given.tokens,
                search_tokens=given.search_tokens,
                judge_tokens=given.judge_tokens,
                workers=given.workers,
                seed=given.seed,
                progress=progress,
            )
        best, candidates = found.best, found.best["held_out"]["candidates"]
        for name in ("uniform", "start", "found"):
            row = candidates[name]
            searched = name == "found"
            rows.append(
                [
                    target,
                    name,
                    f"{row['bits']:.4f}",
                    f"{row['bpw']:.4f}",
                    f"{row['kl']:.5f}",
                    "" if searched else f"{-row['found_minus_this_kl']:.5f} ± {row['interval_95']:.5f}",
                    f"{row['perplexity']:.3f}",
                    f"{best['candidate_tokens']:,}" if searched else "",
                    f"{best['seconds']:.0f}" if searched else "",
                ]
            )
    held_out = best["held_out"]["tokens"]
    append(
        f"search quality on {os.path.basename(given.model.rstrip('/'))}",
        f"GPTQ, symmetric, levels 2 to 6, groups of {given.group_size}, built in {built:.0f} s; {given.generations} "
        f"generations, {given.offspring} offspring, survivors {given.survivors}, tokens {given.tokens}, ties as "
        f"default, seed {given.seed}; {given.workers} workers of one thread; held-out: {held_out:,} tokens of "
        f"{os.path.basename(given.judge_data)}. `start` is uniform where the target is a level, else the best of 32 "
        "random ones.\n\n"
        + table(
            [
                "target",
                "",
                "bits",
                "bpw",
                "held-out KL",
                "found is better by (95%)",
                "perplexity",
                "candidate tokens",
                "seconds",
            ],
            rows,
        ),
    )


if __name__ == "__main__":
    main()
