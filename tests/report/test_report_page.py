"""The page of a report: its numbers against the run directory by slow loops, and that it needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from report_pages import Figure, Page, read_page
from searches import WITHOUT_STORE, Material

from evoray.errors import UserError
from evoray.model import checkpoint_facts
from evoray.report.numbers import named_apart
from evoray.run.baseline import run_baseline
from evoray.run.report import write_report
from evoray.run.search import search
from evoray.settings import BaselineSettings
from evoray.store import Location, VariantStore


def baseline_settings(material: Material, run: Path, method: str, **changes: Any) -> BaselineSettings:
    given = material.settings(run, **changes).model_dump(exclude_unset=True)
    common = {key: given[key] for key in given.keys() & BaselineSettings.model_fields.keys()}
    return BaselineSettings(**common | {"method": method, "tokens": 256})


@dataclass(frozen=True)
class Runs:
    bits: Path
    """Levels of a store; generation 0 races for the start."""
    drops: Path
    """Levels of a store, and sublayers that go."""
    bare: Path
    """No store: sublayers that go."""
    baseline: Path
    material: Material
    deep: Material


@pytest.fixture(scope="module")
def runs(material: Material, deep: Material, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("report")
    made = Runs(*(folder / name for name in ("bits", "drops", "bare", "dp")), material, deep)
    search(material.settings(made.bits, generations=3))
    search(deep.settings(made.drops, generations=2, target_bits=2.3, allow_drops=True, init="dp"))
    search(deep.settings(made.bare, generations=2, **WITHOUT_STORE, drop_blocks=2, initial_candidates=4))
    run_baseline(baseline_settings(material, made.baseline, "dp"))
    return made


@pytest.fixture(scope="module")
def pages(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The page of each run."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for run in (runs.bits, runs.drops, runs.bare, runs.baseline):
        write_report([str(run)], str(folder / run.name))
        found[run.name] = read_page((folder / run.name / "index.html").read_text())
    return found


def best_of(run: Path) -> dict[str, Any]:
    best: dict[str, Any] = json.loads((run / "best.json").read_text())
    return best


def near(cell: str, value: float) -> bool:
    """Whether a cell spells a value, to the digits it shows."""
    return math.isclose(float(cell.replace(",", "")), value, rel_tol=1e-5, abs_tol=1e-9)


def column(figure: Figure, name: str) -> list[str]:
    return [row[figure.head.index(name)] for row in figure.rows]


@pytest.mark.parametrize("name", ["bits", "drops", "bare"])
def test_loss_table_is_the_journal(runs: Runs, pages: dict[str, Page], name: str) -> None:
    figure = pages[name].figures["run-loss"]
    rows = pq.read_table(getattr(runs, name) / "generations.parquet").to_pylist()
    assert [int(cell) for cell in column(figure, "generation")] == [row["generation"] for row in rows]
    tokens, seconds = 0, 0.0
    for cells, row in zip(figure.rows, rows, strict=True):
        shown = dict(zip(figure.head, cells, strict=True))
        tokens, seconds = tokens + row["tokens"], seconds + row["seconds"]
        assert near(shown["loss [nats/token]"], row["fitness"])
        parent = shown["parent's loss"]
        assert parent == "–" if row["parent_fitness"] is None else near(parent, row["parent_fitness"])
        assert shown["accepted"] == ("yes" if row["accepted"] else "no")
        assert int(shown["candidates"]) == row["candidates"]
        assert int(shown["candidate tokens so far"].replace(",", "")) == tokens
        assert near(shown["seconds so far"], seconds)
        assert shown["bits"] == f"{row['bits']:.4f}"


@pytest.mark.parametrize("name", ["bits", "drops", "bare"])
def test_funnel_counts_what_was_measured(runs: Runs, pages: dict[str, Page], name: str) -> None:
    run: Path = getattr(runs, name)
    batches = pq.read_table(run / "batches.parquet").to_pylist()
    expected = []
    for row in pq.read_table(run / "generations.parquet").to_pylist():
        seen: dict[int, dict[tuple[int, ...], int]] = {}
        for entry in pa.ipc.open_file(run / "evaluations" / row["evaluations"]).read_all().to_pylist():
            at = (row["generation"], entry["rung"], entry["batch"])
            batch = next(each for each in batches if (each["generation"], each["rung"], each["batch"]) == at)
            of_rung = seen.setdefault(entry["rung"], {})
            genotype = tuple(entry["genotype"])
            of_rung[genotype] = of_rung.get(genotype, 0) + sum(batch["cuts"])
        for rung, of_rung in sorted(seen.items()):
            (each,) = set(of_rung.values())
            expected.append([row["generation"], rung + 1, len(of_rung), each, sum(of_rung.values())])
        spent = sum(line[-1] for line in expected if line[0] == row["generation"])
        assert spent == row["tokens"]
    figure = pages[name].figures["run-funnel"]
    assert [[int(cell.replace(",", "")) for cell in row] for row in figure.rows] == expected


def cells_of(figure: Figure) -> dict[tuple[int, str], str]:
    """(block, kind) -> level, of a table of the allocation."""
    return {
        (int(row[0]), kind): level
        for row in figure.rows
        for kind, level in zip(figure.head[1:], row[1:], strict=True)
        if level
    }


def block_and_kind(site: str) -> tuple[int, str]:
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", site)
    assert found is not None
    return int(found[1]), found[2]


@pytest.mark.parametrize("name", ["bits", "drops", "baseline"])
def test_allocation_is_the_configuration(runs: Runs, pages: dict[str, Page], name: str) -> None:
    run: Path = getattr(runs, name)
    configuration = best_of(run)["configuration"]
    material = runs.deep if name == "drops" else runs.material
    expected = {}
    for layer in VariantStore.open(material.store).manifest.layers:
        gone = [
            site for site in checkpoint_facts(material.model).droppable
            if configuration.get(site.name) == "dropped" and layer.name in site.layers
        ]  # fmt: skip
        expected[block_and_kind(layer.name)] = "dropped" if gone else configuration[layer.name]
    assert ("dropped" in expected.values()) == (name == "drops")
    assert cells_of(pages[run.name].figures["run-allocation"]) == expected


def test_allocation_without_a_store(runs: Runs, pages: dict[str, Page]) -> None:
    configuration = best_of(runs.bare)["configuration"]
    expected = {block_and_kind(site): level for site, level in configuration.items()}
    assert list(expected.values()).count("dropped") == 4
    assert cells_of(pages["bare"].figures["run-allocation"]) == expected


@pytest.mark.parametrize("name", ["bits", "drops", "baseline"])
def test_bytes_add_up_to_the_checkpoint(runs: Runs, pages: dict[str, Page], name: str) -> None:
    run: Path = getattr(runs, name)
    best, cells = best_of(run), cells_of(pages[run.name].figures["run-allocation"])
    manifest = VariantStore.open(best["store"]).manifest
    held: dict[str, int] = {}
    for layer in manifest.layers:
        block, kind = block_and_kind(layer.name)
        level = cells[block, kind]
        held[kind] = held.get(kind, 0) + (0 if level == "dropped" else layer.costs[level].bytes)
    figure = pages[run.name].figures["run-bytes"]
    shown = {row[0]: int(row[1].replace(",", "")) for row in figure.rows}
    total = shown.pop("all")
    assert {kind: shown[kind] for kind in held} == held
    assert sum(shown.values()) == total == best["size"]
    base = {row[0]: row[3] for row in figure.rows}
    dense = sum(layer.dense_bytes for layer in manifest.layers) + manifest.dense_bytes
    assert int(base["all"].replace(",", "")) == dense


def test_bytes_without_a_store(runs: Runs, pages: dict[str, Page]) -> None:
    best, figure = best_of(runs.bare), pages["bare"].figures["run-bytes"]
    assert [int(cell.replace(",", "")) for cell in column(figure, "bytes")] == [
        best["bytes"], best["size"] - best["bytes"], best["size"],
    ]  # fmt: skip


def test_errors_are_those_of_the_variants(runs: Runs, pages: dict[str, Page]) -> None:
    store = VariantStore.open(runs.material.store)
    found: dict[tuple[str, str], list[float]] = {}
    for layer in store.manifest.layers:
        for level in layer.costs:
            key = (block_and_kind(layer.name)[1], level)
            found.setdefault(key, []).append(store.read(layer.name, level).error)
    figure = pages["bits"].figures["run-errors"]
    assert {(row[0], row[1]) for row in figure.rows} == set(found)
    for kind, level, layers, mean, least, most in figure.rows:
        values = found[kind, level]
        assert int(layers) == len(values)
        assert near(mean, sum(values) / len(values))
        assert near(least, min(values))
        assert near(most, max(values))
    assert "run-errors" not in pages["bare"].figures


@pytest.mark.parametrize("name", ["bits", "drops", "bare", "baseline"])
def test_certificate_is_what_was_judged(runs: Runs, pages: dict[str, Page], name: str) -> None:
    run: Path = getattr(runs, name)
    page, held_out = pages[run.name], best_of(run)["held_out"]
    (caption,) = [caption for caption in page.tables if caption.startswith("judged on")]
    assert caption == f"judged on {held_out['tokens']:,} held-out tokens of {held_out['data']}"
    head, *rows = page.tables[caption]
    assert [row[0] for row in rows] == list(held_out["candidates"])
    assert ("sparsity" in head) == any(each["sparsity"] for each in held_out["candidates"].values())
    for row, figures in zip(rows, held_out["candidates"].values(), strict=True):
        shown = dict(zip(head, row, strict=True))
        assert near(shown["KL [nats/token]"], figures["kl"])
        assert near(shown["perplexity"], figures["perplexity"])
        assert shown["bits"] == f"{figures['bits']:.4f}"
        better = shown["found better by (95%)"]
        if row[0] == "found":
            assert better == ""
        elif figures["interval_95"] == figures["found_minus_this_kl"] == 0:
            assert better == "the same"
        else:
            gain, width = better.split(" ± ")
            assert float(gain) == pytest.approx(-figures["found_minus_this_kl"], rel=1e-3)
            assert float(width) == pytest.approx(figures["interval_95"], rel=1e-3)
    for doubt in held_out["doubts"]:
        assert f"Note: {doubt}." in page.words["p"]


def test_provenance(runs: Runs, pages: dict[str, Page]) -> None:
    best, page = best_of(runs.bits), pages["bits"]
    assert dict(page.tables["digests"]) == best["digests"]
    assert dict(page.tables["versions"]) == best["versions"]
    assert dict(page.tables["device"])["device"] == best["device"]["device"]
    settings = dict(page.tables["settings, as resolved"])
    assert (settings["target_bits"], settings["survivors"], settings["seed"]) == ("2.8", "2, 1", "0")
    assert page.words["code"] == [best["command"]]


def test_a_baseline_shows_what_it_has(pages: dict[str, Page]) -> None:
    page = pages["dp"]
    assert list(page.figures) == ["run-allocation", "run-bytes", "run-errors"]
    assert {"baseline", "baseline dp"} <= set(page.words["dd"])


def assert_alone(page: Page) -> None:
    """The page asks nobody for anything, and is sound."""
    assert page.unclosed == []
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(tags)
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("srcset", "style")}
        for name in ("src", "href"):
            target = attributes.get(name, "data:")
            assert target.startswith("data:") or (tag == "a" and target.startswith("#")), target
    assert "url(" not in page.words["style"][0]
    assert "@import" not in page.words["style"][0]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes["href"][1:] in ids for tag, attributes in page.tags if tag == "a")
    policy = next(each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize("name", ["bits", "drops", "bare", "dp"])
def test_a_page_needs_nothing_else(pages: dict[str, Page], name: str) -> None:
    page = pages[name]
    assert_alone(page)
    assert page.tags[0] == ("html", {"lang": "en"})
    assert len(page.words["figure"]) == len(page.figures) > 0
    for figure in page.figures.values():
        assert figure.png.startswith(b"\x89PNG\r\n")
        assert figure.folded
        assert figure.rows
        assert figure.alt
        assert {len(row) for row in figure.rows} == {len(figure.head)}


def test_pictures_are_files_too(runs: Runs, tmp_path: Path) -> None:
    report = write_report([str(runs.bits)], str(tmp_path))
    page = read_page((tmp_path / "index.html").read_text())
    files = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert {f"run-{key}": data for key, data in files.items()} == {k: each.png for k, each in page.figures.items()}
    assert sorted(report.pictures) == sorted(str(path) for path in tmp_path.glob("*.png"))


def test_it_goes_into_the_run_by_default(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.bits, tmp_path / "run")
    assert write_report([str(tmp_path / "run")]).page == str(tmp_path / "run" / "report" / "index.html")
    assert (tmp_path / "run" / "report" / "loss.png").exists()


def test_a_run_on_object_storage(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(runs.bits, tmp_path / "bucket" / "run")
    bucket = Location.inside(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket", "s3://bucket")
    parse = Location.parse
    monkeypatch.setattr(Location, "parse", lambda place: bucket / "run" if place == "s3://bucket/run" else parse(place))
    report = write_report(["s3://bucket/run"])
    assert report.page == "s3://bucket/run/report/index.html"
    text = (tmp_path / "bucket" / "run" / "report" / "index.html").read_text()
    assert read_page(text).figures.keys() == {
        f"run-{key}" for key in ("loss", "allocation", "bytes", "errors", "funnel")
    }


HOSTILE = """<b onclick=x>$x_1$ & "q' \\alpha"""


