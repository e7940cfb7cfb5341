"""Searches that begin where a baseline does: found once, and of no consequence for a search that does not."""

from pathlib import Path
from typing import Any

import pytest
from searches import Material, bits_of, killed_at, searching_with

from evoray.cluster import LocalPool
from evoray.run import search as driver
from evoray.run.journal import Journal
from evoray.run.search import search
from evoray.store import Location


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The baselines that were measured."""
    find, names = driver.find_by_baseline, list[str]()

    def counted(name: str, *args: Any, **how: Any) -> Any:
        names.append(name)
        return find(name, *args, **how)

    monkeypatch.setattr(driver, "find_by_baseline", counted)
    return names


@pytest.mark.parametrize("more", [{}, {"population": 2, "survivors": (3, 2)}])
def test_a_baseline_is_measured_once_however_often_the_search_goes_on(
    material: Material, tmp_path: Path, found: list[str], more: dict[str, Any]
) -> None:
    settings = {"init": "greedy", "generations": 3, **more}
    with LocalPool(material.spec) as pool, searching_with(pool):
        whole = search(material.settings(tmp_path / "whole", **settings))
        start = whole.best["held_out"]["candidates"]["start"]
        assert found == ["greedy"]
        for number in range(3):
            with killed_at("generations.parquet", 0, after=True):
                search(material.settings(tmp_path / "run", **settings))
            assert len(Journal(Location.parse(str(tmp_path / "run"))).rows) == number + 1
        again = search(material.settings(tmp_path / "run", **settings))
        assert found == ["greedy"] * 2
    assert bits_of(tmp_path / "run") == bits_of(tmp_path / "whole")
    assert again.best["held_out"]["candidates"]["start"] == start
    journal = Journal(Location.parse(str(tmp_path / "run")))
    assert again.best["candidate_tokens"] > journal.tokens


def test_a_start_that_was_never_measured_from_counts_for_nobody(
    material: Material, tmp_path: Path, found: list[str]
) -> None:
    with LocalPool(material.spec) as pool, searching_with(pool):
        with killed_at("generations.parquet", 0, after=False):
            search(material.settings(tmp_path / "run", init="greedy"))
        assert found == ["greedy"]
        search(material.settings(tmp_path / "run"))
        search(material.settings(tmp_path / "whole"))
    assert found == ["greedy"]
    assert bits_of(tmp_path / "run") == bits_of(tmp_path / "whole")
