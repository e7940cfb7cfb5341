"""Several budgets in one job: each seeds the next, workers and teacher are shared, and nothing is done twice."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from searches import WITHOUT_STORE, Material, bits_of, killed_at

from evoray import cli
from evoray.errors import UserError
from evoray.report.sweep import sweep_estimate
from evoray.run import sweep as module
from evoray.run.budgets import SweepRecord
from evoray.run.directory import LEARNED, TAUGHT, read_lessons
from evoray.run.journal import Journal
from evoray.run.plan import plan_search
from evoray.run.progress import Progress
from evoray.run.sweep import planned, sweep
from evoray.settings import SearchSettings, SweepSettings, load_settings
from evoray.space import configuration_costs
from evoray.store import Location, VariantStore

Settings = Callable[..., SweepSettings]


@pytest.fixture
def settings(material: Material) -> Settings:
    """Of a sweep: those of a search, with a list of budgets."""

    def made(run: Path, **changes: Any) -> SweepSettings:
        values = (
            material.settings(run).model_dump() | {"target_bits": (2.5, 3.0, 3.5), "seeded_generations": 2} | changes
        )
        return SweepSettings(**values)

    return made


def files_of(run: Path) -> dict[str, bytes]:
    """What a second call must not write again."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.name in ("generations.parquet", "best.json", "start.json")
    }


