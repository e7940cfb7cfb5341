"""Looking for the worst: the same search with the opposite goal.

All generations are measured on the whole search text, so that their losses are of the same tokens.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from searches import WITHOUT_STORE, Material, searching_with

from evoray.cluster import LocalPool
from evoray.run.journal import Journal
from evoray.run.plan import plan_search
from evoray.run.search import search
from evoray.space import Genotype
from evoray.store import Location

WHOLE = 1024
"""Tokens of the search text, and of the last rung."""

BUDGETS: dict[str, dict[str, Any]] = {
    # A whole number of bits is a start by itself; the others race for theirs.
    "bits": {"target_bits": 3},
    "drops": WITHOUT_STORE | {"drop_blocks": 2},
    "perplexity": {"fitness": "perplexity", "target_bits": 3},
}


def run_of(deep: Material, folder: Path, budget: str, **changes: Any) -> Journal:
    settings = deep.settings(
        folder, search_tokens=WHOLE, tokens=(64, WHOLE), initial_tokens=WHOLE, **BUDGETS[budget] | changes
    )
    plan = plan_search(settings)
    assert plan.ground.text.tokens == WHOLE
    with LocalPool(plan.ground.spec) as pool, searching_with(pool):
        assert search(settings).best["fitness"]["inverted"] is settings.invert
    return Journal(Location.parse(str(folder)))


def measured(journal: Journal, number: int, rung: int) -> dict[Genotype, float]:
    """Sums of the losses that a generation was measured with."""
    losses: dict[Genotype, float] = {}
    for entry in journal.evaluations(journal.rows[number]).to_pylist():
        if entry["rung"] == rung:
            genotype = tuple(entry["genotype"])
            losses[genotype] = losses.get(genotype, 0.0) + sum(entry["losses"])
    return losses


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_worst_rises_and_the_best_falls(deep: Material, tmp_path: Path, budget: str) -> None:
    best = run_of(deep, tmp_path / "best", budget, initial_candidates=2)
    worst = run_of(deep, tmp_path / "worst", budget, initial_candidates=2, invert=True)
    for journal, sign in ((best, 1), (worst, -1)):
        for row in journal.rows:
            assert row.fitness > 0
            if row.parent_fitness is not None:
                # Measured in the same passes.
                assert sign * row.fitness <= sign * row.parent_fitness
                assert row.accepted == (row.fitness != row.parent_fitness)
        for before, after in pairwise(journal.rows):
            # The same tokens in other passes: equal but for rounding.
            assert after.parent_fitness == pytest.approx(before.fitness, rel=1e-5)
        first, last = journal.rows[0], journal.rows[-1]
        start = first.fitness if first.parent_fitness is None else first.parent_fitness
        assert sign * (start - last.fitness) > 1e-3 * start


@pytest.mark.parametrize("budget", ["bits", "drops"])
def test_both_race_the_same_first_candidates_with_opposite_ends(deep: Material, tmp_path: Path, budget: str) -> None:
    best = run_of(deep, tmp_path / "best", budget, generations=1)
    worst = run_of(deep, tmp_path / "worst", budget, generations=1, invert=True)
    losses = measured(best, 0, 0)
    assert len(losses) >= 6
    assert measured(worst, 0, 0) == losses
    order = sorted(losses, key=lambda genotype: losses[genotype])
    for journal, ranked in ((best, order), (worst, order[::-1])):
        assert journal.rows[0].generation == (1 if budget == "bits" else 0)
        if budget == "drops":
            assert journal.rows[0].winner == ranked[0]
        else:
            assert set(ranked[:2]) <= set(measured(journal, 0, 1))
            assert len(measured(journal, 0, 1)) == 3
