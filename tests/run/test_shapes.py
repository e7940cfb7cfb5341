"""Shapes of passes are found out once, recorded, kept by whoever goes on, and shrink for all at once or for nobody."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searches import Material, bits_of, searching_with

from evoray.cluster import LocalPool
from evoray.errors import DeviceFullError, UserError
from evoray.evaluator import Evaluator, Work
from evoray.fitness import Fitness
from evoray.run.journal import Journal
from evoray.run.search import search
from evoray.run.shapes import SHAPES, Shapes, ShapesRecord, probed_shapes
from evoray.settings import SearchSettings
from evoray.store import Location
from evoray.tokens import TokenText


class Probed:
    """A pool whose worker takes so many bytes for each token of a pass and row of the head."""

    def __init__(self, each: float, room: float = np.inf) -> None:
        self.bytes, self.room = each, room
        self.asked: list[Work] = []

    def each(self, works: list[Work], method: str, fitness: Fitness) -> list[float]:
        assert (method, len(works)) == ("pass_bytes", 1)
        self.asked += works
        taken = self.bytes * works[0].ids.size * works[0].vocabulary_chunk
        if taken > self.room:
            raise DeviceFullError("full")
        return [taken]


def a_text(*lengths: int) -> TokenText:
    blocks = tuple(np.arange(length, dtype=np.int32) for length in lengths)
    return TokenText(blocks, tuple(map(str, range(len(blocks)))), max(lengths))


def settings(**changes: Any) -> SearchSettings:
    usual = {"model": "m", "store": "s", "run": "r", "data": "d", "target_bits": 3.0}
    return SearchSettings(**usual | {"work_memory": 1000} | changes)


MANY = a_text(*[100] * 30, 64, 7)


@pytest.mark.parametrize(
    ("each", "given", "wanted"),
    [
        (0.0, {}, (2048, 16384)),
        (500 / 1000 / 16384, {}, (1024, 16384)),
        (500 / 200 / 16384, {}, (256, 16384)),
        (1000 / 100 / 256, {}, (100, 256)),
        (1000 / 100 / 1024, {}, (100, 512)),
        (500 / 400 / 16384, {"tokens_per_pass": 400}, (400, 16384)),
        (500 / 400 / 2048, {"tokens_per_pass": 400}, (400, 2048)),
        (500 / 200 / 1024, {"vocabulary_chunk": 1024}, (256, 1024)),
        (1e9, {"tokens_per_pass": 400, "vocabulary_chunk": 1024}, (400, 1024)),
    ],
)
def test_a_pass_takes_half_of_the_memory_and_the_smallest_all(each, given, wanted):
    pool = Probed(each)
    assert probed_shapes(pool, MANY, settings(**given)) == Shapes(*wanted)
    if len(given) == 2:
        assert not pool.asked
    else:
        # As many of the longest blocks as go into a pass, unpadded.
        last = pool.asked[-1]
        assert last.ids.shape == (max(1, wanted[0] // 100), 100)
        assert set(last.cuts) == {100}


def test_a_device_with_less_room_than_the_limit_is_heeded():
    assert probed_shapes(Probed(1 / 16384, room=300), MANY, settings()) == Shapes(256, 16384)


@pytest.mark.parametrize(
    "given",
    [{}, {"tokens_per_pass": 100}, {"tokens_per_pass": 200, "vocabulary_chunk": None}, {"vocabulary_chunk": 256}],
)
def test_a_block_that_does_not_fit_is_told_with_value_limit_and_remedy(given):
    with pytest.raises(UserError, match=r"a pass of \d+ tokens takes .* and --work-memory is .* raise it, or lower"):
        probed_shapes(Probed(1.0), MANY, settings(**given))
    with pytest.raises(UserError, match="takes more than there is on its device beside"):
        probed_shapes(Probed(1.0, room=0), MANY, settings(**given))


# In a search


@pytest.fixture(scope="module")
def pool(material: Material) -> Iterator[LocalPool]:
    with LocalPool(material.spec) as pool, searching_with(pool):
        yield pool


def test_a_run_keeps_the_shapes_it_was_begun_with(pool: LocalPool, material: Material, tmp_path: Path) -> None:
    open_shapes = {"tokens_per_pass": None}
    search(material.settings(tmp_path / "whole", **open_shapes))
    recorded = json.loads((tmp_path / "whole" / SHAPES).read_text())
    assert [(entry["generation"], entry["tokens_per_pass"]) for entry in recorded] == [(0, 2048)]
    # Half of the work goes on where memory would allow less: 40 kB are not enough for what was begun.
    search(material.settings(tmp_path / "cut", generations=2, **open_shapes))
    search(material.settings(tmp_path / "cut", work_memory=40_000, **open_shapes))
    whole, cut = bits_of(tmp_path / "whole"), bits_of(tmp_path / "cut")
    assert whole["generations"] == cut["generations"]
    assert "--tokens-per-pass 2048 --vocabulary-chunk 16384" in whole["best"]["command"]


def test_less_memory_makes_smaller_passes(pool: LocalPool, material: Material, tmp_path: Path) -> None:
    search(material.settings(tmp_path, tokens_per_pass=None, work_memory=800_000, generations=1))
    shapes = ShapesRecord(Location.parse(tmp_path)).last
    assert shapes is not None
    assert 64 <= shapes.tokens_per_pass < 2048
    padded = [
        len(batch["blocks"]) * batch["padded"]
        for row in Journal(Location.parse(tmp_path)).rows
        for batch in Journal(Location.parse(tmp_path)).batches(row.generation).to_pylist()
    ]
    assert max(padded) <= shapes.tokens_per_pass


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """While it holds [losses calls from now, tokens], passes of more tokens have no room after so many calls."""
    when: list[int] = []
    measure = Evaluator.losses

    def scarce(self: Evaluator, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        if when:
            when[0] -= 1
            if when[0] < 0 and work.ids.size > when[1]:
                raise DeviceFullError("cpu has no room for a pass (all is full); lower --tokens-per-pass")
        return measure(self, rows_NL, work, fitness)

    monkeypatch.setattr(Evaluator, "losses", scarce)
    return when


@pytest.mark.parametrize("rules", [{}, {"race": "sequential", "proposals": "learned"}])
def test_a_generation_whose_passes_have_no_room_is_done_again_in_smaller_ones(
    pool: LocalPool, material: Material, tmp_path: Path, full: list[int], rules: dict[str, Any]
) -> None:
    search(material.settings(tmp_path / "whole", **rules))
    full[:] = [9, 64]
    search(material.settings(tmp_path / "run", **rules))
    recorded = json.loads((tmp_path / "run" / SHAPES).read_text())
    assert [entry["tokens_per_pass"] for entry in recorded] == [128, 64]
    assert "all is full" in recorded[1]["reason"]
    at = recorded[1]["generation"]
    assert 0 < at < 4
    rows, whole = (bits_of(tmp_path / name)["generations"] for name in ("run", "whole"))
    assert rows[:at] == whole[:at]
    for row in rows:
        sizes = {len(batch["blocks"]) * batch["padded"] for batch in row["batches"]}
        assert max(sizes) <= (128 if row["generation"] < at else 64)
    # Who goes on, goes on in the smaller ones, whether or not there is room again.
    full.clear()
    full[:] = [9, 64]
    search(material.settings(tmp_path / "cut", generations=at, **rules))
    full.clear()
    search(material.settings(tmp_path / "cut", **rules))
    assert bits_of(tmp_path / "cut")["generations"] == rows


def test_where_nothing_can_shrink_the_error_stands(
    pool: LocalPool, material: Material, tmp_path: Path, full: list[int]
) -> None:
    full[:] = [9, 0]
    with pytest.raises(DeviceFullError, match="lower --tokens-per-pass"):
        search(material.settings(tmp_path))
    recorded = json.loads((tmp_path / SHAPES).read_text())
    assert (recorded[-1]["tokens_per_pass"], recorded[-1]["vocabulary_chunk"]) == (64, 256)


@pytest.mark.parametrize("damage", ["", "{nope", "3", '[{"generation": 0}]', '[{"tokens_per_pass": "x"}]'])
def test_a_damaged_record_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / SHAPES).write_text(damage)
    with pytest.raises(UserError, match=r"shapes\.json is damaged; give another run directory"):
        ShapesRecord(Location.parse(tmp_path))
