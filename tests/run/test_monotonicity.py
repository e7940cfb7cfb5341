"""Sums of layer errors against losses: counted pair by pair, and on a real run read back by slow loops."""

import json
import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searches import WITHOUT_STORE, Material

from evoray import cli
from evoray.errors import UserError
from evoray.run.journal import Journal
from evoray.run.monotonicity import Counts, Group, Monotonicity, compare, monotonicity
from evoray.run.search import search
from evoray.store import Location, VariantStore


@pytest.fixture(scope="module")
def run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("monotonicity") / "run"
    search(material.settings(place))
    return place


@pytest.fixture(scope="module")
def found(run: Path) -> Monotonicity:
    return monotonicity(str(run))


@given(data=st.data(), blocks=st.integers(1, 4), candidates=st.integers(2, 8))
def test_every_pair_is_counted_as_a_loop_counts_it(data, blocks, candidates):
    few = st.integers(0, 4)
    errors = data.draw(st.lists(few, min_size=candidates, max_size=candidates))
    losses = [data.draw(st.lists(few, min_size=blocks, max_size=blocks)) for _ in range(candidates)]
    tokens = data.draw(st.lists(st.integers(1, 3), min_size=blocks, max_size=blocks))
    group = Group(
        0,
        0,
        tuple((number,) for number in range(candidates)),
        np.array(errors, dtype=np.float64),
        np.array(losses, dtype=np.float64),
        np.array(tokens),
    )
    pairs = turned = 0
    largest = Fraction(0)
    for one, other in combinations(range(candidates), 2):
        if errors[one] == errors[other]:
            continue
        less, more = (one, other) if errors[one] < errors[other] else (other, one)
        difference = Fraction(sum(losses[less]) - sum(losses[more]), sum(tokens))
        pairs, turned = pairs + 1, turned + (difference > 0)
        largest = max(largest, difference)
    counts, worst = compare(group)
    assert (counts.pairs, counts.turned) == (pairs, turned)
    assert counts.clear_turned <= min(counts.clear, counts.turned)
    assert (worst is None) == (turned == 0)
    if worst is not None:
        assert errors[worst.less] < errors[worst.more]
        exact = Fraction(sum(losses[worst.less]) - sum(losses[worst.more]), sum(tokens))
        assert worst.difference == pytest.approx(float(exact))
        if not worst.beyond_doubt:
            assert counts.clear_turned == 0
            assert exact == largest
    if blocks == 1:
        assert counts.clear == 0, "a single block bounds no difference"


def test_the_interval_is_that_of_a_ratio_over_blocks():
    losses_NB = np.array([[4.0, 9.0, 2.0], [3.0, 5.0, 1.0]])
    group = Group(0, 0, ((0,), (1,)), np.array([1.0, 2.0]), losses_NB, np.array([2, 4, 1]))
    counts, worst = compare(group)
    mean = (1 + 4 + 1) / 7
    spread = sum((difference - mean * tokens) ** 2 for difference, tokens in ((1, 2), (4, 4), (1, 1)))
    assert worst is not None
    assert worst.interval == pytest.approx(1.96 * math.sqrt(spread * 3 / 2) / 7)
    assert counts == Counts(pairs=1, turned=1, clear=1, clear_turned=1)


def test_a_run_is_compared_as_its_files_say(material: Material, run: Path, found: Monotonicity) -> None:
    files = VariantStore.open(material.store).manifest.files
    journal = Journal(Location.parse(str(run)))
    pairs = turned = 0
    for row in journal.rows:
        cuts = {(batch["rung"], batch["batch"]): batch["cuts"] for batch in journal.batches(row.generation).to_pylist()}
        rungs: dict[int, dict[tuple[int, ...], float]] = {}
        for entry in journal.evaluations(row).to_pylist():
            of_rung = rungs.setdefault(entry["rung"], {})
            genotype = tuple(entry["genotype"])
            of_rung[genotype] = of_rung.get(genotype, 0.0) + sum(entry["losses"])
        for rung, losses in rungs.items():
            tokens = sum(sum(cut) for (number, _), cut in cuts.items() if number == rung)
            errors = {
                genotype: math.fsum(
                    files[layer].errors[level] for layer, level in found.space.configuration(genotype).items()
                )
                for genotype in losses
            }
            for one, other in combinations(losses, 2):
                pairs += errors[one] != errors[other]
                turned += (errors[one] - errors[other]) * (losses[one] - losses[other]) / tokens < 0
    assert (found.counts.pairs, found.counts.turned) == (pairs, turned)
    assert turned > 0
    assert found.worst is not None
    assert found.shown is found.worst.group
    assert (found.fitness, found.left_out) == ("kl", 0)


