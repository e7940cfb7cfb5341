"""The model card says what best.json says, and nothing that was not judged."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from searches import WITHOUT_STORE, Material
from tiny import tiny_model

import evoray.export.hf as hf
from evoray.cli import main
from evoray.configuration import DROPPED, Configuration
from evoray.embedded import model_path
from evoray.export import Depth, ExportOptions, ExportSource, export
from evoray.export.card import Card, model_card
from evoray.model import checkpoint_facts
from evoray.run.export import run_export
from evoray.run.named import run_of
from evoray.run.search import search
from evoray.settings import ExportSettings
from evoray.sizes import human_bytes
from evoray.store import VariantStore


def sections(text: str) -> dict[str, str]:
    """Title -> text below it; "" is what stands above the first one, front matter apart."""
    body = text.split("---\n", 2)[2]
    parts = re.split(r"^## (.+)$", body, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def front(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    found = yaml.safe_load(text.split("---\n", 2)[1])
    assert isinstance(found, dict)
    return found


def table(text: str) -> list[list[str]]:
    """Rows of the only table in a text, its head first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert set(lines[1]) == {"|", "-"}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    assert len({len(row) for row in rows}) == 1
    return rows


@pytest.fixture(scope="module")
def run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search of two generations, judged."""
    place = tmp_path_factory.mktemp("searched") / "run"
    search(material.settings(place, generations=2))
    return str(place)


def exported(run: str, out: Path, **options: Any) -> str:
    written = run_export(ExportSettings(configuration=run, out=str(out), **options))
    return (written / "README.md").read_text()


def test_the_figures_are_those_of_the_run(run: str, material: Material, tmp_path: Path) -> None:
    text = exported(run, tmp_path / "out")
    best = json.loads((Path(run) / "best.json").read_text())
    parts = sections(text)
    tags = ["evoray", "evopress", "quantization"]
    # A folder is no id of the hub.
    assert front(text) == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    assert "model: quantization by rtn in groups of 32" in parts[""]
    files = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert [row[1] for row in table(parts[""])[1:]] == [
        f"{best['bits']:.4f}",
        f"{best['bpw']:.4f}",
        f"{human_bytes(best['size'])} ({best['size']} bytes)",
        f"{human_bytes(files)} ({files} bytes)",
        f"{best['sparsity']:.4f}",
    ]
    judged = parts["What it was judged against"]
    candidates = best["held_out"]["candidates"]
    assert f"{best['held_out']['tokens']} held-out tokens of `text.jsonl`" in judged
    assert len(candidates) > 1
    assert table(judged)[1:] == [
        [
            "**found** (this one)" if name == "found" else name,
            f"{row['bits']:.4f}",
            f"{row['bpw']:.4f}",
            human_bytes(row["size"]),
            f"{row['kl']:.5f}",
            f"{row['perplexity']:.4f}",
            "" if name == "found" else f"{-row['found_minus_this_kl']:.5f} ± {row['interval_95']:.5f}",
        ]
        for name, row in candidates.items()
    ]
    for doubt in best["held_out"]["doubts"]:
        assert f"Note: {doubt}." in judged
    assert hf.LOADING.strip() in parts["Loading"]
    where = parts["Where it comes from"]
    told = dict(re.findall(r"^- (.+?): `(.+)`$", where, flags=re.MULTILINE))
    assert told["digest of the base weights"] == best["digests"]["model"]
    assert told["digest of the variants"] == best["digests"]["store"]
    assert told["digest of the search text"] == best["digests"]["search_text"]
    assert told["digest of the held-out text"] == best["digests"]["judge_text"]
    assert told["seed"] == str(best["seed"])
    assert told["versions of the search"] == ", ".join(f"{key} {value}" for key, value in best["versions"].items())
    # Folders of this machine are nobody's business.
    assert str(Path(material.model).parent) not in text
    levels(parts["Levels by block"], best["configuration"], material.model)


def levels(text: str, configuration: Configuration, model: str) -> None:
    """Each cell of the table of levels is what the configuration says."""
    head, *rows = table(text)
    found = {}
    for row in rows:
        first, _, last = row[0].partition("-")
        for block in range(int(first), int(last or first) + 1):
            for kind, level in zip(head[1:], row[1:], strict=True):
                found[f"model.layers.{block}.{kind}"] = level
    names = [layer.name for layer in checkpoint_facts(model).layers]
    assert found == {name: configuration.get(name, "base") for name in names}


def test_figures_of_something_else_are_left_out(run: str, material: Material, tmp_path: Path) -> None:
    best = run_of(run)
    configuration = dict(best["configuration"])
    other = {**configuration, next(iter(configuration)): "base"}
    digests = best["digests"]
    for given, said in [
        ({**best, "configuration": other}, "judged another configuration"),
        ({**best, "digests": {**digests, "model": "0"}}, "judged another base model"),
        ({**best, "digests": {**digests, "store": "0"}}, "judged another store of variants"),
        ({key: value for key, value in best.items() if key != "held_out"}, "has not judged it yet"),
    ]:
        source = ExportSource.open(material.model, material.store, configuration, best=given)
        judged = sections(model_card(source, Card("hf"), tmp_path))["What it was judged against"]
        assert said in judged
        assert "|" not in judged
    source = ExportSource.open(material.model, material.store, configuration, best={**best, "command": "evoray a b"})
    assert "\n```\nevoray a b\n```" in model_card(source, Card("hf"), tmp_path)
    command = "evoray search --data '/home/me/my text.txt,/srv/b.txt' --model hub/model --run again"
    text = model_card(replace(source, best={**best, "command": command}), Card("hf"), tmp_path)
    assert "\n```\nevoray search --data 'my text.txt,b.txt' --model hub/model --run again\n```" in text


def test_a_plain_configuration(material: Material, tmp_path: Path) -> None:
    layers = [layer.name for layer in VariantStore.open(material.store).manifest.layers]
    configuration = {name: "3" for name in layers if ".2." not in name}
    given = tmp_path / "c.txt"
    given.write_text("".join(f"{layer}: {level}\n" for layer, level in configuration.items()))
    words = ["export", "--configuration", str(given), "--store", material.store, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code in (0, None)
    text = (tmp_path / "out" / "README.md").read_text()
    parts = sections(text)
    assert list(parts) == ["", "Loading", "Levels by block", "Where it comes from"]
    head, *rows = table(parts["Levels by block"])
    assert [row[0] for row in rows] == ["0-1", "2"]
    assert [set(row[1:]) for row in rows] == [{"3"}, {"base"}]
    assert len(head) == 8
    levels(parts["Levels by block"], configuration, material.model)
    with pytest.raises(SystemExit):
        main([*words[:-1], str(tmp_path / "texts"), "--format", "evopress"])
    assert not (tmp_path / "texts" / "README.md").exists()  # no checkpoint, no card


@pytest.mark.parametrize("depth", list(Depth))
def test_what_is_dropped_and_how(depth: Depth, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_model("llama", intermediate_size=256, num_hidden_layers=4).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model_path()) / name, model)
    dropped = {"model.layers.1": DROPPED, "model.layers.3.mlp": DROPPED}
    source = ExportSource.open(str(model), None, dropped, options=ExportOptions(depth=depth))
    text = (export("hf", source, str(tmp_path / "out")) / "README.md").read_text()
    parts = sections(text)
    told = parts["What is dropped"]
    assert "- whole blocks (1 of 4): `model.layers.1`\n- sublayers (1 of 8): `model.layers.3.mlp`\n" in told
    assert front(text)["tags"] == ["evoray", "evopress", "depth-pruning"]
    rows = {row[0]: row[1:] for row in table(parts["Levels by block"])}
    assert set(rows["1"]) == {"–"}
    assert rows["3"] == ["base"] * 4 + ["–"] * 3
    weights = sum(
        layer.out_features * layer.in_features * (layer.block == 1 or ".3.mlp" in layer.name)
        for layer in source.facts.layers
    )
    whole = sum(layer.out_features * layer.in_features for layer in source.facts.layers)
    assert table(parts[""])[-1][1] == f"{weights / whole:.4f}"
    if depth is Depth.no_op:
        assert "It has not been tried in an engine" in parts["Mind"]
        assert "library_name" not in front(text)
        assert "from transformers import" not in text
        assert "vllm serve" in parts["Loading"]
    else:
        assert "Mind" not in parts
        assert ("renumbered" if depth is Depth.removed else "weights are zero") in told


def test_models_of_the_hub(material: Material, tmp_path: Path) -> None:
    """An id that the hub would take as `base_model`, which it shows as what this was quantized from."""
    layer = VariantStore.open(material.store).manifest.layers[0].name
    source = ExportSource.open(material.model, material.store, {layer: "3"})
    named = replace(source, model="some/model", facts=replace(source.facts, revision="0" * 40))
    text = model_card(named, Card("gptq", ("One thing.",), "Load it.", ""), tmp_path)
    assert front(text) == {
        "base_model": "some/model", "base_model_relation": "quantized", "pipeline_tag": "text-generation",
        "tags": ["evoray", "evopress", "quantization"],
    }  # fmt: skip
    parts = sections(text)
    assert f"[some/model](https://huggingface.co/some/model) (revision `{'0' * 40}`)" in parts[""]
    assert parts["Mind"].strip() == "- One thing."
    assert parts["Loading"].strip() == "Load it."
    assert f"```\n{layer}: 3\n```" in parts["Levels by block"]


def test_sparse_weights_are_dense_weights_with_zeros(material: Material, tmp_path: Path) -> None:
    sparse = material.with_store(
        tmp_path / "sparse", kind="sparsity", method="magnitude", levels=("0.5", "0.25"), target_sparsity=None
    )
    manifest = VariantStore.open(sparse.store).manifest
    level = manifest.levels[0]
    source = ExportSource.open(sparse.model, sparse.store, {layer.name: level for layer in manifest.layers})
    text = (export("hf", source, str(tmp_path / "out")) / "README.md").read_text()
    assert "The weights are dense and hold zeros." in text
    assert "no engine stores it smaller than dense weights today" in text
    assert front(text)["tags"] == ["evoray", "evopress", "sparsity", "pruned"]
    assert "sparsity by magnitude. " in text
    bare = ExportSource.open(sparse.model, sparse.store, {"model.layers.0.mlp": DROPPED})
    assert "dense and hold zeros" not in model_card(bare, Card("hf"), tmp_path)


def test_a_run_that_only_drops(deep: Material, tmp_path: Path) -> None:
    search(deep.settings(tmp_path / "run", drop_blocks=2, drop_entire_block=True, **WITHOUT_STORE | {"generations": 1}))
    text = exported(str(tmp_path / "run"), tmp_path / "out", depth="removed")
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    parts = sections(text)
    found = {row[0]: row for row in table(parts["What it was judged against"])}
    assert found["**found** (this one)"][4] == f"{best['held_out']['candidates']['found']['kl']:.5f}"
    names = [name for name, level in best["configuration"].items() if level == DROPPED]
    assert f"whole blocks (2 of 6): {', '.join(f'`{name}`' for name in names)}" in parts["What is dropped"]
