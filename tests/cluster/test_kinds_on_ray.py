"""Searches of every kind with workers as real Ray actors: the run of a search without Ray, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
from searches import WITHOUT_STORE, Material, bits_of

from evoray.run.journal import Journal
from evoray.run.search import search
from evoray.store import Location

# name -> how the store is built (None: without one; {}: the material's own), changes of settings
KINDS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "sparsity": (
        {"kind": "sparsity", "method": "magnitude", "target_sparsity": 0.5, "steps": 2, "step_weights": 300},
        {"target_bits": None, "target_sparsity": 0.5},
    ),
    "sublayers": (None, {"drop_blocks": 2, "init": "norm-ratio"}),
    "joint with drops": (
        {"kind": "joint", "method": "magnitude", "group_size": 32, "levels": ("2", "4x0.6", "3", "4")},
        {"target_bits": None, "target_bpw": 3.2, "allow_drops": True, "population": 2, "survivors": (3, 2)},
    ),
}


@pytest.mark.cluster
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_workers_leaves_the_same_run(ray_here: None, deep: Material, tmp_path: Path, kind: str) -> None:
    building, changes = KINDS[kind]
    made = deep if building is None else deep.with_store(tmp_path / "store", **building)
    usual = {} if building is not None else WITHOUT_STORE
    for workers in (0, 1, 2):
        search(made.settings(tmp_path / str(workers), workers=workers, **usual | changes))
    whole = bits_of(tmp_path / "0")
    assert len({tuple(row["winner"]) for row in whole["generations"]}) > 1
    assert bits_of(tmp_path / "1") == whole
    assert bits_of(tmp_path / "2") == whole
    # Two workers had something to share: several batches in every generation behind the race for the start.
    journal = Journal(Location.parse(str(tmp_path / "2")))
    assert all(journal.batches(row.generation).num_rows > 2 for row in journal.rows if row.generation)
    assert all(len(row.busy_seconds) <= 2 for row in journal.rows)
    assert all(0 <= busy <= row.seconds for row in journal.rows for busy in row.busy_seconds)
    assert sum(journal.rows[-1].busy_seconds) > 0


@pytest.mark.cluster
def test_a_run_goes_on_with_another_number_of_workers(ray_here: None, deep: Material, tmp_path: Path) -> None:
    changes = {"target_bits": 2.6, "drop_blocks": 1, "init": "greedy"}
    search(deep.settings(tmp_path / "whole", **changes))
    for generations, workers in ((1, 2), (3, 0), (4, 1)):
        search(deep.settings(tmp_path / "run", workers=workers, generations=generations, **changes))
    assert bits_of(tmp_path / "run") == bits_of(tmp_path / "whole")
