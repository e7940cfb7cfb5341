"""A run that was stopped, killed or cut short anywhere ends as one that never was."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from searches import Material, bits_of, searching_with

from evoray.cluster import LocalPool
from evoray.errors import EvorayError, UserError
from evoray.run.journal import Journal
from evoray.run.progress import Progress
from evoray.run.search import search
from evoray.store import Location


@pytest.fixture(scope="module")
def pool(material: Material) -> Iterator[LocalPool]:
    with LocalPool(material.spec) as pool, searching_with(pool):
        yield pool


@pytest.fixture(scope="module")
def whole(pool: LocalPool, material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    search(material.settings(run))
    return bits_of(run)


def test_the_whole_run_is_one_worth_comparing(whole: dict[str, Any]) -> None:
    assert [row["generation"] for row in whole["generations"]] == [0, 1, 2, 3, 4]
    assert len({tuple(row["winner"]) for row in whole["generations"]}) > 1
    assert len({row["sha256"] for row in whole["generations"]}) == 5


@pytest.mark.parametrize(
    "rules",
    [
        {"race": "halving", "proposals": "screened"},
        {"race": "sequential", "proposals": "mutation"},
        {"race": "sequential", "proposals": "learned", "merge": True},
        {"race": "sequential", "proposals": "learned", "population": 2, "survivors": (4, 2)},
        {"race": "sequential", "proposals": "learned", "survey": 20, "guesses": True},
        {"race": "sequential", "proposals": "learned", "invert": True, "fitness": "perplexity"},
    ],
    ids=lambda rules: "-".join(map(str, rules.values())),
)
def test_what_a_search_learned_is_there_again_when_it_goes_on(
    pool: LocalPool, material: Material, tmp_path: Path, rules: dict[str, Any]
) -> None:
    search(material.settings(tmp_path / "whole", **rules))
    for generations in range(5):
        search(material.settings(tmp_path / "cut", **{**rules, "generations": generations}))
    whole, cut = bits_of(tmp_path / "whole"), bits_of(tmp_path / "cut")
    assert whole["generations"] == cut["generations"]
    assert {key: value for key, value in whole["best"].items() if key != "command"} == {
        key: value for key, value in cut["best"].items() if key != "command"
    }
    # What winners may owe to luck is added up over the whole run.
    winners = [row for row in whole["generations"] if row["doubt"] is not None]
    risks = [row["risk"] for row in whole["generations"] if row["risk"] is not None]
    said = {"children": len(winners), "false_at_most": min(sum(risks), len(winners))} if winners else None
    assert whole["best"].get("accepted") == said
    assert rules["race"] == "sequential" or not risks


class _KilledError(BaseException):
    """Nothing in the package may catch it, as nothing catches a killed process."""


def test_a_driver_killed_before_or_after_any_write_resumes_to_the_same_run(
    whole: dict[str, Any], material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Location.write_bytes, list[str]()
    die_at, after = -1, False

    def counted(self: Location, data: bytes) -> None:
        now = len(written) == die_at
        written.append(self.name)
        if now and not after:
            raise _KilledError
        write(self, data)
        if now:
            raise _KilledError

    monkeypatch.setattr(Location, "write_bytes", counted)
    run = tmp_path / "run"
    search(material.settings(run, generations=2))
    per_run = list(written)
    assert per_run.count("generations.parquet") == 3
    assert per_run.count("batches.parquet") == 3
    shutil.rmtree(run)
    for die_at in range(len(per_run)):
        # Killed after one write is killed before the next, but for the last one.
        after = die_at == len(per_run) - 1
        written.clear()
        with pytest.raises(_KilledError):
            search(material.settings(run, generations=2))
        written.clear()
        die, die_at = die_at, -1
        search(material.settings(run))
        assert bits_of(run) == whole, f"killed at write {die}, of {per_run[die]}"
        shutil.rmtree(run)


def test_a_run_stopped_by_tokens_goes_on(whole: dict[str, Any], material: Material, tmp_path: Path) -> None:
    first = search(material.settings(tmp_path, max_tokens=3000))
    rows = Journal(Location.parse(str(tmp_path))).rows
    assert first.reason == f"--max-tokens 3000 reached with {sum(row.tokens for row in rows)}"
    assert sum(row.tokens for row in rows[:-1]) < 3000 <= sum(row.tokens for row in rows)
    assert 1 < len(rows) < 5
    assert search(material.settings(tmp_path)).reason == "all 4 generations are done"
    assert bits_of(tmp_path) == whole


def test_tokens_of_the_start_count(material: Material, tmp_path: Path) -> None:
    first = search(material.settings(tmp_path, init="random", max_tokens=2))
    assert first.best["generation"] == 0
    assert first.reason == f"--max-tokens 2 reached with {first.best['candidate_tokens']}"
    later = search(material.settings(tmp_path, init="random", max_tokens=first.best["candidate_tokens"] + 1))
    assert later.best["generation"] == 1
    assert later.reason.endswith(f"reached with {later.best['candidate_tokens']}")


def test_a_search_of_surveys_alone_says_so(material: Material, tmp_path: Path) -> None:
    notes: list[str] = []

    class Told(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    surveys = {"race": "sequential", "proposals": "learned", "generations": 2}
    search(material.settings(tmp_path / "surveys", **surveys, survey=1000), Told())
    assert any(
        note.startswith("all generations were surveys (--survey 1000), in which nobody can win") for note in notes
    )
    notes.clear()
    search(material.settings(tmp_path / "races", **surveys, survey=8), Told())
    assert not any("surveys" in note for note in notes)


def test_a_run_out_of_time_is_judged_and_goes_on(whole: dict[str, Any], material: Material, tmp_path: Path) -> None:
    first = search(material.settings(tmp_path, generations=2))
    cut = search(material.settings(tmp_path, max_hours=1e-9))
    assert cut.reason == "--max-hours 1e-09 reached"
    assert cut.configuration == first.configuration
    assert "held_out" in cut.best
    search(material.settings(tmp_path))
    assert bits_of(tmp_path) == whole


def test_time_ends_no_run_before_it_has_a_start(whole: dict[str, Any], material: Material, tmp_path: Path) -> None:
    cut = search(material.settings(tmp_path, max_hours=1e-9))
    assert cut.reason == "--max-hours 1e-09 reached"
    assert [row.generation for row in Journal(Location.parse(tmp_path)).rows] == [0]
    assert "held_out" in cut.best
    search(material.settings(tmp_path))
    assert bits_of(tmp_path) == whole


def test_a_first_try_that_measured_nothing_is_replaced(
    whole: dict[str, Any], pool: LocalPool, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise EvorayError("out of memory; lower --tokens-per-pass")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "measure", fails)
        with pytest.raises(EvorayError, match="out of memory"):
            search(material.settings(tmp_path, tokens_per_pass=256))
    search(material.settings(tmp_path))
    assert bits_of(tmp_path) == whole
    with pytest.raises(UserError, match="tokens_per_pass: 128 there, 256 now"):
        search(material.settings(tmp_path, tokens_per_pass=256))


@pytest.mark.parametrize("damage", ["", "{nope", "[]", "{}", '{"configuration": {}, "fitness": {}}'])
def test_a_damaged_result_is_written_again(
    whole: dict[str, Any], material: Material, tmp_path: Path, damage: str
) -> None:
    search(material.settings(tmp_path))
    (tmp_path / "best.json").write_text(damage)
    search(material.settings(tmp_path))
    assert bits_of(tmp_path) == whole


def test_more_generations_go_on(whole: dict[str, Any], material: Material, tmp_path: Path) -> None:
    for generations in (0, 1, 3, 4):
        found = search(material.settings(tmp_path, generations=generations))
        assert found.reason == f"all {generations} generations are done"
        assert found.best["generation"] == generations
    assert bits_of(tmp_path) == whole


def test_a_finished_run_needs_no_worker_and_writes_no_result(material: Material, tmp_path: Path) -> None:
    first = search(material.settings(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with searching_with(None):
        again = search(material.settings(tmp_path))
        assert again.best == first.best
        assert again.reason == first.reason
        limited = search(material.settings(tmp_path, generations=9, max_tokens=1))
        assert limited.best == first.best
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert {path.name for path in changed if path.parent != tmp_path / "fence"} <= {"settings.yaml"}


def test_a_finished_run_is_judged_again_on_another_text(material: Material, tmp_path: Path) -> None:
    first = search(material.settings(tmp_path / "run"))
    lines = Path(material.text).read_text().splitlines()[::-1]
    (tmp_path / "other.jsonl").write_text("\n".join(line.replace("a", "z") for line in lines))
    other = search(material.settings(tmp_path / "run", judge_data=str(tmp_path / "other.jsonl")))
    assert other.configuration == first.configuration
    assert other.best["held_out"]["candidates"]["found"]["kl"] != first.best["held_out"]["candidates"]["found"]["kl"]
    assert other.best["digests"]["judge_text"] != first.best["digests"]["judge_text"]


def test_what_a_crash_left_half_written_is_removed(material: Material, whole: dict[str, Any], tmp_path: Path) -> None:
    left = [
        tmp_path / ".best.json.0123456789abcdef.tmp",
        tmp_path / "evaluations" / ".generation-00001.arrow.0123456789abcdef.tmp",
        tmp_path / "teacher" / ".00000.arrow.0123456789abcdef.tmp",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    search(material.settings(tmp_path))
    assert bits_of(tmp_path) == whole
    assert not any(path.exists() for path in left)
