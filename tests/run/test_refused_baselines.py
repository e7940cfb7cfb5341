"""Baselines that do not apply are refused in one line, before a worker starts: as a verb, and as a search's start."""

from pathlib import Path
from typing import Any

import pytest
from searches import WITHOUT_STORE, Material, searching_with

from evoray.baselines import BASELINES
from evoray.errors import UserError
from evoray.run.baseline import run_baseline
from evoray.run.plan import plan_search
from evoray.settings import BaselineSettings

LEVELS: dict[str, Any] = {"target_bits": 2.8}
SUBLAYERS: dict[str, Any] = WITHOUT_STORE | {"drop_blocks": 2}
BOTH: dict[str, Any] = {"target_bits": 2.3, "allow_drops": True}

REFUSED = [
    *((name, LEVELS, "scores sublayers or blocks: give --drop-blocks, and no --store") for name in BASELINES
      if name not in ("uniform", "random", "dp", "owl", "greedy", "brute-force", "cosine-window", "sequential")),
    ("cosine-window", LEVELS, "cosine-window scores sublayers or blocks"),
    ("sequential", BOTH, "sequential scores sublayers or blocks"),
    ("brute-force", LEVELS, "brute-force would go through 531441 genotypes and may go through 20000"),
    ("cosine-window", SUBLAYERS, "cosine-window drops consecutive blocks: give --drop-entire-block"),
    ("dp", SUBLAYERS, "dp needs layer errors, and a search that only drops has none"),
    ("owl", SUBLAYERS, "owl chooses levels and drops nothing"),
    ("owl", BOTH, "owl chooses levels and drops nothing"),
    ("greedy", SUBLAYERS, "greedy takes levels down; in a search that only drops take sequential"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "budget", "said"), REFUSED)
def test_what_does_not_apply_takes_no_worker(
    material: Material, tmp_path: Path, method: str, budget: dict[str, Any], said: str
) -> None:
    search = material.settings(tmp_path / "run", init=method, **budget)
    values = search.model_dump(include=set(BaselineSettings.model_fields) - {"tokens"})
    with searching_with(None), pytest.raises(UserError) as caught:
        run_baseline(BaselineSettings(**values, method=method, tokens=128))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError) as again:
        plan_search(search)
    assert str(again.value) == str(caught.value)


def test_candidates_are_counted_before_a_worker_starts(material: Material, tmp_path: Path) -> None:
    values = material.settings(tmp_path, **SUBLAYERS).model_dump(
        include=set(BaselineSettings.model_fields) - {"tokens"}
    )
    with searching_with(None), pytest.raises(UserError, match="through 9 genotypes and may go through 8: raise"):
        run_baseline(BaselineSettings(**values, method="brute-force", tokens=128, candidates=8))


@pytest.mark.parametrize("method", ["uniform", "random", "dp", "owl", "greedy"])
def test_what_applies_is_planned_without_a_worker(material: Material, tmp_path: Path, method: str) -> None:
    with searching_with(None):
        plan = plan_search(material.settings(tmp_path, init=method, **LEVELS))
    assert (plan.init, plan.start) == (method, None)
