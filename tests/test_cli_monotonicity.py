"""Mistakes at `evoray inspect monotonicity RUN`: one line each, and before anything heavy is loaded where it can be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from searches import WITHOUT_STORE, Material, killed_at

from evoray import cli
from evoray.run.monotonicity import monotonicity
from evoray.run.search import search

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cli") / "run"
    search(material.settings(place, generations=2))
    return place


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line that a call ends with."""

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["inspect", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        return err

    return call


def moved(run: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of a run whose store lies elsewhere."""
    shutil.copytree(run, folder)
    for name in ("best.json", "settings.yaml"):
        (folder / name).write_text((folder / name).read_text().replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["monotonicity"], "monotonicity of which run? give evoray inspect monotonicity RUN"),
        (["monotonicity", "--plot", "a.png"], "monotonicity of which run?"),
        (["monotonicity", "/nope"], "/nope is no run directory"),
        (["monotonicity", "/nope", "--store", "s"], "--store s: monotonicity takes it from the run; leave it out"),
        (["monotonicity", "/nope", "--model", "m"], "--model m: monotonicity takes it from the run; leave it out"),
        (["monotonicity", "/nope", "--plot", "a.jpg"], "--plot a.jpg: a picture is one of .png, .svg, .pdf"),
        (["monotonicity", "/nope", "--plot", "/nope/a.png"], "there is no folder /nope; give another file"),
        (["/nope", "/nope"], "/nope goes with evoray inspect monotonicity RUN"),
        (["/nope", "--plot", "a.png"], "--plot goes with evoray inspect monotonicity RUN"),
    ],
)
def test_mistakes_in_the_arguments(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


def test_runs_that_show_nothing(refused: Refused, material: Material, tmp_path: Path) -> None:
    search(material.settings(tmp_path / "depth", **WITHOUT_STORE, drop_blocks=1, generations=1))
    assert "is of a search without a store" in refused("monotonicity", tmp_path / "depth")
    assert "is no run directory (no identity.json)" in refused("monotonicity", material.store)
    with killed_at("generations.parquet", 0, after=False):
        search(material.settings(tmp_path / "begun"))
    assert "holds no generation yet" in refused("monotonicity", tmp_path / "begun")


def test_a_driver_that_died_before_its_best_has_measured(material: Material, tmp_path: Path) -> None:
    with killed_at("generations.parquet", 0, after=True):
        search(material.settings(tmp_path, initial_candidates=8))
    assert not (tmp_path / "best.json").exists()
    found = monotonicity(str(tmp_path))
    assert [(group.generation, len(group.genotypes)) for group in found.groups] == [(0, 8)]
    assert found.fitness == "kl"


@pytest.mark.parametrize("levels", [("2", "3"), ("2", "3", "4", "5")])
def test_another_store_in_the_place_of_the_searched_one(
    refused: Refused, material: Material, run: Path, tmp_path: Path, levels: tuple[str, ...]
) -> None:
    other = material.with_store(tmp_path / "store", method="rtn", levels=levels, group_size=32, scales="minmax")
    place = moved(run, tmp_path / "run", material.store, other.store)
    error = refused("monotonicity", place)
    assert f"the store {other.store} is another one" in error
    assert "search again" in error


def test_the_searched_store_may_lie_elsewhere(material: Material, run: Path, tmp_path: Path) -> None:
    shutil.copytree(material.store, tmp_path / "store")
    place = moved(run, tmp_path / "run", material.store, str(tmp_path / "store"))
    assert monotonicity(str(place)).counts == monotonicity(str(run)).counts


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("settings.yaml", None, "has no settings.yaml"),
        ("identity.json", "{", "identity.json is missing or damaged"),
        ("identity.json", "[]", "identity.json is missing or damaged"),
        ("identity.json", "{}", "identity.json is missing or damaged"),
    ],
)
def test_damaged_runs(refused: Refused, run: Path, tmp_path: Path, name: str, text: str | None, said: str) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    (place / name).unlink()
    if text is not None:
        (place / name).write_text(text)
    assert said in refused("monotonicity", place)


def test_a_journal_of_another_search(refused: Refused, material: Material, run: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    settings = (place / "settings.yaml").read_text()
    assert "tie: fused" in settings
    (place / "settings.yaml").write_text(settings.replace("tie: fused", "tie: none"))
    assert "is none of this search" in refused("monotonicity", place)


def test_the_numbers_are_those_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = monotonicity(str(run))
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", "monotonicity", str(run), "--json", "--plot", str(tmp_path / "a.svg")])
    assert ended.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    measured = 0
    for file in sorted((run / "evaluations").iterdir()):
        rows = pa.ipc.open_file(pa.py_buffer(file.read_bytes())).read_all().to_pylist()
        measured += len({(row["rung"], tuple(row["genotype"])) for row in rows})
    compared = sum(len(group.genotypes) for group in found.groups)
    assert compared + found.left_out == measured
    assert shown["plot"] == str(tmp_path / "a.svg")
    assert (shown["fitness"], shown["pairs"], shown["turned"]) == ("kl", found.counts.pairs, found.counts.turned)
