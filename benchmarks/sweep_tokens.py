"""A sweep of budgets against a search of its own for each: how many candidate tokens the same quality takes.

python -m benchmarks.sweep_tokens --model FOLDER --data TEXT.txt --judge-data HELD_OUT.txt [--bits 2.25,2.5,3,3.5,4]
    [--generations 7] [--seeded-generations 2]

The sweep is counted whole. A search of its own is counted until its parent has the held-out KL of what the sweep found
for its budget, both on the same tokens, as if it knew when to stop; where it never has, all of its tokens are counted,
which is too few. Searches that are finished are kept in the folder and not made again.
"""

import argparse
import os
from typing import Any

import evoray
from benchmarks.log import append, table
from benchmarks.trials import ROWS, SCHEDULE, add_flags, built_store, folder_of, kl_of, path_of, trial
from evoray.run.progress import RichProgress


def measure(given: argparse.Namespace) -> list[list[Any]]:
    """A line for each budget, dearest first."""
    folder = folder_of(given)
    shared = {**trial(given, ROWS["bits-3"], given.seed, folder), **SCHEDULE}
    options = dict(option.split("=", 1) for option in given.option)
    label = f"{given.generations}-{given.seeded_generations}" + "".join(f"-{option}" for option in given.option)
    lines = []
    with RichProgress() as progress:
        built_store(given, "quantization", folder, progress)
        swept = evoray.sweep(
            run=str(folder / f"sweep-{given.seed}-{label}"),
            judge_tokens=2048,
            progress=progress,
            **{**shared, "target_bits": given.bits, **options},
            generations=given.generations,
            seeded_generations=given.seeded_generations,
        )
        for bits, result in swept.results.items():
            own = evoray.search(
                run=str(folder / f"own-{given.seed}-{bits:g}"),
                judge_tokens=2048,
                progress=progress,
                **{**shared, "target_bits": bits},
                generations=1000,
                max_tokens=given.own_tokens,
            )
            there, path = path_of(result.run), path_of(own.run)
            kl = kl_of(
                [there[-1][1], *(parent for _, parent in path)], {**shared, "target_bits": bits}, given.judge_tokens
            )
            level = kl[there[-1][1]]
            reached = next((used for used, parent in path if kl[parent] <= level), None)
            lines.append([bits, there[-1][0], level, reached or path[-1][0], kl[path[-1][1]], reached is None])
    return lines


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, judge_tokens=65536)
    parser.add_argument("--bits", default="2.25,2.5,3,3.5,4")
    parser.add_argument("--generations", type=int, default=7, help="of the budget that nothing seeds")
    parser.add_argument("--seeded-generations", type=int, default=2)
    parser.add_argument("--own-tokens", type=int, default=737280, help="after which a search of its own stops")
    parser.add_argument("--option", nargs="*", default=[], help="of the sweep, such as survey=0")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    lines = measure(given)
    whole, own = sum(line[1] for line in lines), sum(line[3] for line in lines)
    append(
        f"a sweep against searches of their own on {os.path.basename(given.model.rstrip('/'))}",
        f"{given.generations} generations of the first budget, {given.seeded_generations} of each that another seeds"
        f"{', ' + ' '.join(given.option) if given.option else ''}; {SCHEDULE['offspring']} offspring, survivors "
        f"{SCHEDULE['survivors']}, tokens {SCHEDULE['tokens']}, ties fused, seed {given.seed}. Held-out KL on "
        f"{given.judge_tokens:,} tokens of {os.path.basename(given.judge_data)}. Tokens of the sweep: {whole:,}, of "
        f"the searches {own:,}: {whole / own:.3f} (goal <= 0.5).\n\n"
        + table(
            ["bits", "tokens of the sweep", "its KL", "tokens of a search of its own to that KL", "its KL at the end"],
            [
                [bits, f"{used:,}", f"{level:.6f}", f"{'more than ' * never}{reached:,}", f"{end:.6f}"]
                for bits, used, level, reached, end, never in lines
            ],
        ),
    )


if __name__ == "__main__":
    main()
