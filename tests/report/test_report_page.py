"""The numbers of a report against the run directory and the store, by slow loops."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_pages import Figure, Page, Runs, best_of, column, near

from evoray.model import checkpoint_facts
from evoray.store import VariantStore


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


def test_busy_time_is_that_of_the_journal(runs: Runs, pages: dict[str, Page]) -> None:
    rows = pq.read_table(runs.bits / "generations.parquet").to_pylist()
    shown = pages["bits"].figures["run-busy"].rows
    for row, cells in zip(rows, shown, strict=True):
        (busy,) = row["busy_seconds"]
        assert 0 < busy <= row["seconds"], "one worker, in this process"
        assert cells[0] == str(row["generation"])
        assert cells[-1] == f"{100 * busy / row['seconds']:.1f} %"