def test_text_of_users_is_text(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / HOSTILE
    shutil.copytree(runs.bits, run)
    best = best_of(run)
    evil = "</td></style><script>alert(1)</script><img src=http://x/y>"
    best["held_out"]["data"] = best["model"] = best["command"] = best["versions"]["evoray"] = evil
    best["held_out"]["candidates"][evil] = best["held_out"]["candidates"]["start"]
    (run / "best.json").write_text(json.dumps(best))
    other = tmp_path / "_other"
    shutil.copytree(run, other)
    for places, named in (([run], [HOSTILE]), ([run, other], [HOSTILE, "_other"])):
        write_report([str(place) for place in places], str(tmp_path / "out"))
        page = read_page((tmp_path / "out" / "index.html").read_text())
        assert_alone(page)
        assert len(page.words["style"]) == 1
        assert page.words["h1" if len(places) == 1 else "h2"] == named
        assert evil in page.words["dd"]
        assert page.words["code"] == [evil] * len(places)
        assert [row[0] for row in page.tables[f"judged on 512 held-out tokens of {evil}"]][-1] == evil


def copied(run: Path, folder: Path, *without: str) -> Path:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*without))
    return folder


def reported(run: Path) -> Page:
    page = read_page(Path(write_report([str(run)]).page).read_text())
    assert_alone(page)
    return page


