"""A report in every form: files, several runs, runs that are not finished, text of users, mistakes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from report_pages import Page, Runs, assert_alone, best_of, column, near, read_page
from searches import Material

from evoray.errors import UserError
from evoray.report.reading import named_apart
from evoray.run.report import write_report
from evoray.store import Location


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
        f"run-{key}" for key in ("loss", "allocation", "bytes", "errors", "funnel", "busy")
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
    assert list(page.figures) == ["run-loss", "run-errors", "run-funnel", "run-busy"]
    assert "best.json is not there yet" in page.words["dd"]


def test_not_judged_yet(runs: Runs, tmp_path: Path) -> None:
    run = copied(runs.bits, tmp_path / "run")
    best = best_of(run)
    del best["held_out"]
    (run / "best.json").write_text(json.dumps(best))
    page = reported(run)
    assert list(page.figures) == ["run-loss", "run-allocation", "run-bytes", "run-errors", "run-funnel", "run-busy"]
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
        assert list(page.figures) == ["run-loss", "run-allocation", "run-bytes", "run-funnel", "run-busy"]
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
        "import sys; sys.modules['matplotlib'] = None\nfrom evoray.report.reading import read_run\n"
        f"print(read_run({str(runs.bits)!r}).name)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert shown.stdout == "bits\n"
