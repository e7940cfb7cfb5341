"""Logs for whoever collects them: every line is one object, and the last one tells the outcome."""

import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from calls import Call
from searches import Material

from evoray.cluster import LocalPool
from evoray.run.journal import Journal
from evoray.run.json_lines import JsonProgress
from evoray.store import Location


def lines_of(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
    return found


def searching(material: Material, run: Path, *more: object) -> list[object]:
    return [
        *("search", "--model", material.model, "--store", material.store, "--data", material.text, "--run", run),
        *("--sequence-length", 64, "--search-tokens", 2048, "--judge-tokens", 512, "--workers", 0),
        *("--offspring", 4, "--survivors", "2,1", "--tokens", "64,128", "--initial-candidates", 3, *more),
    ]


@pytest.mark.parametrize("before", [True, False])
def test_a_search_in_json(
    call: Call, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    at: list[tuple[str | None, int | None]] = []
    monkeypatch.setattr(LocalPool, "at", lambda self, run, generation=None: at.append((run, generation)))
    monkeypatch.chdir(tmp_path)
    # From wherever it is called, lines of the driver and of workers name the same run.
    run = tmp_path / "run" if before else Path("run")
    arguments = searching(material, run, "--target-bits", 2.8, "--generations", 2)
    switch = ("--log-format", "json")
    outcome = call(*switch, *arguments) if before else call(*arguments, *switch)
    assert outcome.code == 0
    lines = lines_of(outcome.err)
    assert {line["run"] for line in lines[:-1]} == {str(tmp_path / "run")}
    place = str(tmp_path / "run")
    assert at == [(None, None), (place, None), (place, 0), (place, 1), (place, 2)]
    generations = [line for line in lines if line["event"] == "generation"]
    rows = Journal(Location.parse(tmp_path / "run")).rows
    assert [(line["generation"], line["fitness"], line["tokens"]) for line in generations] == [
        (row.generation, row.fitness, row.tokens) for row in rows
    ]
    assert [line["event"] for line in lines[-3:]] == ["stage", "concluded", "done"]
    assert lines[-1]["text"].startswith("done: ")
    assert "done: " not in outcome.out
    assert "judged on" in outcome.out


def test_a_mistake_is_a_line_too_and_the_next_call_is_text_again(call: Call, tmp_path: Path) -> None:
    (line,) = lines_of(call("--log-format", "json", "inspect", tmp_path / "nothing").err)
    assert (line["event"], line["level"]) == ("error", "error")
    assert call("inspect", tmp_path / "nothing").err == f"{line['text']}\n"
    refused = call("--log-format", "xml", "inspect", tmp_path)
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_notes_about_a_worker_name_it() -> None:
    stream = io.StringIO()
    told = JsonProgress("run", stream)
    told.note("worker 3 (process 12) was lost,\nits work is done again: it died")
    told.note("starting workers")
    told.layer(4, 21, "model.layers.0.mlp")
    first, second, third = lines_of(stream.getvalue())
    assert (first["worker"], first["level"], first["text"].count("\n")) == (3, "warning", 0)
    assert (second["level"], "worker" in second, "generation" in second) == ("info", False, False)
    assert (third["event"], third["done"], third["total"]) == ("layer", 4, 21)
