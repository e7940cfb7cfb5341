"""What people expect of a command line: JSON of every verb, quiet pipes, completion, Ctrl-C, and recipes."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from calls import Call
from searches import Material, bits_of

from evoray.run.best import SearchResult
from evoray.settings import BuildSettings, SearchSettings, recipes
from evoray.store import StoreWriter, VariantStore

VERBS = ("build", "search", "sweep", "baseline", "eval", "export", "inspect", "report", "recipes", "demo")

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
"""Any control character but the end of a line."""


def building(material: Material, store: Path) -> list[str]:
    """A build of 21 layers on real Hessians."""
    return [
        *("build", "--model", material.model, "--data", material.text, "--store", str(store), "--levels", "2,4"),
        *("--group-size", "32", "--sequence-length", "64", "--hessian-tokens", "512", "--threads", "1"),
    ]


def choosing(verb: str, material: Material, run: Path, *more: object) -> list[str]:
    """A search or a baseline of a moment."""
    return [
        *(verb, "--model", material.model, "--store", material.store, "--data", material.text, "--run", str(run)),
        *("--sequence-length", "64", "--search-tokens", "2048", "--judge-tokens", "512", "--workers", "0"),
        *map(str, more),
    ]


QUICK = ("--offspring", 4, "--survivors", "2,1", "--tokens", "64,128", "--initial-candidates", 3)


def test_a_build_answers_as_inspect_does(call: Call, material: Material, tmp_path: Path) -> None:
    built = call("--quiet", *building(material, tmp_path / "store"), "--json")
    assert (built.code, built.err) == (0, "")
    assert json.loads(built.out) == json.loads(call("inspect", tmp_path / "store", "--json").out)
    assert json.loads(built.out)["layers"] == 21
    # Asked again it has nothing to do, and says the same.
    assert call(*building(material, tmp_path / "store"), "--json").out == built.out


def test_a_dry_run_answers_in_numbers(call: Call, material: Material, tmp_path: Path) -> None:
    build = json.loads(call(*building(material, tmp_path / "store"), "--dry-run", "--json").out)
    assert not (tmp_path / "store").exists()
    call("--quiet", *building(material, tmp_path / "store"))
    manifest = VariantStore.open(str(tmp_path / "store")).manifest
    assert build["disk_bytes"] == sum(cost.bytes for layer in manifest.layers for cost in layer.costs.values())
    assert (build["layers"], build["levels"], build["hessian_tokens"]) == (21, ["2", "4"], 512)
    assert build["base_model_bytes"] < build["worker_memory_bytes"] < build["base_model_bytes"] + (400 << 20)
    searching = choosing("search", material, tmp_path / "run", *QUICK, "--target-bits", 2.8, "--generations", 3)
    search = json.loads(call(*searching, "--dry-run", "--json").out)
    # Four offspring and their parent, then two and the parent, of each generation.
    assert search["candidate_tokens_per_generation"] == 5 * 64 + 3 * 128
    assert (search["candidate_tokens"], search["search_tokens"]) == (3 * (5 * 64 + 3 * 128), 2048)
    assert search["layers"] == 21
    assert f"{search['candidate_tokens']:,} at most" in call(*searching, "--dry-run").out
    assert not (tmp_path / "run").exists()


def test_an_export_and_the_demo_answer_in_json(
    call: Call, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = tmp_path / "drops.txt"
    drops.write_text("model.layers.0.mlp: dropped\n")
    arguments = ("export", "--configuration", drops, "--model", material.model, "--out", tmp_path / "out", "--json")
    assert json.loads(call(*arguments).out) == {"out": str(tmp_path / "out"), "format": "hf"}
    assert (tmp_path / "out" / "config.json").exists()
    import evoray.run.demo

    held_out = {"candidates": {"found": {"kl": 0.25}}, "tokens": 1, "data": "embedded"}
    best = {"bits": 3.0, "size": 2_000_000, "held_out": held_out}
    monkeypatch.setattr(evoray.run.demo, "run_demo", lambda *_: SearchResult("demo/run", best, "it ended"))
    shown = call("demo", "--json")
    assert json.loads(shown.out) == {"run": "demo/run", "reason": "it ended", **best}
    # Programs read standard output; the last line of a log tells the outcome all the same.
    assert shown.err == (
        "done: 3.0000 bits, 2.00 MB, KL 0.25000 nats per token on held-out text; it ended; "
        "the result is in demo/run/best.json\n"
    )
    assert (shown.code, call("demo", "--json", "--quiet").err) == (0, "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_the_switches_of_all(call: Call, verb: str) -> None:
    text = " ".join(call(verb, "--help").out.replace("│", " ").split())
    for switch in ("--json", "--quiet", "--debug", "--help"):
        assert switch in text, switch
    assert f"Example: evoray {verb}" in text


def test_pipes_get_few_plain_lines(call: Call, material: Material, tmp_path: Path) -> None:
    built = call(*building(material, tmp_path / "store"))
    assert built.code == 0
    assert not CONTROL.search(built.out + built.err)
    assert len(built.err.splitlines()) <= 13  # about ten of them, however many layers
    assert built.err.splitlines()[-1] == "21/21 layers"
    assert built.out.splitlines()[-1] == f"done: 21 layers at 2 levels; the variants are in {tmp_path / 'store'}"
    searched = call(
        *choosing("search", material, tmp_path / "run", *QUICK, "--target-bits", 2.8, "--generations", 30),
    )
    assert not CONTROL.search(searched.out + searched.err)
    lines = searched.err.splitlines()
    assert sum(line.startswith("generation ") for line in lines) == 31
    assert len(lines) <= 31 + 5
    assert all(len(line) < 200 for line in lines)


class Writes:
    """Counts what is written into stores, and presses Ctrl-C before one of the writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> None:
        self.layers: list[str] = []
        write = StoreWriter.write

        def counted(writer: StoreWriter, entry: Any, variants: Any, *, name: bool = True) -> Any:
            if len(self.layers) == stop_at:
                raise KeyboardInterrupt
            self.layers.append(entry.name)
            return write(writer, entry, variants, name=name)

        monkeypatch.setattr(StoreWriter, "write", counted)


