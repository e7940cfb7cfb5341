"""Loggers are told what the journal holds, once, however often a run was interrupted; and none can end a search.

TensorBoard and MLflow are the real libraries, read back by their own readers. Weights & Biases is a module made here.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from searches import Material, Told, bits_of, killed_at, searching_with

from evoray.errors import UserError
from evoray.run.journal import GenerationRow, Journal
from evoray.run.loggers import LogPlace, open_log
from evoray.run.search import search
from evoray.store import Location

Series = dict[str, dict[int, float]]
"""Name of a figure -> generation -> value."""


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)


def of_journal(run: Path) -> Series:
    """What a log of a whole run must hold, from its journal and best.json."""
    rows, found = Journal(Location.parse(str(run))).rows, Series()

    def add(name: str, step: int, value: float | None) -> None:
        if value is not None:
            found.setdefault(name, {})[step] = float(value)

    for row in rows:
        for name in ("fitness", "parent_fitness", "bits", "bpw", "size", "sparsity", "lost_workers"):
            add(name, row.generation, getattr(row, name))
        add(
            "candidate_tokens",
            row.generation,
            sum(other.tokens for other in rows if other.generation <= row.generation),
        )
        add("tokens_per_second", row.generation, row.tokens / row.seconds)
    for candidate, judged in json.loads((run / "best.json").read_text())["held_out"]["candidates"].items():
        for name in ("kl", "perplexity", "found_minus_this_kl", "interval_95"):
            if candidate != "found" or name in ("kl", "perplexity"):
                add(f"held_out/{candidate}/{name}", rows[-1].generation, judged[name])
    return found


def same(found: Series, expected: Series, relative: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert list(found[name]) == list(values), name
        for step, value in values.items():
            assert math.isclose(found[name][step], value, rel_tol=relative), (name, step)


def of_tensorboard(folder: Path) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: Series = {}
    for name in events.Tags()["scalars"]:
        scalars = events.Scalars(name)
        assert len({event.step for event in scalars}) == len(scalars), f"{name} has a step twice"
        found[name] = {event.step: event.value for event in scalars}
    text = events.Tensors("settings/text_summary")
    assert len(text) == 1
    assert b"target_bits: 2.8" in text[0].tensor_proto.string_val[0]
    return found


def test_tensorboard_has_what_the_journal_has_after_a_crash_and_a_longer_run(
    material: Material, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    logged = {"log_to": ("tensorboard",)}
    # Killed with generation 2 in the journal and not in the log.
    with killed_at("generations.parquet", 2, after=True):
        search(material.settings(run, **logged))
    search(material.settings(run, **logged))
    assert [row.generation for row in Journal(Location.parse(str(run))).rows] == [0, 1, 2, 3, 4]
    short = of_journal(run)
    # Event files hold 32-bit floats.
    same(of_tensorboard(run / "logs" / "tensorboard"), short, 1e-6)
    search(material.settings(run, generations=6, **logged))
    long = of_journal(run)
    for name, values in short.items():
        if name.startswith("held_out/"):  # the shorter run's result stays
            long[name] = values | long[name]
    same(of_tensorboard(run / "logs" / "tensorboard"), long, 1e-6)
    search(material.settings(tmp_path / "unlogged", generations=6))
    assert bits_of(run) == bits_of(tmp_path / "unlogged")
    assert not (tmp_path / "unlogged" / "logs" / "tensorboard").exists()


def test_what_a_killed_driver_logged_but_did_not_note_is_there_once(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # The third write is that after generation 1; the first one is made when the log is opened.
    with killed_at("tensorboard.json", 2, after=False):
        search(material.settings(run, log_to=("tensorboard",)))
    search(material.settings(run, log_to=("tensorboard",)))
    same(of_tensorboard(run / "logs" / "tensorboard"), of_journal(run), 1e-6)


def test_a_finished_run_can_be_logged_later_and_only_once(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    search(material.settings(run))
    with searching_with(None):
        search(material.settings(run, log_to=("tensorboard",)))
        files = sorted((run / "logs" / "tensorboard").iterdir())
        search(material.settings(run, log_to=("tensorboard",)))
    same(of_tensorboard(run / "logs" / "tensorboard"), of_journal(run), 1e-6)
    assert sorted((run / "logs" / "tensorboard").iterdir()) == files


def test_mlflow_has_what_the_journal_has(material: Material, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = tmp_path / "my-run"
    with killed_at("generations.parquet", 2, after=True):
        search(material.settings(run, log_to=("mlflow",)))
    client = MlflowClient(tracking_uri=f"sqlite:///{run}/logs/mlflow.db")
    experiment = client.get_experiment_by_name("evoray")
    assert experiment is not None
    (theirs,) = client.search_runs([experiment.experiment_id])
    assert theirs.info.status == "KILLED"
    # Raised generations are another setting, which MLflow refuses to change.
    search(material.settings(run, generations=5, log_to=("mlflow",)))
    (theirs,) = client.search_runs([experiment.experiment_id])
    assert (theirs.info.run_name, theirs.info.status) == ("my-run", "FINISHED")
    assert (theirs.data.params["target_bits"], theirs.data.params["survivors"]) == ("2.8", "[2, 1]")
    found = {
        name: {metric.step: metric.value for metric in client.get_metric_history(theirs.info.run_id, name)}
        for name in theirs.data.metrics
    }
    same(found, of_journal(run))


class FakeWandb(types.ModuleType):
    """As much of the library as is used; it may be told to fail at a step."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: Series = {}
        self.exit_codes: list[int] = []
        self.failing: int | None = None
        self.id = "abc123"
        self.summary: dict[str, float] = {}
        self.closed = -1

    class Settings:
        def __init__(self, console: str) -> None:
            assert console == "off"

    def init(self, **given: Any) -> FakeWandb:
        self.begun.append(given)
        return self

    def log(self, values: Mapping[str, float], *, step: int, commit: bool) -> None:
        assert commit
        if step == self.failing:
            raise ConnectionError("the server\nis away")
        assert step > self.closed, "the library drops what comes for a step that was committed"
        self.closed = step
        for name, value in values.items():
            self.logged.setdefault(name, {})[step] = value

    def all(self, last: int) -> Series:
        """Figures of generations, and of the result as of the last one."""
        return self.logged | {name: {last: value} for name, value in self.summary.items()}

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_goes_on_under_the_id_that_it_gave(material: Material, tmp_path: Path, wandb: FakeWandb) -> None:
    run = tmp_path / "run"
    with killed_at("generations.parquet", 1, after=True):
        search(material.settings(run, log_to=("wandb",)))
    search(material.settings(run, log_to=("wandb",)))
    same(wandb.all(4), of_journal(run))
    assert [(given["id"], given["resume"]) for given in wandb.begun] == [(None, "allow"), ("abc123", "allow")]
    assert wandb.exit_codes == [1, 0]
    assert wandb.begun[0]["config"] == json.loads(json.dumps(wandb.begun[0]["config"]))
    assert wandb.begun[0]["config"]["offspring"] == 8
    assert (wandb.begun[0]["project"], wandb.begun[0]["name"]) == ("evoray", "run")
    assert wandb.begun[0]["dir"] == str(run / "logs")


