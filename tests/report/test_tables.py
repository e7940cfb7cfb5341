"""What people and programs are shown of stores, runs and configurations."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from searches import WITHOUT_STORE, Material

from evoray.errors import UserError
from evoray.report.tables import human_bytes, inspect
from evoray.run.search import search
from evoray.space import configuration_costs
from evoray.store import VariantStore


def text(shown: RenderableType, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(shown)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tables") / "run"
    search(material.settings(place, generations=2))
    return place


def test_human_bytes() -> None:
    assert [human_bytes(count) for count in (0, 999, 1000, 1_500_000, 3_212_749_000_000)] == [
        "0 B", "999 B", "1.00 kB", "1.50 MB", "3.21 TB",
    ]  # fmt: skip


def test_a_store(material: Material) -> None:
    shown, found = inspect(material.store)
    manifest = VariantStore.open(material.store).manifest
    assert json.loads(json.dumps(found))["levels"] == ["2", "3", "4"]
    assert (found["layers"], found["digest"]) == (len(manifest.layers), manifest.digest)
    costs = configuration_costs(manifest, {layer.name: "3" for layer in manifest.layers})
    assert found["whole"]["3"] == {"bits": 3.0, "bpw": costs.bpw, "size": costs.size, "sparsity": 0.0}
    assert any(f"{costs.bpw:.4f}" in line and human_bytes(costs.size) in line for line in text(shown))


def test_a_run(run: Path) -> None:
    shown, found = inspect(str(run))
    best = json.loads((run / "best.json").read_text())
    assert (found["generations"], found["best"]) == (2, best)
    assert found["candidate_tokens"] == best["candidate_tokens"]
    lines = text(shown, width=120)
    assert any(f"{best['held_out']['candidates']['found']['kl']:.5f}" in line for line in lines)
    assert any(line.startswith("mlp.up_proj ") for line in lines)


def damaged(run: Path, folder: Path, best: str | None) -> str:
    shutil.copytree(run, folder)
    (folder / "best.json").unlink()
    if best is not None:
        (folder / "best.json").write_text(best)
    return str(folder)


@pytest.mark.parametrize(
    "best", ["{nope", "[]", "3", "{}", '{"configuration": {}, "fitness": {}}', '{"configuration": 3}']
)
def test_a_run_whose_result_is_damaged(run: Path, tmp_path: Path, best: str) -> None:
    with pytest.raises(UserError, match=r"best\.json is damaged; run the same `evoray search` again"):
        inspect(damaged(run, tmp_path / "run", best))


def test_a_run_without_its_result(run: Path, tmp_path: Path) -> None:
    shown, found = inspect(damaged(run, tmp_path / "run", None))
    assert found["best"] is None
    assert text(shown)[-1].startswith("best.json is missing")


def test_a_configuration_and_its_price(material: Material, tmp_path: Path) -> None:
    manifest = VariantStore.open(material.store).manifest
    configuration = {layer.name: "2" for layer in manifest.layers[1:]}
    (tmp_path / "c.txt").write_text("".join(f"{layer}: {level}\n" for layer, level in configuration.items()))
    _, found = inspect(str(tmp_path / "c.txt"), material.store)
    costs = configuration_costs(manifest, configuration)
    assert found == {
        "layers": len(configuration), "levels": {"2": len(configuration)},
        "bits": costs.bits, "bpw": costs.bpw, "size": costs.size,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("model.layers.{}.self_attn.q_proj", "self_attn.q_proj"),
        ("transformer.h.{}.attn.c_attn", "attn.c_attn"),
        ("gpt_neox.layers.{}.mlp.experts.7.up", "mlp.experts.7.up"),
    ],
)
def test_levels_by_block(tmp_path: Path, form: str, kind: str) -> None:
    levels: dict[str, Any] = {form.format(block): "2345"[block % 4] for block in range(3)}
    (tmp_path / "c.txt").write_text("".join(f"{layer}: {level}\n" for layer, level in levels.items()))
    lines = text(inspect(str(tmp_path / "c.txt"))[0])
    assert [line.split() for line in lines] == [
        ["levels", "by", "block"],
        ["block", "0", "1", "2"],
        [kind, "2", "3", "4"],
    ]


def test_levels_of_many_blocks_fit_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("".join(f"model.layers.{block}.self_attn.q_proj: 3\n" for block in range(80)))
    lines = text(inspect(str(tmp_path / "c.txt"))[0])
    heads = [line.split()[1:] for line in lines if line.startswith("block")]
    assert [int(block) for head in heads for block in head] == list(range(80))
    assert all("…" not in line and len(line) <= 80 for line in lines)


def test_what_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a store"):
        inspect(str(tmp_path))
    with pytest.raises(UserError, match="no configuration at"):
        inspect(str(tmp_path / "nope"))


def test_sparsity_has_a_column_where_there_is_some(material: Material, tmp_path: Path) -> None:
    plain, _ = inspect(material.store)
    assert not any("0.0000" in line for line in text(plain)), "no zeros are made by quantization"
    made = material.with_store(
        tmp_path / "store", kind="sparsity", method="magnitude", target_sparsity=0.5, steps=1, step_weights=100
    )
    shown, found = inspect(made.store)
    lines = text(shown, width=120)
    assert any("steps of 100 weights in every layer away from sparsity 0.5" in line for line in lines)
    assert not any("groups of" in line for line in lines)
    kept = sum(layer.costs["0"].kept for layer in VariantStore.open(made.store).manifest.layers)
    assert found["whole"]["0"]["sparsity"] == 1 - kept / found["weights"]
    row = next(cells for line in lines if (cells := line.split("│")) and cells[1:2] and cells[1].strip() == "0")
    assert row[-2].strip() == f"{1 - kept / found['weights']:.4f}"


def test_what_is_dropped_is_named_and_crossed_out(material: Material, tmp_path: Path) -> None:
    result = search(material.settings(tmp_path, **WITHOUT_STORE, drop_blocks=1, generations=1))
    lines = text(inspect(str(tmp_path))[0], width=120)
    dropped = [site for site, level in result.configuration.items() if level == "dropped"]
    assert len(dropped) == 2
    assert f"dropped: {', '.join(dropped)}" in lines
    assert sum(line.split()[1:].count("x") for line in lines if line.startswith(("self_attn ", "mlp "))) == 2
    sparsity = result.best["sparsity"]
    assert any("sparsity" in line for line in lines)
    assert any("│ found" in line and f"{sparsity:.4f}" in line for line in lines)