def test_candidates_that_drop_are_left_out(material: Material, tmp_path: Path) -> None:
    settings = material.settings(tmp_path, target_bits=2.2, allow_drops=True, generations=2)
    search(settings)
    found = monotonicity(str(tmp_path))
    measured = dropping = 0
    journal = Journal(Location.parse(str(tmp_path)))
    for row in journal.rows:
        entries = {(entry["rung"], tuple(entry["genotype"])) for entry in journal.evaluations(row).to_pylist()}
        measured += len(entries)
        dropping += sum("dropped" in found.space.configuration(genotype).values() for _, genotype in entries)
    assert 0 < dropping == found.left_out < measured


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_table_the_numbers_and_the_picture_agree(
    run: Path, found: Monotonicity, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    picture = tmp_path / f"errors.{suffix}"
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["inspect", "monotonicity", str(run), "--plot", str(picture), *flags])
        assert ended.value.code == 0
    table, _, figures = capsys.readouterr().out.partition("{")
    shown = json.loads("{" + figures)
    counts, worst = found.counts, found.worst
    assert worst is not None
    assert [shown[key] for key in ("pairs", "turned", "clear", "clear_turned")] == list(vars(counts).values())
    assert f"{counts.turned / counts.pairs:.1%}" in table
    assert f"{worst.difference:.6f}" in table
    less, more = shown["worst"]["less_error"], shown["worst"]["more_error"]
    assert less["sum_of_layer_errors"] < more["sum_of_layer_errors"]
    assert less["loss"] - more["loss"] == pytest.approx(shown["worst"]["difference"])
    assert less["configuration"] == found.space.configuration(worst.group.genotypes[worst.less])
    head = {"png": b"\x89PNG\r\n", "svg": b"<?xml"}[suffix]
    assert picture.read_bytes().startswith(head)
    if suffix == "svg":
        # One marker for each candidate, and one for each end of the worst pair.
        points = picture.read_text(encoding="utf-8").count("<use ")
        assert points >= len(found.shown.genotypes) + 2


def test_what_cannot_be_compared(
    material: Material, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(material.settings(tmp_path / "depth", **WITHOUT_STORE, drop_blocks=1, generations=1))
    (tmp_path / "none").mkdir()
    for arguments, said in [
        (["monotonicity", tmp_path / "none"], "is no run directory"),
        (["monotonicity", tmp_path / "depth"], "a search without a store"),
        (["monotonicity", run, "--plot", "errors.txt"], "a picture is one of .png, .svg, .pdf"),
        (["monotonicity", run, "--plot", tmp_path / "nowhere" / "errors.png"], "can't be written"),
        ([run, run], "goes with evoray inspect monotonicity RUN"),
        ([run, "--plot", "errors.png"], "--plot goes with"),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["inspect", *map(str, arguments)])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_errors_that_a_store_lacks_are_missed(material: Material, tmp_path: Path) -> None:
    place = tmp_path / "run"
    search(material.settings(place, generations=1))
    bare = tmp_path / "bare"
    bare.mkdir()
    manifest = json.loads((Path(material.store) / "manifest.json").read_text())
    for file in manifest["files"].values():
        file["errors"] = {}
    (bare / "manifest.json").write_text(json.dumps(manifest))
    for name in ("best.json", "settings.yaml"):
        (place / name).write_text((place / name).read_text().replace(material.store, str(bare)))
    with pytest.raises(UserError, match="has no layer errors"):
        monotonicity(str(place))