def test_before_the_first_generation(runs: Runs, tmp_path: Path) -> None:
    page = reported(copied(runs.bits, tmp_path / "run", "best.json", "*.parquet", "evaluations"))
    assert "no generation is finished yet" in page.words["dd"]
    assert list(page.figures) == ["run-errors"]
    assert dict(page.tables["digests"])["search_text"] == best_of(runs.bits)["digests"]["search_text"]
    assert dict(page.tables["versions"]) == best_of(runs.bits)["versions"]
    assert dict(page.tables["settings, as resolved"])["model"] == runs.material.model


def test_journaled_but_no_result_yet(runs: Runs, tmp_path: Path) -> None:
    page = reported(copied(runs.bits, tmp_path / "run", "best.json"))
    assert list(page.figures) == ["run-loss", "run-errors", "run-funnel"]
    assert "best.json is not there yet" in page.words["dd"]


def test_not_judged_yet(runs: Runs, tmp_path: Path) -> None:
    run = copied(runs.bits, tmp_path / "run")
    best = best_of(run)
    del best["held_out"]
    (run / "best.json").write_text(json.dumps(best))
    page = reported(run)
    assert list(page.figures) == ["run-loss", "run-allocation", "run-bytes", "run-errors", "run-funnel"]
    assert "generation 3 of 3, not judged yet" in page.words["dd"]
    assert not any(caption.startswith("judged") for caption in page.tables)
    assert any("Not judged on held-out text yet" in text for text in page.words["p"])


