"""Runs of every form, and their pages."""

import pytest
from report_pages import Page, Runs, baseline_settings, read_page
from searches import WITHOUT_STORE, Material

from evoray.run.baseline import run_baseline
from evoray.run.report import write_report
from evoray.run.search import search


@pytest.fixture(scope="package")
def runs(material: Material, deep: Material, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("report")
    made = Runs(*(folder / name for name in ("bits", "drops", "bare", "dp")), material, deep)
    search(material.settings(made.bits, generations=3))
    search(deep.settings(made.drops, generations=2, target_bits=2.3, allow_drops=True, init="dp"))
    search(deep.settings(made.bare, generations=2, **WITHOUT_STORE, drop_blocks=2, initial_candidates=4))
    run_baseline(baseline_settings(material, made.baseline, "dp"))
    return made


@pytest.fixture(scope="package")
def pages(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The page of each run."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for run in (runs.bits, runs.drops, runs.bare, runs.baseline):
        write_report([str(run)], str(folder / run.name))
        found[run.name] = read_page((folder / run.name / "index.html").read_text())
    return found
