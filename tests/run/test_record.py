"""A run read back as people's scripts do it."""

import json

import pytest

from evoray.errors import UserError
from evoray.run.record import Run
from evoray.run.search import search


def test_a_run_tells_its_generations_and_its_best(material, tmp_path):
    found = search(material.settings(tmp_path / "run", workers=0))
    run = Run(str(tmp_path / "run"))
    numbers = [row.generation for row in run.generations]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[-1] == found.best["generation"] > 0
    assert run.best == json.loads((tmp_path / "run" / "best.json").read_bytes())
    assert run.configuration == found.configuration
    assert run.best["bits"] == run.generations[-1].bits


def test_a_place_without_a_run_has_no_best(tmp_path):
    assert Run(str(tmp_path)).generations == ()
    with pytest.raises(UserError, match=r"no best\.json"):
        Run(str(tmp_path)).best  # noqa: B018