def test_a_store_that_is_gone_or_another(runs: Runs, tmp_path: Path, material: Material) -> None:
    run = copied(runs.bits, tmp_path / "run")
    best = best_of(run)
    another = material.with_store(tmp_path / "another", method="rtn", levels=("2", "3", "4"), group_size=16)
    for store, said in ((str(tmp_path / "gone"), "no store at"), (another.store, "is another store than the run's")):
        (run / "best.json").write_text(json.dumps(best | {"store": store}))
        page = reported(run)
        assert list(page.figures) == ["run-loss", "run-allocation", "run-bytes", "run-funnel"]
        assert [row[0] for row in page.figures["run-bytes"].rows] == [
            "layers",
            "embeddings, head, norms, biases",
            "all",
        ]
        assert any(said in text for text in page.words["p"])


def test_lost_evaluations_cost_the_funnel_alone(runs: Runs, tmp_path: Path) -> None:
    page = reported(copied(runs.bits, tmp_path / "run", "generation-00002.arrow"))
    assert "run-funnel" not in page.figures
    assert "run-loss" in page.figures
    assert any("generation-00002.arrow is missing" in text for text in page.words["p"])


def test_losses_that_are_no_number(runs: Runs, tmp_path: Path) -> None:
    run = copied(runs.bits, tmp_path / "run")
    best = best_of(run)
    best["held_out"]["candidates"]["start"] |= {
        "kl": math.inf,
        "interval_95": math.inf,
        "found_minus_this_kl": -math.inf,
    }
    (run / "best.json").write_text(json.dumps(best))
    path = run / "generations.parquet"
    table = pq.read_table(path)
    losses = table["fitness"].to_pylist()
    losses[1] = math.inf
    place = table.schema.get_field_index("fitness")
    pq.write_table(table.set_column(place, "fitness", pa.array(losses, pa.float64())), path, write_page_checksum=True)
    page = reported(run)
    assert column(page.figures["run-loss"], "loss [nats/token]")[1] == "∞"
    (row,) = [row for rows in page.tables.values() for row in rows if row[0] == "start"]
    assert "∞ ± ∞" in row
    write_report([str(run), str(runs.bits)], str(tmp_path / "out"))