def test_a_build_stopped_by_control_c_goes_on(
    call: Call, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        first = Writes(patch, stop_at=9)
        stopped = call(*building(material, tmp_path / "store"))
    assert (stopped.code, stopped.out) == (130, "")
    said = f"stopped; {tmp_path / 'store'} keeps every finished layer: the same command goes on with it"
    assert stopped.err.splitlines()[-1] == said
    with monkeypatch.context() as patch:
        second = Writes(patch, stop_at=None)
        assert call(*building(material, tmp_path / "store")).code == 0
    assert (len(first.layers), len(second.layers)) == (9, 12)
    assert not set(first.layers) & set(second.layers)
    call(*building(material, tmp_path / "whole"))
    for file in (tmp_path / "whole" / "layers").iterdir():
        assert file.read_bytes() == (tmp_path / "store" / "layers" / file.name).read_bytes(), file.name


def test_a_baseline_stopped_by_control_c_begins_anew(
    call: Call, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evoray.run.baseline

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = ("--method", "random", "--candidates", 5, "--tokens", 128, "--target-bits", 2.8)
    with monkeypatch.context() as patch:
        patch.setattr(evoray.run.baseline, "judged_candidates", pressed)
        stopped = call(*choosing("baseline", material, tmp_path / "run", *arguments))
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.splitlines()[-1].endswith("the same command begins it anew")
    again = json.loads(call(*choosing("baseline", material, tmp_path / "run", *arguments), "--json").out)
    whole = json.loads(call(*choosing("baseline", material, tmp_path / "whole", *arguments), "--json").out)
    same = whole.keys() - {"run", "seconds"}
    assert {key: again[key] for key in same} == {key: whole[key] for key in same}


def completed(call: Call, monkeypatch: pytest.MonkeyPatch, words: str) -> list[str]:
    """What bash is offered for the last word."""
    with monkeypatch.context() as patch:
        patch.setenv("_EVORAY_COMPLETE", "complete_bash")
        patch.setenv("COMP_WORDS", words)
        patch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        return call().out.split()


def test_a_shell_completes_verbs_flags_choices_and_recipes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed(call, monkeypatch, "evoray re") == ["report", "recipes"]
    assert set(completed(call, monkeypatch, "evoray ")) == set(VERBS)
    assert "--target-bits" in completed(call, monkeypatch, "evoray search --target-b")
    assert completed(call, monkeypatch, "evoray search --fitness kl-") == ["kl-topk", "kl-topk-renormalised"]
    assert completed(call, monkeypatch, "evoray build --dtype ") == ["auto", "float32", "float16", "bfloat16"]
    llama = [recipe.name for recipe in recipes() if recipe.name.startswith("evopress-bits/llama-3-8b/")]
    for words in ("search --recipe", "build --recipe", "recipes"):
        assert completed(call, monkeypatch, f"evoray {words} evopress-bits/llama-3-8b/") == llama
    assert completed(call, monkeypatch, "evoray search --model ") == []  # left to the shell, which offers files


def test_completion_is_shown_and_installed(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which shell is asked of its processes otherwise.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = call("--show-completion", "bash")
    assert (shown.code, "_EVORAY_COMPLETE=complete_bash" in shown.out) == (0, True)
    assert call("--install-completion", "bash").code == 0
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert script.read_text().strip() == shown.out.strip()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_recipes_are_listed_and_shown(call: Call) -> None:
    table, listed = call("recipes"), json.loads(call("recipes", "--json").out)
    assert [each["name"] for each in listed] == [recipe.name for recipe in recipes()]
    for recipe in recipes():
        family, model, budget = recipe.place
        (row,) = [line for line in table.out.splitlines() if line.startswith(f"│ {family}/{model} ")]
        _, _, budgets, blocks, name, _ = (part.strip() for part in row.split("│"))
        assert budget in budgets.split(", ")
        assert (int(blocks), name) == (recipe.blocks, recipe.model)
    some = json.loads(call("recipes", "evopress-depth/llama-3-8b", "--json").out)
    assert [(each["search"]["drop_blocks"], each["build"]) for each in some] == [(n, None) for n in (4, 8, 12, 16)]
    unknown = call("recipes", "evopress-dept/llama-3-8b/0.5")
    assert (unknown.code, unknown.out, unknown.err.count("\n")) == (2, "", 1)
    assert "near are evopress-depth/llama-3-8b/0.5" in unknown.err


@pytest.mark.parametrize("name", ["evopress-sparsity/phi-3-medium/0.7", "depth/qwen3-8b/0.25"])
def test_the_commands_of_a_recipe_are_ones_that_work(call: Call, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import evoray.run.build
    import evoray.run.search

    asked: list[BuildSettings | SearchSettings] = []

    def ask(settings: BuildSettings | SearchSettings, progress: object) -> None:
        asked.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(evoray.run.build, "run_build", ask)
    monkeypatch.setattr(evoray.run.search, "search", ask)
    found = json.loads(call("recipes", name, "--json").out)
    page = call("recipes", name).out
    for command in found["commands"]:
        assert command in page.splitlines()
        assert call(*shlex.split(command)[1:]).code == 130
    parts = [part for part in ("build", "search") if found[part] is not None]
    assert len(asked) == len(parts)
    for part, settings in zip(parts, asked, strict=True):
        values = settings.model_dump(mode="json")
        assert type(settings) is {"build": BuildSettings, "search": SearchSettings}[part]
        assert {key: values[key] for key in found[part]} == found[part]


def test_a_search_by_a_recipe_is_the_one_of_its_flags(call: Call, material: Material, tmp_path: Path) -> None:
    small = (*QUICK, "--generations", 2)
    arguments = choosing("search", material, tmp_path / "run", "--recipe", "bits/qwen3-8b/2.5", *small)
    assert call(*arguments).code == 0
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["bits"] <= 2.5
    assert "--recipe" not in best["command"]
    call(*choosing("search", material, tmp_path / "flags", "--target-bits", 2.5, *small))
    assert bits_of(tmp_path / "run") == bits_of(tmp_path / "flags")
    # A finished run is gone on with and read under its recipe.
    assert json.loads(call(*arguments, "--json").out)["bits"] == best["bits"]
    assert call("inspect", "monotonicity", tmp_path / "run").code == 0


def test_an_unknown_logger_is_one_line(call: Call, material: Material, tmp_path: Path) -> None:
    wrong = call(*choosing("search", material, tmp_path / "run", "--recipe", "bits/qwen3-8b/2.5", "--log-to", "x"))
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "--log-to 'x': no such logger" in wrong.err