def test_every_budget_is_kept_and_seeded_by_the_one_before(
    material: Material, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    start = module.started_pool

    @contextmanager
    def counted(*arguments: Any) -> Iterator[Any]:
        opened.append(arguments)
        with start(*arguments) as pool:
            yield pool

    monkeypatch.setattr(module, "started_pool", counted)
    found = sweep(settings(tmp_path))
    assert len(opened) == 1, "the model is loaded once"
    assert list(found.results) == [3.5, 3.0, 2.5]
    manifest = VariantStore.open(material.store).manifest
    for value, result in found.results.items():
        bits = configuration_costs(manifest, result.configuration).bits
        assert bits == result.best["bits"] <= value
        journal = Journal(Location.parse(result.run))
        # Fewer where another budget seeds.
        assert [row.generation for row in journal.rows] == ([1, 2, 3, 4] if value == 3.0 else [1, 2])
        assert not (Path(result.run) / "teacher").exists()
    assert len(list((tmp_path / "teacher").glob("index.json"))) == 1
    commands = {result.best["command"] for result in found.results.values()}
    assert len(commands) == 1
    assert "evoray sweep " in (command := commands.pop())
    assert "--target-bits 2.5,3.0,3.5 " in command
    # The start differs from what seeded it by steps one way only.
    for value, other in ((3.5, 3.0), (2.5, 3.0)):
        run = Path(found.results[value].run)
        begun = json.loads((run / "start.json").read_text())
        assert begun["baseline"] == f"adapted from {other:g}"
        space = plan_search(planned(settings(tmp_path))[value][0]).ground.space
        before = space.genotype(found.results[other].configuration)
        steps = [new - old for new, old in zip(begun["genotype"], before, strict=True)]
        one_way = all(step >= 0 if value > other else step <= 0 for step in steps)
        assert one_way or tuple(begun["genotype"]) == space.uniform()
        assert found.results[value].best["candidate_tokens"] > begun["candidate_tokens"] > 0


@pytest.mark.parametrize("ways", [{}, {"race": "sequential", "proposals": "learned"}])
def test_a_killed_sweep_goes_on_to_the_same_result(settings: Settings, tmp_path: Path, ways: dict[str, str]) -> None:
    whole = sweep(settings(tmp_path / "whole", **ways))
    broken = settings(tmp_path / "broken", **ways)
    # In the second budget's start, in its first generation, and in the third's best.json.
    for name, number, after in (("start.json", 0, True), ("generations.parquet", 0, True), ("best.json", 4, False)):
        with killed_at(name, number, after=after):
            sweep(broken)
    found = sweep(broken)
    for value, result in whole.results.items():
        assert bits_of(found.results[value].run) == bits_of(result.run)


def test_what_one_budget_taught_the_next_begins_with(settings: Settings, tmp_path: Path) -> None:
    found = sweep(settings(tmp_path, target_bits=(3.5, 3.0), race="sequential", proposals="learned"))
    first, second = (Location.parse(found.results[value].run) for value in (3.5, 3.0))
    assert read_lessons(first / TAUGHT) is None
    learned, taught = read_lessons(first / LEARNED), read_lessons(second / TAUGHT)
    assert learned is not None
    assert taught is not None
    assert all(np.array_equal(learned[name], taught[name]) for name in learned)
    later = read_lessons(second / LEARNED)
    assert later is not None
    assert later["candidates"] > taught["candidates"] > 0
    # The first offspring are those of a model that knows all this.
    plan = plan_search(
        planned(settings(tmp_path, target_bits=(3.5, 3.0), race="sequential", proposals="learned"))[3.0][0]
    )
    start = tuple(json.loads((tmp_path / "target-bits-3" / "start.json").read_text())["genotype"])
    wanted = plan.strategy(start, learned).ask().ask()
    assert wanted is not None
    journal = Journal(second)
    measured = {tuple(row["genotype"]) for row in journal.evaluations(journal.rows[0]).to_pylist()}
    assert set(wanted.genotypes) <= measured
    blind = plan.strategy(start).ask().ask()
    assert blind is not None
    assert not set(blind.genotypes) <= measured


def test_a_later_call_adds_budgets_and_does_nothing_twice(settings: Settings, tmp_path: Path) -> None:
    sweep(settings(tmp_path, target_bits=(3.5, 2.5)))
    kept = files_of(tmp_path)
    found = sweep(settings(tmp_path, target_bits=(2.4,)))
    assert list(found.results) == [3.5, 2.5, 2.4]
    assert json.loads((tmp_path / "sweep.json").read_text())["seeds"] == [[3.5, None], [2.5, 3.5], [2.4, 2.5]]
    assert {name: data for name, data in files_of(tmp_path).items() if name in kept} == kept
    # What earlier calls found costs nothing more.
    estimate = sweep_estimate(settings(tmp_path, target_bits=(2.4,)))[1]
    assert [each["target_bits"] for each in estimate["searches"]] == [2.4]
    again = sweep(settings(tmp_path, target_bits=(2.4, 2.5, 3.5)))
    assert [result.best for result in again.results.values()] == [result.best for result in found.results.values()]
    # Each is a search like any other: it goes on by itself, and is the same to whoever reads runs.
    assert SearchSettings(**planned(settings(tmp_path))[2.4][0].model_dump()).generations == 2


def test_a_seeded_budget_takes_a_fifth_of_the_generations(settings: Settings, tmp_path: Path) -> None:
    found = planned(settings(tmp_path, generations=11, seeded_generations=None))
    assert [found[value][0].generations for value in (3.5, 3.0, 2.5)] == [3, 11, 3]
    assert planned(settings(tmp_path, generations=11, seeded_generations=0))[3.5][0].generations == 0


@settings_of(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([2.25, 2.5, 3.0, 3.25, 3.5, 4.0, 5.0]), min_size=1, unique=True))
def test_each_budget_is_seeded_by_the_nearest_that_there_is_and_the_first_is_the_middle_one(
    values: list[float],
) -> None:
    record = SweepRecord(Location.parse("/nowhere"), "target_bits").with_values(values)
    order = list(record.seeds)
    assert sorted(order) == sorted(values)
    assert order[0] == sorted(values)[len(values) // 2]
    for number, value in enumerate(order[1:], 1):
        seed, before = record.seeds[value], order[:number]
        assert seed in before
        # No other of those to come is nearer to what there is.
        least = min(abs(other - there) for other in order[number:] for there in before)
        assert abs(value - seed) == least


def test_what_is_dropped_can_be_swept(material: Material, tmp_path: Path) -> None:
    values = material.settings(tmp_path, **WITHOUT_STORE, drop_blocks=1).model_dump() | {"drop_blocks": (2, 1)}
    found = sweep(SweepSettings(**values))
    assert list(found.results) == [1, 2]
    for value, result in found.results.items():
        dropped = [site for site, level in result.configuration.items() if level == "dropped"]
        assert len(dropped) == 2 * value


def test_the_table_and_the_numbers(
    material: Material, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(tmp_path, target_bits=(2.5, 3.5)).model_dump(exclude_none=True)
    (tmp_path / "sweep.yaml").write_text(json.dumps(json.loads(json.dumps(values, default=str))))
    texts = []
    for flags in (["--dry-run"], [], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["sweep", "--config", str(tmp_path / "sweep.yaml"), "--quiet", *flags])
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    dry, table, numbers = texts
    assert re.search(r"│ +2.5 │ +3.5 │ +[0-9,]+ │", dry)
    found = json.loads(numbers)
    assert [search["target_bits"] for search in found["searches"]] == [3.5, 2.5]
    bits = [f"{search['bits']:.4f} bits with KL " for search in found["searches"]]
    assert re.match(f"done: {bits[0]}.*; {bits[1]}.*; the results are in {tmp_path}$", table.splitlines()[-1])
    for search in found["searches"]:
        assert f"{search['held_out']['candidates']['found']['kl']:.5f}" in table
        assert f"{search['bpw']:.4f}" in table
    page = Path(found["report"])
    assert page == tmp_path / "report" / "index.html"
    assert page.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_bits": (3, 3)}, "--target-bits 3.0,3.0: give one or more, all different"),
        ({"target_bits": ()}, "--target-bits : give one or more"),
        ({"drop_blocks": (1, 2)}, "a sweep is over one kind of budget"),
        ({"init": "dp"}, "each budget seeds the next"),
        ({"target_bits": (0, 3)}, "--target-bits 0"),
        ({"target_bits": [True, 3]}, "a switch stands in it"),
    ],
)
def test_mistakes(settings: Settings, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    values = settings(tmp_path).model_dump()
    with pytest.raises(UserError) as caught:
        load_settings(SweepSettings, {key: value for key, value in (values | changes).items() if value is not None})
    assert said in str(caught.value)


def test_another_sweep_or_a_gap_is_refused(material: Material, settings: Settings, tmp_path: Path) -> None:
    with killed_at("best.json", 0, after=True):
        sweep(settings(tmp_path, target_bits=(3.5,)))
    with pytest.raises(UserError, match=r"has target-bits-3.5 half done, which seeds target-bits-3; name 3.5"):
        sweep(settings(tmp_path, target_bits=(3.0,)))
    with pytest.raises(UserError, match="holds a sweep over --target-bits"):
        sweep(settings(tmp_path, target_bits=None, target_bpw=(3.0,)))
    for text in ("{", "[]", '{"budget": "x", "seeds": []}', '{"budget": "target_bits", "seeds": [[3, 4], [4, 3]]}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            sweep(settings(tmp_path))


def test_a_later_call_of_other_settings_is_refused(settings: Settings, tmp_path: Path) -> None:
    sweep(settings(tmp_path, target_bits=(3.0,)))
    for changes, said in (
        ({"seed": 7}, "seed: 0 there, 7 now"),
        ({"fitness": "perplexity"}, 'fitness: "kl" there, "perplexity" now'),
        ({"levels": "3,4"}, "levels: "),
    ):
        with pytest.raises(UserError, match=rf"target-bits-3 was searched with other settings \({said}"):
            sweep(settings(tmp_path, target_bits=(3.5,), **changes))
        assert not (tmp_path / "target-bits-3.5").exists()
    # How long, where and on how many workers says nothing of what is found.
    assert list(sweep(settings(tmp_path, target_bits=(3.5,), generations=3)).results) == [3.5, 3.0]


def test_what_was_learned_of_other_levels_is_not_taken_over(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    class Told(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    limited = {"race": "sequential", "proposals": "learned", "survey": 0, "target_bits": (2.0, 3.0), "max_level": 1}
    found = sweep(settings(tmp_path, **limited), Told())
    assert len(found.results) == 2
    assert "what was learned for the other budget is of other levels, and not taken over" in notes
    for run in (tmp_path / "target-bits-2", tmp_path / "target-bits-3"):
        assert not (run / TAUGHT).exists()


def test_a_budget_out_of_reach_is_refused_before_anything_is_written(settings: Settings, tmp_path: Path) -> None:
    for wrong in ((3.0, 1.0), (100.0, 3.0)):
        with pytest.raises(UserError, match=f"target {wrong[1 if wrong[0] == 3 else 0]:g} bits is"):
            sweep(settings(tmp_path, target_bits=wrong))
        assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_call_did_not_begin_binds_nobody(settings: Settings, tmp_path: Path) -> None:
    seeds = [[3.9, None], [3.5, 3.9], [3.0, 3.5]]
    (tmp_path / "sweep.json").write_text(json.dumps({"budget": "target_bits", "seeds": seeds}))
    found = sweep(settings(tmp_path, target_bits=(3.0, 2.5)))
    assert list(found.results) == [3.0, 2.5]
    assert json.loads((tmp_path / "sweep.json").read_text())["seeds"] == [[3.0, None], [2.5, 3.0]]


def test_budgets_that_differ_late_have_directories_of_their_own(settings: Settings, tmp_path: Path) -> None:
    found = sweep(settings(tmp_path / "bits", target_bits=(2.8000001, 2.8)))
    assert [Path(result.run).name for result in found.results.values()] == ["target-bits-2.8000001", "target-bits-2.8"]
    # A later call finds what was made for a size of many digits.
    sizes = settings(tmp_path / "sizes", target_bits=None, target_size=(1234567, 1234568))
    record = SweepRecord(Location.parse(tmp_path / "sizes"), "target_size").with_values((1234567, 1234568))
    before = [search.run for search, _ in planned(sizes).values()]
    assert [Path(run).name for run in before] == ["target-size-1234568", "target-size-1234567"]
    Path(before[0]).mkdir(parents=True)
    (Path(before[0]) / "best.json").write_text("{}")
    record.write()
    assert [search.run for search, _ in planned(sizes).values()] == before


def test_a_sweeps_folder_is_shown_and_reported_on_and_told_from_a_run(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--quiet"])
        assert ended.value.code == code
        out, err = capsys.readouterr()
        return err if code else out

    place = str(tmp_path / "sweep")
    with killed_at("best.json", 4, after=True):
        sweep(settings(tmp_path / "sweep", target_bits=(3.5, 3.0), generations=2))
    bests = {
        value: json.loads((tmp_path / f"sweep/target-bits-{value}/best.json").read_text()) for value in ("3.5", "3")
    }
    assert ["held_out" in best for best in bests.values()] == [True, False]
    shown = said("inspect", place)
    assert f"{bests['3.5']['held_out']['candidates']['found']['kl']:.5f}" in shown
    assert "not finished: target-bits-3; the same evoray sweep goes on with it" in shown
    searches = json.loads(said("inspect", place, "--json"))["searches"]
    assert [(each["target_bits"], each["finished"], each["bits"]) for each in searches] == [
        (3.5, True, bests["3.5"]["bits"]),
        (3.0, False, bests["3"]["bits"]),
    ]
    report = json.loads(said("report", place, "--json"))
    assert report["page"] == f"{place}/report/index.html"
    assert [run["place"] for run in report["runs"]] == [f"{place}/target-bits-3.5", f"{place}/target-bits-3"]
    for verb in (
        ["eval", "--data", "x", "--configuration", place],
        ["export", "--out", str(tmp_path / "out"), "--configuration", place],
        ["inspect", "monotonicity", place],
    ):
        assert said(*verb, code=2) == (
            f"error: {place} is the folder of a sweep; give one of its run directories: {place}/target-bits-3.5, "
            f"{place}/target-bits-3\n"
        )