def test_several_runs(runs: Runs, tmp_path: Path) -> None:
    places = [runs.bits, runs.drops, runs.baseline]
    report = write_report([str(place) for place in [*places, runs.bits]], str(tmp_path))
    page = read_page((tmp_path / "index.html").read_text())
    assert_alone(page)
    assert page.words["h1"] == ["3 runs side by side"]
    assert page.words["h2"] == [place.name for place in places]
    assert len(report.pictures) == len(page.figures) == len(list(tmp_path.glob("*.png")))
    losses = page.figures["all-losses"]
    expected = [
        [place.name, row["generation"], row["fitness"]]
        for place in places[:2]
        for row in pq.read_table(place / "generations.parquet").to_pylist()
    ]
    assert [[row[0], int(row[2])] for row in losses.rows] == [line[:2] for line in expected]
    assert all(near(row[4], line[2]) for row, line in zip(losses.rows, expected, strict=True))
    sizes = page.figures["all-sizes"]
    judged = [(place.name, *each) for place in places for each in best_of(place)["held_out"]["candidates"].items()]
    assert [(row[0], row[1]) for row in sizes.rows] == [(run, name) for run, name, _ in judged]
    for row, (_, _, figures) in zip(sizes.rows, judged, strict=True):
        shown = dict(zip(sizes.head, row, strict=True))
        assert near(shown["KL [nats/token]"], figures["kl"])
        assert shown["bpw"] == f"{figures['bpw']:.4f}"
    head, *rows = page.tables["what each run found"]
    for row, place in zip(rows, places, strict=True):
        shown = dict(zip(head, row, strict=True))
        assert shown["run"] == place.name
        assert int(shown["candidate tokens"].replace(",", "")) == best_of(place)["candidate_tokens"]
        assert near(shown["KL [nats/token]"], best_of(place)["held_out"]["candidates"]["found"]["kl"])
    # The tiny model of six blocks is another one.
    assert "Note: these runs are of different models; their losses do not compare." in page.words["p"]


