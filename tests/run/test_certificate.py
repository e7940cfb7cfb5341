"""What a result says of itself: found against what it had to beat, plainly, and the command that gives it again."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from searches import Material

from evoray import cli
from evoray.baselines import Problem, find_baseline
from evoray.run.best import doubts
from evoray.run.plan import plan_search
from evoray.run.search import search
from evoray.settings import BaselineSettings, SearchSettings, command_of
from evoray.space import configuration_costs
from evoray.store import VariantStore


def figures(kl: float, difference: float, width: float) -> dict[str, float]:
    return {"kl": kl, "found_minus_this_kl": difference, "interval_95": width}


def test_doubts_are_said_of_all_that_found_does_not_beat_beyond_the_interval() -> None:
    candidates = {
        "found": figures(0.5, 0.0, 0.0),
        "start": figures(0.75, -0.25, 0.125),
        "uniform": figures(0.5, 0.0, 0.0),
        "dp": figures(0.5625, -0.0625, 0.125),
        "owl": figures(0.25, 0.25, 0.125),
        "edge": figures(0.75, -0.25, 0.25),
    }
    assert doubts(candidates) == [
        "found is no other than uniform",
        "found is not better than dp: KL 0.50000 against 0.56250 nats/token, difference 0.06250 ± 0.12500 (95%)",
        "found is worse than owl: KL 0.50000 against 0.25000 nats/token, difference 0.25000 ± 0.12500 (95%)",
        "found is not better than edge: KL 0.50000 against 0.75000 nats/token, difference 0.25000 ± 0.25000 (95%)",
    ]
    # Who looks for the worst wants it the other way round.
    assert [said[:27] for said in doubts(candidates, inverted=True)] == [
        "found is better than start:",
        "found is no other than unif",
        "found is not worse than dp:",
        "found is not worse than edg",
    ]


def test_a_search_is_judged_beside_the_least_sum_of_layer_errors(material: Material, tmp_path: Path) -> None:
    found = search(material.settings(tmp_path))
    judged = found.best["held_out"]["candidates"]
    assert list(judged) == ["found", "start", "uniform", "dp"]
    store = VariantStore.open(material.store).manifest
    space = plan_search(material.settings(tmp_path)).ground.space
    errors = {layer: file.errors for layer, file in store.files.items()}
    problem = Problem(space, errors, {}, {}, {}, _none, _none, 0, 1)
    chosen = space.configuration(find_baseline("dp")(problem))
    assert judged["dp"]["bits"] == configuration_costs(store, chosen).bits
    assert found.best["held_out"]["doubts"] == doubts(judged)


def _none(*_: object) -> np.ndarray:
    raise AssertionError("nothing is measured")


def test_the_command_gives_the_same_result(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Stopped early: the command names the generations that there were.
    found = search(material.settings(tmp_path / "run", seed=3, switches=2, max_tokens=3000, generations=9))
    verb, *arguments = shlex.split(found.best["command"])[1:]
    assert verb == "search"
    assert found.best["generation"] < 9
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, *arguments, "--workers", "0", "--quiet"])
    assert ended.value.code == 0, capsys.readouterr().err
    again = json.loads((tmp_path / "again" / "best.json").read_text())
    assert {**again, "seconds": 0} == {**found.best, "seconds": 0}


def test_a_command_names_what_differs_from_the_defaults_and_decides() -> None:
    needed = {"model": "my model", "store": "s", "data": "d", "target_bits": 3}
    settings = SearchSettings(
        **needed, run="r", workers=3, max_hours=1, survivors=(8, 2), tokens=(64, 128), invert=True, tie="none"
    )
    assert command_of("search", settings, {"generations": 7}) == (
        "evoray search --data d --model 'my model' --store s --run again --target-bits 3.0 --tie none --invert "
        "--generations 7 --survivors 8,2 --tokens 64,128"
    )
    baseline = BaselineSettings(**needed, run="r", method="dp")
    assert command_of("baseline", baseline, {}) == (
        "evoray baseline --data d --model 'my model' --store s --run again --target-bits 3.0 --method dp"
    )
