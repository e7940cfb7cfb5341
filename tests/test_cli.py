"""The command line: one clear line for every mistake, before Ray starts or a model is loaded.

Most calls run in this process; a few need one of their own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from calls import Call, Outcome
from searches import Material

from evoray import cli
from evoray.cli import main
from evoray.model import checkpoint_facts
from evoray.settings import (
    BaselineSettings,
    BuildSettings,
    EvalSettings,
    ExportSettings,
    SearchSettings,
    SweepSettings,
)
from evoray.store import VariantStore


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool opened or a model loaded is a mistake: what is wrong is found before."""
    import evoray.export.source
    import evoray.run.build
    import evoray.run.workers

    def started(*_: object, **__: object) -> None:
        raise AssertionError("started too early")

    monkeypatch.setattr(evoray.run.workers, "open_pool", started)
    monkeypatch.setattr(evoray.run.build, "load_model", started)
    monkeypatch.setattr(evoray.export.source, "load_model", started)


def refused(outcome: Outcome, said: str, code: int = 2) -> None:
    assert outcome.code == code, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert said in outcome.err
    assert outcome.out == ""


def search_of(material: Material, run: object, **changes: object) -> list[object]:
    """Arguments of the search of `Material.settings`, changed; None leaves a flag out."""
    usual = material.settings(str(run)).model_dump(exclude_unset=True) | changes
    flags = {f"--{name.replace('_', '-')}": value for name, value in usual.items() if value is not None}
    spelled = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in flags.items()}
    return ["search", *(part for pair in spelled.items() for part in pair)]


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as leaving:
        main([str(part) for part in ["--quiet", *search_of(material, run, generations=1)]])
    assert leaving.value.code == 0
    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["nonsense"], "No such command 'nonsense'"),
        (["search", "--nonsense"], "No such option: --nonsense"),
        (["search", "--seed"], "--seed"),
        (["inspect"], "Missing argument"),
        (["report"], "Missing argument"),
        (["report", "/nope"], "/nope is no run directory"),
        (["search"], "--data is missing; --model is missing; --run is missing"),
        (["search", "--config", "/nope.yaml"], "no settings file at /nope.yaml"),
        (["eval", "--model", "m", "--data", "d", "--workers", "-1", "--bos", "x"], "--workers '-1': should be"),
        (["inspect", "/nope"], "no configuration at /nope"),
        (["inspect", ""], "a place is empty"),
    ],
)
def test_mistakes_in_the_arguments(call: Call, arguments: list[str], said: str) -> None:
    refused(call(*arguments), said)


