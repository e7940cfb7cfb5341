"""The driver's loop: losses that are no numbers rank last, and a person is told what happens."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from searches import Material, Told, searching_with

from evoray.cluster import LocalPool, WorkerSpec
from evoray.errors import UserError
from evoray.evaluator import Work
from evoray.fitness import Fitness
from evoray.model import checkpoint_facts
from evoray.run.evaluate import evaluate
from evoray.run.journal import GenerationRow, Journal
from evoray.run.judge import judge
from evoray.run.plan import plan_search
from evoray.run.search import search
from evoray.run.shapes import Shapes
from evoray.run.workers import located, worker_spec
from evoray.settings import EvalSettings
from evoray.store import Location


@pytest.fixture(scope="module")
def pool(material: Material) -> Iterator[LocalPool]:
    with LocalPool(material.spec) as pool, searching_with(pool):
        yield pool


@pytest.fixture
def breaks(pool: LocalPool, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[np.ndarray], bool], float], None]:
    """Makes the worker answer with a value instead of the losses of some rows."""
    losses = pool._worker.losses

    def give(broken: Callable[[np.ndarray], bool], value: float) -> None:
        def answered(rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
            found = losses(rows_NL, work, fitness)
            # One block is enough to spoil a candidate.
            found[[broken(row) for row in rows_NL], 0] = value
            return found

        monkeypatch.setattr(pool._worker, "losses", answered)

    return give


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_that_are_no_numbers_rank_last(
    material: Material, breaks: Callable[..., None], tmp_path: Path, value: float
) -> None:
    def broken(row: np.ndarray) -> bool:
        return int((row == 2).sum()) % 2 == 0

    breaks(broken, value)
    settings = material.settings(tmp_path, survivors=(4, 1), generations=5)
    found = search(settings)
    space = plan_search(settings).ground.space
    journal = Journal(Location.parse(str(tmp_path)))
    spoiled = 0
    for row in journal.rows:
        rungs: dict[int, set[tuple[int, ...]]] = {}
        for entry in journal.evaluations(row).to_pylist():
            genotype = tuple(entry["genotype"])
            rungs.setdefault(entry["rung"], set()).add(genotype)
            if entry["batch"] == 0 and broken(space.rows([genotype])[0]):
                spoiled += 1
                assert not math.isfinite(entry["losses"][0])
                assert row.generation == 0 or entry["rung"] == 0, "went on to another rung"
        assert math.isfinite(row.fitness)
        assert not broken(space.rows([row.winner])[0])
    assert spoiled > 3
    assert math.isfinite(found.best["fitness"]["nats_per_token"])


def test_a_search_in_which_nothing_can_be_measured_ends(
    material: Material, breaks: Callable[..., None], tmp_path: Path
) -> None:
    breaks(lambda row: True, math.nan)
    found = search(material.settings(tmp_path))
    rows = Journal(Location.parse(str(tmp_path))).rows
    assert [row.generation for row in rows] == [0, 1, 2, 3, 4]
    assert all(math.isinf(row.fitness) for row in rows)
    assert len({row.winner for row in rows}) == 1
    assert not any(row.accepted for row in rows[1:])
    assert found.configuration
    assert math.isinf(json.loads((tmp_path / "best.json").read_text())["held_out"]["candidates"]["found"]["kl"])


@pytest.mark.parametrize("fitness", ["kl-topk", "kl-topk-renormalised"])
def test_top_tokens_decide_a_search_and_are_part_of_what_it_is(
    material: Material, tmp_path: Path, fitness: str
) -> None:
    wanted = {"fitness": fitness, "top_k": 3, "generations": 2}
    with LocalPool(dataclasses.replace(material.spec, top_k=3)) as own, searching_with(own):
        best = search(material.settings(tmp_path, **wanted)).best
        assert best["fitness"]["name"] == fitness
        assert best["device"]["top_k"] == 3
        rows = Journal(Location.parse(str(tmp_path))).rows
        assert [row.generation for row in rows] == [0, 1, 2]
        assert all(0 < row.fitness <= row.parent_fitness for row in rows[1:])
        # Judged over the whole vocabulary, whatever the search looked at.
        plan = plan_search(material.settings(tmp_path, **wanted))
        judged = judge(own, plan.ground.space.rows([rows[-1].winner]), plan.ground.judge_text, shapes=Shapes(128))
        assert best["held_out"]["candidates"]["found"]["kl"] == judged[0].kl
        with pytest.raises(UserError, match="top_k: 3 there, 4 now"):
            search(material.settings(tmp_path, **wanted | {"top_k": 4}))


def test_progress_is_told(material: Material, pool: LocalPool, tmp_path: Path) -> None:
    told = Told()
    search(material.settings(tmp_path, generations=2), told)
    assert told.generations == [0, 1, 2]
    assert {name: shares[-1] for name, shares in told.shares.items()} == {"teacher": 1.0, "judging": 1.0}
    begin = ["reading the model's facts", "reading the search text", "reading the judging text", "loading the model"]
    rungs = ["generation 0, rung 1", *(f"generation {number}, rung {rung}" for number in (1, 2) for rung in (1, 2))]
    assert list(told.steps) == [*begin, *rungs]
    for rung in rungs:
        assert len(told.steps[rung]) > 1
        assert told.steps[rung] == sorted(told.steps[rung])
        assert told.steps[rung][-1] == 1.0
    assert told.notes == []
    again = Told()
    search(material.settings(tmp_path, generations=3, workers=2), again)
    assert again.notes == [f"going on with {tmp_path} after generation 2", "starting workers"]
    assert again.generations == [3]


def test_relative_paths_are_made_absolute_once(
    material: Material, pool: LocalPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(material.model).parent)
    settings = material.settings(tmp_path / "run", generations=0, model="model", store="./store", data="text.jsonl")
    spec = plan_search(settings).ground.spec
    assert (spec.model, spec.store) == (material.model, material.store)
    best = search(settings).best
    assert (best["model"], best["store"]) == (material.model, material.store)
    monkeypatch.chdir(tmp_path)
    with LocalPool(material.spec) as own, pytest.MonkeyPatch.context() as patch:
        specs = list[WorkerSpec]()
        patch.setattr("evoray.run.workers.open_pool", lambda spec, **_: specs.append(spec) or own)
        evaluate(EvalSettings(configuration="run", data=material.text, eval_tokens=128, sequence_length=64, workers=0))
    assert [(spec.model, spec.store) for spec in specs] == [(material.model, material.store)]


def test_names_stay_names() -> None:
    uri = "s3://bucket/store?region=us-east-1"  # with a region, so that nobody is asked for it
    for model, store in [("embedded", uri), ("someone/llama", None)]:
        found = located(EvalSettings(model=model, store=store, data="d"))
        assert (found.model, found.store) == (model, store)


def test_workers_load_the_commit_that_the_driver_saw(material: Material) -> None:
    facts = dataclasses.replace(checkpoint_facts(material.model), model="someone/llama", revision="a" * 40)
    settings = EvalSettings(model="someone/llama", data="d", revision="main")
    assert worker_spec(settings, facts, None).revision == "a" * 40
    assert worker_spec(settings, dataclasses.replace(facts, revision=None), None).revision == "main"


def test_best_is_what_the_journal_says_after_every_generation(
    material: Material, pool: LocalPool, tmp_path: Path
) -> None:
    space = plan_search(material.settings(tmp_path)).ground.space

    class Checks(Told):
        def generation(self, row: GenerationRow, generations: int) -> None:
            super().generation(row, generations)
            best = json.loads((tmp_path / "best.json").read_text())
            assert best["configuration"] == space.configuration(row.winner)
            assert (best["generation"], best["fitness"]["nats_per_token"]) == (row.generation, row.fitness)
            assert best["bits"] == row.bits == space.summary(row.winner).bits
            assert "held_out" not in best

    checks = Checks()
    found = search(material.settings(tmp_path), checks)
    assert checks.generations == [0, 1, 2, 3, 4]
    assert set(found.best["held_out"]["candidates"]) == {"found", "start", "uniform", "dp"}
