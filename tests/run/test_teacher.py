"""The teacher's part of a text: computed once, kept, and never trusted when it isn't what was written."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from searches import Material

from evoray.cluster import LocalPool
from evoray.evaluator import Work
from evoray.fitness import Fitness, TeacherBlock
from evoray.run import teacher
from evoray.run.plan import plan_search
from evoray.run.shapes import Shapes
from evoray.run.teacher import TaughtText, teach_text
from evoray.store import Location
from evoray.tokens import TokenText


class Counting(LocalPool):
    """Counts the shards that it teaches."""

    calls = 0

    def teach(
        self,
        works: Sequence[Work],
        fitness: Fitness | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[list[TeacherBlock]]:
        self.calls += 1
        return super().teach(works, fitness, progress)


@pytest.fixture(scope="module")
def text(material: Material) -> TokenText:
    return plan_search(material.settings("unused")).ground.text


@pytest.fixture(scope="module")
def pool(material: Material) -> Counting:
    return Counting(material.spec)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "SHARD_TOKENS", 500)


def taught(pool: Counting, text: TokenText, folder: Location | None, digest: str = "d") -> tuple[TaughtText, int]:
    """The text, and how many shards were computed for it."""
    before = pool.calls
    found = teach_text(pool, text, shapes=Shapes(128), weights_digest=digest, folder=folder)
    return found, pool.calls - before


def same(mine: TaughtText, theirs: TaughtText) -> bool:
    return len(mine.teacher) == len(theirs.teacher) == len(mine.text.blocks) and all(
        np.array_equal(block.vectors, other.vectors) and np.array_equal(block.scalars, other.scalars)
        for block, other in zip(mine.teacher, theirs.teacher, strict=True)
    )


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_kept_is_not_computed_again(pool: Counting, text: TokenText, tmp_path: Path, remote: bool) -> None:
    folder = Location.inside(pafs.LocalFileSystem(), str(tmp_path), "x://y") if remote else Location.parse(tmp_path)
    plain, shards = taught(pool, text, None)
    assert shards >= 3
    for expected in (shards, 0):
        found, computed = taught(pool, text, folder)
        assert computed == expected
        assert same(found, plain)
    for block, kept in zip(text.blocks, plain.teacher, strict=True):
        assert len(kept.scalars) == len(block)


def test_only_what_is_damaged_or_missing_is_computed_again(pool: Counting, text: TokenText, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    plain, shards = taught(pool, text, folder)
    file = tmp_path / "00001.arrow"
    data = file.read_bytes()
    # Replaced, never written in place: the blocks of `plain` are mapped from these files.
    for damage in (b"", data[:-5], data[:99] + b"\x00\xff" + data[101:], None):
        if damage is None:
            file.unlink()
        else:
            (folder / file.name).write_bytes(damage)
        found, computed = taught(pool, text, folder)
        assert computed == 1
        assert same(found, plain)
        assert file.read_bytes() == data
    for damage in (b"", b"{", b"[]", b'{"key": 1}', json.dumps({"key": "other", "shards": {}}).encode()):
        (folder / "index.json").write_bytes(damage)
        found, computed = taught(pool, text, folder)
        assert computed == shards
        assert same(found, plain)
        assert taught(pool, text, folder)[1] == 0


def test_an_interrupted_pass_goes_on(
    pool: Counting, text: TokenText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Location.parse(tmp_path)
    plain, shards = taught(pool, text, None)
    teach = Counting.teach

    def dies(self: Counting, works: Sequence[Work], fitness: Fitness) -> object:
        if self.calls == began + 2:
            raise KeyboardInterrupt
        return teach(self, works, fitness)

    began = pool.calls
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "teach", dies)
        with pytest.raises(KeyboardInterrupt):
            taught(pool, text, folder)
    found, computed = taught(pool, text, folder)
    assert computed == shards - 2
    assert same(found, plain)


def test_another_model_or_another_size_of_passes_is_another_teacher(
    pool: Counting, text: TokenText, tmp_path: Path
) -> None:
    folder = Location.parse(tmp_path)
    shards = taught(pool, text, folder)[1]
    (tmp_path / "99999.arrow").write_bytes(b"of a longer text")
    assert taught(pool, text, folder, "another")[1] == shards
    assert not (tmp_path / "99999.arrow").exists()
    assert taught(pool, text, folder, "another")[1] == 0
    assert taught(pool, text, folder)[1] == shards
    before = pool.calls
    teach_text(pool, text, shapes=Shapes(64), weights_digest="d", folder=folder)
    assert pool.calls > before


def test_each_fitness_has_a_teacher_of_its_own(pool: Counting, text: TokenText, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    shards = taught(pool, text, folder)[1]
    for computed in (shards, 0):
        before = pool.calls
        found = teach_text(pool, text, shapes=Shapes(128), fitness=Fitness.kl_topk, weights_digest="d", folder=folder)
        assert pool.calls - before == computed
        for block, kept in zip(text.blocks, found.teacher, strict=True):
            assert kept.ids is not None
            assert kept.ids.shape == kept.vectors.shape == (len(block), 10)
    assert taught(pool, text, folder)[1] == shards