MISTAKES_OF_A_SEARCH = [
    ({"model": "/nope"}, "model '/nope': there is no such folder"),
    ({"store": "/nope"}, "no store at /nope"),
    ({"data": "/nope.txt"}, "no such text file or folder: '/nope.txt'"),
    ({"judge_data": "/nope.txt"}, "no such text file or folder: '/nope.txt'"),
    ({"target_bits": 1}, "target 1 bits is below the lowest that these levels reach: from 2.0 bits to 4.0 bits"),
    ({"target_bits": 9}, "target 9 bits is above the highest that these levels reach: from 2.0 bits to 4.0 bits"),
    ({"target_bits": "nan"}, "--target-bits 'nan': should be a finite number"),
    ({"target_bits": None}, "one budget is needed, none given"),
    ({"target_bpw": 3}, "one budget is needed, --target-bits and --target-bpw given"),
    ({"target_bits": None, "target_size": "1kB"}, "target 1000 bytes (1 kB) is below the lowest"),
    ({"levels": "2,9"}, "the store has no level 9; it holds 2, 3, 4"),
    ({"survivors": "2,1", "tokens": "64"}, "have 2 and 1 entries"),
    ({"survivors": "2,2,1", "tokens": "64,64,64"}, "survivors must fall"),
    ({"survivors": "4,2", "tokens": "64,64"}, "end with 1"),
    ({"tokens": "1,64"}, "every rung needs at least 2 tokens"),
    ({"population": 4, "survivors": "5,4", "initial_candidates": 2, "init": "dp"}, "--population 4 is more than the 2"),
    ({"tokens": "64,999999"}, "--tokens 999999: more tokens than the search text has (2048 of "),
    ({"survivors": "9,1"}, "--survivors 9: more than the 8 offspring"),
    ({"sequence_length": 4096}, "--sequence-length 4096: the model reads at most 128 tokens"),
    ({"init": "/nope"}, "no configuration at /nope"),
]


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(("changes", "said"), MISTAKES_OF_A_SEARCH)
def test_mistakes_of_a_search(
    call: Call, material: Material, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    refused(call(*search_of(material, tmp_path / "run", **changes)), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_starts")
def test_starts_that_do_not_fit(call: Call, material: Material, tmp_path: Path) -> None:
    layers = [layer.name for layer in VariantStore.open(material.store).manifest.layers]
    start = tmp_path / "start.txt"
    for text, said in [
        ("".join(f"{layer}: 4\n" for layer in layers), "is above the budget (4.0000 bits"),
        (f"{layers[0]}: 3\n", "gives no level to"),
        ("nope: 3\n", "the configuration names nope"),
    ]:
        start.write_text(text)
        refused(call(*search_of(material, tmp_path / "run", init=start)), said)


@pytest.mark.usefixtures("nothing_starts")
def test_stores_that_do_not_fit(call: Call, material: Material, tmp_path: Path) -> None:
    manifest = json.loads((Path(material.store) / "manifest.json").read_text())
    for change, said in [
        ({"format_version": 99}, "has format version 99"),
        ({"weights_digest": "0" * 64}, "made from other base weights"),
        ({"extra": 1}, "extra: unknown key"),
    ]:
        store = tmp_path / f"store-{next(iter(change))}"
        store.mkdir()
        (store / "manifest.json").write_text(json.dumps(manifest | change))
        configuration = tmp_path / "c.txt"
        configuration.write_text(f"{manifest['layers'][0]['name']}: 3\n")
        common = ["--store", store, "--model", material.model]
        refused(call(*search_of(material, tmp_path / "run", store=store)), said)
        refused(call("eval", *common, "--data", material.text, "--configuration", configuration), said)
        refused(call("export", *common, "--configuration", configuration, "--out", tmp_path / "out"), said)
    (store / "manifest.json").write_text("{")
    refused(call("inspect", store), "is not JSON")


def test_a_flipped_byte_names_layer_and_level(call: Call, material: Material, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(material.store, store)
    layer = "model.layers.1.mlp.up_proj"
    codes = bytes(VariantStore.open(material.store).read(layer, "3").columns["codes"])
    file = store / "layers" / f"{layer}.arrow"
    data = bytearray(file.read_bytes())
    data[data.index(codes) + 5] ^= 1
    file.write_bytes(data)
    (tmp_path / "c.txt").write_text(f"{layer}: 3\n")
    outcome = call(
        *("eval", "--model", material.model, "--data", material.text, "--store", store, "--configuration"),
        *(tmp_path / "c.txt", "--workers", 0, "--eval-tokens", 128, "--sequence-length", 64),
    )
    refused(outcome, f"layer {layer}, level 3: ")
    assert "its checksum is wrong" in outcome.err


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "rtn", "--group-size", "48"], "group size 48 does not divide"),
        (["--method", "rtn", "--group-size", "-2"], "--group-size '-2'"),
        (["--method", "rtn", "--levels", "1,9"], "level 1: codes have 2 to 8 bits"),
        (["--method", "rtn", "--levels", ""], "no levels to build"),
        (["--method", "rtn", "--levels", "3,3"], "level 3 is named twice"),
        (["--method", "awq"], "--method 'awq': should be 'gptq', 'rtn', 'sparsegpt', 'wanda' or 'magnitude'"),
        (["--method", "gptq"], "method gptq needs Hessian text"),
        (["--method", "rtn", "--group-size", "32", "--store", "/proc/nope/store"], "--store /proc/nope/store can't be"),
    ],
)
def test_mistakes_of_a_build(call: Call, material: Material, tmp_path: Path, arguments: list[str], said: str) -> None:
    refused(call("build", "--model", material.model, "--store", tmp_path / "store", *arguments), said)
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("nothing_starts")
def test_mistakes_of_an_export(call: Call, material: Material, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    for arguments, said in [
        (["--configuration", finished, "--out", tmp_path], "holds something already"),
        (["--configuration", finished, "--out", "/proc/nope/out"], "can't be written"),
        (["--configuration", finished, "--out", ""], "--out '': it is empty"),
        (["--configuration", tmp_path, "--out", tmp_path / "o"], "has no best.json"),
        (["--configuration", finished, "--out", tmp_path / "o", "--format", "onnx"], "--format 'onnx': should be 'hf'"),
    ]:
        refused(call("export", *arguments), said)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_search_prints_its_result(call: Call, material: Material, finished: Path) -> None:
    again = search_of(material, finished, generations=1)
    table = call(*again)
    assert table.code == 0
    last = table.out.splitlines()[-1]
    assert last.startswith("done: ")
    assert last.endswith(f"the result is in {finished}/best.json")
    rows = [line for line in table.out.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["found", "start", "uniform", "dp"]
    assert "\x1b" not in table.out + table.err
    shown = json.loads(call(*again, "--json").out)
    assert shown["run"] == str(finished)
    assert shown | json.loads((finished / "best.json").read_text()) == shown


def test_a_start_may_be_a_run(call: Call, material: Material, finished: Path, tmp_path: Path) -> None:
    outcome = call(*search_of(material, tmp_path / "run", init=finished, generations=0), "--quiet", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    best = json.loads((finished / "best.json").read_text())
    assert json.loads(outcome.out)["configuration"] == best["configuration"]


def test_flags_win_over_the_file(call: Call, material: Material, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    lines = material.settings(tmp_path / "run").model_dump(mode="json", exclude_unset=True)
    file.write_text("".join(f"{key.replace('_', '-')}: {json.dumps(value)}\n" for key, value in lines.items()))
    outcome = call("search", "--config", file, "--dry-run", "--offspring", "5", "--survivors", "3 1")
    assert outcome.code == 0
    entering = 5 * 64 + 4 * 256  # five offspring, then three and their parent
    assert re.search(rf"candidate tokens +{4 * entering:,} at most, {entering:,} a generation", outcome.out)
    assert not (tmp_path / "run").exists()


def test_eval_says_the_same_as_json(call: Call, material: Material, finished: Path) -> None:
    arguments = ["eval", "--model", material.model, "--store", material.store, "--configuration", finished]
    arguments += ["--data", material.text, "--workers", "0", "--eval-tokens", "256", "--sequence-length", "64"]
    found = json.loads(call(*arguments, "--json").out)
    table = call(*arguments)
    assert (found["tokens"], found["costs"]["bits"] <= 2.8, found["kl"] > 0) == (256, True, True)
    assert f"{found['perplexity']:.4f}" in table.out
    assert f"{found['base_perplexity']:.4f}" in table.out
    assert "judging" in table.err


def test_eval_takes_from_a_run_what_is_not_given(
    call: Call, material: Material, finished: Path, tmp_path: Path
) -> None:
    common = ["--data", material.text, "--workers", "0", "--eval-tokens", "128", "--sequence-length", "64", "--json"]
    given = ["--model", material.model, "--store", material.store]
    best = json.loads((finished / "best.json").read_text())
    (tmp_path / "c.txt").write_text("".join(f"{layer}: {level}\n" for layer, level in best["configuration"].items()))
    whole = call("eval", "--configuration", finished, *given, *common)
    assert whole.code == 0
    assert call("eval", "--configuration", finished, *common).out == whole.out
    assert call("eval", "--configuration", tmp_path / "c.txt", "--store", material.store, *common).out == whole.out
    refused(call("eval", "--configuration", finished, "--model", "/nope", *common), "model '/nope': there is no such")
    refused(call("eval", "--configuration", finished, "--store", "/nope", *common), "no store at /nope")
    refused(call("eval", "--configuration", tmp_path / "c.txt", *common), "--store is missing: a configuration file")
    refused(call("eval", *common), "--model is missing; give one, or a --configuration or --store")


@pytest.mark.parametrize(
    ("called", "found", "said"),
    [
        ("bin/evoray", None, "bin/evoray"),
        ("bin/evoray", "other/evoray", "bin/evoray"),
        ("bin/evoray", "bin/evoray", "evoray"),
        ("package/__main__.py", None, f"{sys.executable} -m evoray"),
        ("bin/pytest", None, "evoray"),
    ],
)
def test_a_printed_command_is_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: str, found: str | None, said: str
) -> None:
    for name in ("bin", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evoray").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert cli._program() == said


@pytest.mark.parametrize(
    "verb", ["build", "search", "sweep", "baseline", "eval", "export", "inspect", "report", "demo"]
)
def test_help_is_readable(call: Call, verb: str) -> None:
    text = call(verb, "--help").out
    assert "Example: evoray" in text
    assert "--debug" in text
    assert "default: (" not in text
    assert "…" not in text
    if verb == "search":
        assert "One of: budget, equal-steps." in " ".join(text.replace("│", " ").split())
        assert set(re.findall(r"--[a-z-]+", text)) >= {
            f"--{name.replace('_', '-')}" for name in SearchSettings.model_fields
        }


def test_failures_have_code_1_and_debug_shows_the_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import evoray.report.tables

    def broken(*_: object) -> None:
        raise RuntimeError("the roof\nleaks")

    monkeypatch.setattr(evoray.report.tables, "inspect", broken)
    refused(call("inspect", "x"), "RuntimeError: the roof leaks (--debug shows the traceback)", code=1)
    shown = call("inspect", "x", "--debug")
    assert shown.code == 1
    assert "Traceback" in shown.err
    assert "--debug" not in shown.err.splitlines()[-1]


def test_control_c(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import evoray.report.tables

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evoray.report.tables, "inspect", interrupted)
    assert call("inspect", "x").code == 130


def test_sigterm_before_anything_began_has_a_last_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import evoray.__main__
    import evoray.report.tables

    def asked(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    said = "stopped by SIGTERM; nothing is left of it: the same command begins it anew\n"
    monkeypatch.setattr(evoray.report.tables, "inspect", asked)
    assert call("inspect", "x") == Outcome(143, "", said)
    # And while the command line itself is being imported.
    monkeypatch.setattr(cli, "main", asked)
    with pytest.raises(SystemExit) as leaving:
        evoray.__main__.main()
    assert (leaving.value.code, capsys.readouterr().err) == (143, said)


@pytest.mark.parametrize("verb", ["build", "search", "sweep", "baseline", "eval", "export"])
def test_help_names_extras_as_pip_takes_them(call: Call, verb: str) -> None:
    shown = " ".join(call(verb, "--help").out.replace("\u2502", " ").split())
    kinds = {"build": BuildSettings, "search": SearchSettings, "sweep": SweepSettings, "baseline": BaselineSettings,
             "eval": EvalSettings, "export": ExportSettings}  # fmt: skip
    extras = {
        extra
        for info in kinds[verb].model_fields.values()
        for extra in re.findall(r"evoray\[[a-zA-Z-]+\]", info.description or "")
    }
    assert all(extra in shown for extra in extras)
    assert extras or verb in ("build", "baseline")


def test_version(call: Call) -> None:
    outcome = call("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"evoray \d+\.\d+\.\d+\n", outcome.out)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_import_and_help_load_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)"
    assert python("-c", f"import sys, evoray; print({heavy})").stdout == "set()\n"
    script = f"import sys, evoray.cli\ntry: evoray.cli.main(['search', '--help'])\nfinally: print({heavy})"
    assert python("-c", script).stdout.endswith("set()\n")


def test_inspect_answers_without_torch(material: Material, finished: Path) -> None:
    for place in (material.store, str(finished)):
        script = (
            f"import sys, evoray.cli\ntry: evoray.cli.main(['inspect', {place!r}])\n"
            "finally: print({'torch', 'ray', 'transformers'} & set(sys.modules))"
        )
        assert python("-c", script).stdout.endswith("set()\n")


@pytest.mark.usefixtures("nothing_starts")
def test_what_must_not_start_would(call: Call, material: Material, tmp_path: Path) -> None:
    """The fixture above stands where work begins."""
    refused(call(*search_of(material, tmp_path / "run")), "started too early", code=1)


def test_python_dash_m_and_exit_codes() -> None:
    assert python("-m", "evoray", "--version").returncode == 0
    wrong = python("-m", "evoray", "inspect", "/nope")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


def test_a_reader_that_leaves_early_is_no_failure(material: Material) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "evoray", "inspect", material.store], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert process.stderr == b""


def test_eval_of_a_configuration_that_only_drops(call: Call, material: Material, tmp_path: Path) -> None:
    drops = tmp_path / "drops.txt"
    drops.write_text("model.layers.0.mlp: dropped\nmodel.layers.1.self_attn: dropped\nmodel.layers.2.mlp: kept\n")
    common = ["eval", "--configuration", drops, "--data", material.text, "--workers", "0", "--eval-tokens", "256"]
    common += ["--sequence-length", "64", "--json"]
    refused(call(*common), "--model is missing")
    alone = json.loads(call(*common, "--model", material.model).out)
    beside = json.loads(call(*common, "--store", material.store).out)
    assert alone["kl"] == beside["kl"] > 0
    assert alone["costs"] == beside["costs"]
    facts = checkpoint_facts(material.model)
    gone = {layer for site in facts.droppable[1:3] for layer in site.layers}
    sizes = {layer.name: layer.out_features * layer.in_features for layer in facts.layers}
    assert alone["costs"]["sparsity"] == sum(sizes[layer] for layer in gone) / sum(sizes.values())
    # A plain checkpoint with zeros in their place is judged the same.
    assert call("export", "--configuration", drops, "--model", material.model, "--out", tmp_path / "out").code == 0
    model = call("eval", "--model", tmp_path / "out", *common[3:])
    assert json.loads(model.out)["base_perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    priced = json.loads(call("inspect", drops, "--model", material.model, "--json").out)
    assert priced["size"] == alone["costs"]["size"]
    refused(call("inspect", drops, "--store", material.store), "model.layers.0.mlp is dropped, and only the model")
