"""Three of the embedded model's eight blocks dropped: brute force finds the optimum, and so does a short search
that begins at the worst.

All 56 choices are measured by a loop of its own: blocks really removed from transformers' model, the KL divergence in
float64 over the whole vocabulary.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searches import searching_with
from transformers import AutoModelForCausalLM

from evoray.cluster import LocalPool
from evoray.embedded import model_path
from evoray.evolve import Purpose, rng
from evoray.run.baseline import run_baseline
from evoray.run.ground import plan_ground
from evoray.run.journal import Journal
from evoray.run.search import search
from evoray.settings import BaselineSettings, SearchSettings
from evoray.store import Location
from evoray.tokens import draw_batches

TOKENS = 1024
"""All of the search text, so that every draw has the same tokens."""

COMMON: dict[str, Any] = {
    "model": "embedded",
    "data": "embedded",
    "drop_blocks": 3,
    "drop_entire_block": True,
    "sequence_length": 128,
    "search_tokens": TOKENS,
    "judge_tokens": 128,
    "tokens_per_pass": 512,
    "workers": 0,
}
CHOICES = list(combinations(range(8), 3))


@pytest.fixture(scope="module")
def divergences() -> dict[tuple[int, ...], float]:
    """Blocks that are gone -> KL divergence to the whole model, nats per token."""
    settings, ground = plan_ground(BaselineSettings(**COMMON, run="unused", method="brute-force", tokens=TOKENS))
    assert ground.text.tokens == TOKENS
    batches = draw_batches(ground.text, TOKENS, rng(settings.seed, 0, Purpose.BASELINE), settings.tokens_per_pass)
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    blocks = list(model.model.layers)

    def logs(row_T: np.ndarray) -> torch.Tensor:
        ids_1T = torch.from_numpy(row_T.astype(np.int64))[None]
        return model(ids_1T, use_cache=False).logits[0].double().log_softmax(-1)

    rows = [row[:cut] for batch in batches for row, cut in zip(batch.ids(ground.text), batch.cuts, strict=True)]
    assert sum(map(len, rows)) == TOKENS
    found = {}
    with torch.no_grad():
        whole = [logs(row_T) for row_T in rows]
        for gone in CHOICES:
            model.model.layers = torch.nn.ModuleList(block for n, block in enumerate(blocks) if n not in gone)
            total = 0.0
            for row_T, teacher_TV in zip(rows, whole, strict=True):
                total += float((teacher_TV.exp() * (teacher_TV - logs(row_T))).sum())
            found[gone] = total / TOKENS
    return found


def dropped(configuration: dict[str, str]) -> tuple[int, ...]:
    return tuple(int(site.removeprefix("model.layers.")) for site, level in configuration.items() if level == "dropped")


def test_brute_force_and_a_short_search_find_the_optimum(
    divergences: dict[tuple[int, ...], float], tmp_path: Path
) -> None:
    assert len(divergences) == len(CHOICES) == 56
    best = min(divergences, key=lambda gone: divergences[gone])
    worst = max(divergences, key=lambda gone: divergences[gone])
    # Clear of the second: far more than rounding.
    assert sorted(divergences.values())[1] - divergences[best] > 1e-4 * divergences[best]
    (tmp_path / "worst.txt").write_text("".join(f"model.layers.{block}: dropped\n" for block in worst))
    settings = BaselineSettings(**COMMON, run=str(tmp_path / "brute"), method="brute-force", tokens=TOKENS)
    _, ground = plan_ground(settings)
    with LocalPool(ground.spec) as pool, searching_with(pool):
        brute = run_baseline(settings)
        assert dropped(brute.configuration) == best
        assert brute.best["candidate_tokens"] == 56 * TOKENS
        found = search(
            SearchSettings(
                **COMMON,
                run=str(tmp_path / "search"),
                init=str(tmp_path / "worst.txt"),
                # All that are in a race are measured on the same tokens, as brute force is.
                race="fixed",
                proposals="mutation",
                generations=12,
                population=2,
                offspring=10,
                survivors=(2,),
                tokens=(TOKENS,),
                initial_candidates=2,
            )
        )
    assert dropped(found.configuration) == best
    assert found.best["fitness"]["nats_per_token"] == pytest.approx(divergences[best], rel=1e-4)
    journal = Journal(Location.parse(str(tmp_path / "search")))
    space = ground.space
    seen: dict[tuple[int, ...], float] = {}
    for row in journal.rows:
        for entry in journal.evaluations(row).to_pylist():
            gone = dropped(space.configuration(entry["genotype"]))
            key = (row.generation, *gone)
            seen[key] = seen.get(key, 0.0) + sum(entry["losses"]) / TOKENS
    # It began at the worst of all, and measured each as the loop does.
    assert (0, *worst) in seen
    assert len({key[1:] for key in seen}) > 20
    for key, loss in seen.items():
        assert loss == pytest.approx(divergences[key[1:]], rel=1e-4)
