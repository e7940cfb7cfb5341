"""The driver's loop: losses that are no numbers rank last, and a person is told what happens."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from searches import Material, searching_with

from evoray.cluster import LocalPool
from evoray.evaluator import Work
from evoray.fitness import Fitness
from evoray.run.journal import GenerationRow, Journal
from evoray.run.plan import plan_search
from evoray.run.progress import Progress
from evoray.run.search import search
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
    space = plan_search(settings).space
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


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.generations: list[int] = []
        self.shares: dict[str, list[float]] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str) -> Callable[[float], None]:
        return self.shares.setdefault(name, []).append

    def generation(self, row: GenerationRow, generations: int) -> None:
        self.generations.append(row.generation)


def test_progress_is_told(material: Material, pool: LocalPool, tmp_path: Path) -> None:
    told = Told()
    search(material.settings(tmp_path, generations=2), told)
    assert told.generations == [0, 1, 2]
    assert {name: shares[-1] for name, shares in told.shares.items()} == {"teacher": 1.0, "judging": 1.0}
    again = Told()
    search(material.settings(tmp_path, generations=3), again)
    assert again.notes == [f"going on with {tmp_path} after generation 2"]
    assert again.generations == [3]


def test_best_is_what_the_journal_says_after_every_generation(
    material: Material, pool: LocalPool, tmp_path: Path
) -> None:
    space = plan_search(material.settings(tmp_path)).space

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
    assert set(found.best["held_out"]["candidates"]) == {"found", "start", "uniform"}
