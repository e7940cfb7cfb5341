"""What a search has to beat. Each gives a genotype of the same space, within the same budget.

Holds:
    problem: `Problem`, `Baseline`: what a baseline is given, and what it is
    uniform: `uniform`: one level for every gene, drops spread evenly
    random: the best of random genotypes
    dp: the least sum of layer errors, exactly
    owl: levels by the outliers of a block
    stepping: greedy steps down; units dropped one by one
    scoring: units dropped by a score of each, or as a window; dropping: `drop_lowest`
    brute_force: all that use the budget

`BASELINES` lists all by name; `find_baseline` finds one. A new one is a file here, and a line of the list.
"""

import difflib

from evoray.baselines.brute_force import brute_force
from evoray.baselines.dp import dp
from evoray.baselines.owl import owl
from evoray.baselines.problem import Baseline, Problem
from evoray.baselines.random import best_random
from evoray.baselines.scoring import by_influence, by_loss, by_window
from evoray.baselines.stepping import greedy, sequential
from evoray.baselines.uniform import uniform
from evoray.errors import UserError

__all__ = ["BASELINES", "Baseline", "Problem", "find_baseline", "uniform"]

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("uniform", lambda problem: uniform(problem.space)),
        Baseline("random", best_random),
        Baseline("dp", dp),
        Baseline("owl", owl),
        Baseline("greedy", greedy),
        Baseline("cosine", by_influence("cosine")),
        Baseline("cosine-window", by_window),
        Baseline("norm-ratio", by_influence("norm-ratio")),
        Baseline("perplexity", by_loss("perplexity")),
        Baseline("kl", by_loss("kl")),
        Baseline("l2", by_influence("l2")),
        Baseline("l2-normalised", by_influence("l2-normalised")),
        Baseline("sequential", sequential),
        Baseline("brute-force", brute_force),
    )
}


def find_baseline(name: str) -> Baseline:
    """The baseline of a name.

    Raises:
        UserError: there is none; the message names the nearest and all.
    """
    if name in BASELINES:
        return BASELINES[name]
    near = difflib.get_close_matches(name, BASELINES, n=2)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"there is no baseline {name!r}; {meant}choose {', '.join(BASELINES)}")