def test_several_runs_of_which_none_is_judged(runs: Runs, tmp_path: Path) -> None:
    one = copied(runs.bits, tmp_path / "one", "best.json", "*.parquet", "evaluations")
    two = copied(runs.baseline, tmp_path / "two", "best.json")
    write_report([str(one), str(two)], str(tmp_path / "out"))
    page = read_page((tmp_path / "out" / "index.html").read_text())
    assert list(page.figures) == ["run-1-errors", "run-2-errors"]
    assert [row[1] for row in page.tables["what each run found"][1:]] == [
        "no generation is finished yet", "baseline dp, not finished",
    ]  # fmt: skip


def test_names_that_tell_runs_apart() -> None:
    def named(*places: str) -> list[str]:
        return named_apart([Location.parse(place) for place in places])

    assert named("/a/run") == ["run"]
    assert named("/a/one", "/b/two") == ["one", "two"]
    assert named("/x/a/run", "/x/b/run", "/x/c/other") == ["a/run", "b/run", "c/other"]
    assert named("/run", "/a/run") == ["/run".strip("/"), "a/run"]


def test_json_has_the_numbers(runs: Runs, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evoray", "report", str(runs.bits), "--out", str(tmp_path), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert found["page"] == str(tmp_path / "index.html")
    (run,) = found["runs"]
    rows = pq.read_table(runs.bits / "generations.parquet").to_pylist()
    assert [each["fitness"] for each in run["generations"]] == [row["fitness"] for row in rows]
    configuration = best_of(runs.bits)["configuration"]
    assert {cell["site"]: cell["level"] for cell in run["allocation"]["cells"]} == configuration
    assert sum(part["bytes"] for part in run["parts"]) == best_of(runs.bits)["size"]


def test_it_answers_without_torch(runs: Runs, tmp_path: Path) -> None:
    script = (
        f"import sys, evoray.cli\ntry: evoray.cli.main(['report', {str(runs.drops)!r}, '--out', {str(tmp_path)!r}])\n"
        "finally: print({'torch', 'ray', 'transformers', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert shown.stdout.endswith("set()\n")
    assert shown.stderr == ""


def test_what_is_no_run(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (str(tmp_path), runs.material.store, str(tmp_path / "nope")):
        with pytest.raises(UserError, match=r"is no run directory \(no identity\.json\)"):
            write_report([str(runs.bits), place], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="give one run directory or more"):
        write_report([])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'evoray\[plots\]'"):
        write_report([str(runs.bits)], str(tmp_path / "out"))


def test_numbers_need_no_matplotlib(runs: Runs) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\nfrom evoray.report.numbers import read_run\n"
        f"print(read_run({str(runs.bits)!r}).name)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert shown.stdout == "bits\n"