def test_a_logger_that_fails_is_left_out_and_caught_up_later(
    material: Material, tmp_path: Path, wandb: FakeWandb
) -> None:
    run, told = tmp_path / "run", Told()
    wandb.failing = 2
    search(material.settings(run, log_to=("wandb", "tensorboard")), told)
    (note,) = [note for note in told.notes if "wandb" in note]
    assert "--log-to wandb failed (ConnectionError: the server is away); the search goes on without it" in note
    assert list(wandb.logged["fitness"]) == [0, 1]
    assert "wandb failed" in (run / "logs" / "driver.log").read_text()
    # The other one, and the run itself, are as without it.
    same(of_tensorboard(run / "logs" / "tensorboard"), of_journal(run), 1e-6)
    search(material.settings(tmp_path / "alone"))
    assert bits_of(run) == bits_of(tmp_path / "alone")
    wandb.failing = None
    search(material.settings(run, log_to=("wandb",)))
    same(wandb.all(4), of_journal(run))


def test_a_log_that_can_not_be_opened_is_said_before_a_worker_starts(
    material: Material, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_key(**_: Any) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", no_key)
    with (
        searching_with(None),
        pytest.raises(UserError, match=r"wandb: the log can't be opened \(RuntimeError: no API key\)"),
    ):
        search(material.settings(tmp_path / "run", log_to=("tensorboard", "wandb")))


@pytest.mark.parametrize(
    ("name", "library"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_missing_library_is_said_before_a_text_is_read(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("evoray.run.plan.plan_ground", None)
    with pytest.raises(UserError, match=rf"--log-to {name}: .*pip install 'evoray\[{name}\]'"):
        search(material.settings(tmp_path / "run", log_to=(name,)))
    assert not (tmp_path / "run").exists()


def test_unknown_loggers(material: Material, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--log-to 'tb': no such logger; there are mlflow, tensorboard, wandb"):
        search(material.settings(tmp_path / "run", log_to=("tb",)))


def test_files_on_object_storage_are_refused() -> None:
    bucket = pafs.SubTreeFileSystem("/nowhere", pafs.LocalFileSystem())
    place = LogPlace(Location.inside(bucket, "bucket/run", "s3://bucket/run"), {}, None, -1)
    with pytest.raises(UserError, match=r"tensorboard writes files, and --run .*bucket/run is no folder"):
        open_log("tensorboard", place)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI names no server"):
        open_log("mlflow", place)


def test_nothing_is_imported_unless_asked_for(material: Material, tmp_path: Path) -> None:
    settings = material.settings(tmp_path / "run", generations=0).model_dump_json()
    script = (
        "import sys; from evoray.run.search import search; from evoray.settings import SearchSettings\n"
        f"search(SearchSettings.model_validate_json({settings!r}))\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'tensorboard', 'mlflow', 'wandb'})"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def test_figures_leave_out_what_there_is_not() -> None:
    from evoray.run.logged import figures_of

    row = GenerationRow(0, (1,), ((1,),), 0.5, None, True, None, None, 3.0, 3.1, 7, 0.0, 4, 20, 0.0, 1, (), (), "", "")
    assert figures_of(row, 20) == {
        "fitness": 0.5,
        "bits": 3.0,
        "bpw": 3.1,
        "size": 7.0,
        "sparsity": 0.0,
        "candidate_tokens": 20.0,
        "lost_workers": 1.0,
    }
