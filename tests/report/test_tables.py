"""What people and programs are shown of stores, runs and configurations."""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console, RenderableType
from searches import WITHOUT_STORE, Material

from evoray.errors import UserError
from evoray.report.tables import comparison, evaluation_table, inspect
from evoray.run.build import run_build
from evoray.run.evaluate import Evaluation
from evoray.run.search import search
from evoray.settings import BuildSettings
from evoray.sizes import human_bytes
from evoray.space import Costs, configuration_costs
from evoray.store import VariantStore


def text(shown: RenderableType, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, markup=False).print(shown)  # as the command line prints
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
    with pytest.raises(UserError, match=r"best\.json is damaged; run the same `evoray search`, or sweep, again"):
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


def cells(line: str) -> list[str]:
    """What stands in a line of a table with a border."""
    return [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]


def test_a_store_of_steps(material: Material, tmp_path: Path) -> None:
    made = material.with_store(
        tmp_path / "store", kind="sparsity", method="magnitude", target_sparsity=0.5, steps=6, step_weights=300
    )
    shown, found = inspect(made.store)
    lines = text(shown, width=120)
    manifest = VariantStore.open(made.store).manifest
    sizes = [layer.out_features * layer.in_features for layer in manifest.layers]
    everywhere = [level for level in manifest.levels if abs(int(level)) * 300 <= min(sizes) / 2]
    lacking = [level for level in manifest.levels if level not in everywhere]
    assert any("6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6: steps of 300 weights in every layer away" in line
               for line in lines)  # fmt: skip
    assert f"{300 / max(sizes):.2%} to {300 / min(sizes):.2%} of a layer; those above 0 are sparser" in "".join(lines)
    assert lacking
    assert any(line.split("  ")[0].strip() == "not in all layers" and line.endswith(", ".join(lacking))
               for line in lines)  # fmt: skip
    assert not any(word in "".join(lines) for word in ("groups of", "symmetric", "scales"))
    assert list(found["whole"]) == everywhere
    rows = {row[0]: row for line in lines if len(row := cells(line)) == 5}
    assert rows.pop("level") == ["level", "bits", "bpw", "size", "sparsity"]
    assert list(rows) == everywhere
    for level in everywhere:
        zeros = sum(size // 2 + int(level) * 300 for size in sizes)
        assert found["whole"][level]["sparsity"] == zeros / sum(sizes)
        assert rows[level][-1] == f"{zeros / sum(sizes):.4f}"


def test_a_store_without_zeros_has_no_column_for_them(material: Material, tmp_path: Path) -> None:
    made = material.with_store(tmp_path / "store", method="rtn", levels=("2", "3"), group_size=-1)
    for place, said in [(material.store, "groups of 32, symmetric"), (made.store, "one group per row, symmetric")]:
        shown, found = inspect(place)
        lines = text(shown)
        assert ["level", "bits", "bpw", "size"] in map(cells, lines)
        assert any(said in line for line in lines)
        assert {row["sparsity"] for row in found["whole"].values()} == {0.0}
        assert "not in all layers" not in "".join(lines)


def test_a_store_of_bits_and_sparsities(material: Material, tmp_path: Path) -> None:
    made = material.with_store(
        tmp_path / "store", kind="joint", method="magnitude", levels=("4", "4x0.5"), group_size=32
    )
    lines = text(inspect(made.store)[0])
    assert any("joint by magnitude, groups of 32, symmetric" in line for line in lines)
    rows = {row[0]: row[-1] for line in lines if len(row := cells(line)) == 5}
    assert rows == {"level": "sparsity", "4x0.5": "0.5000", "4": "0.0000"}


def test_a_store_from_evopress_has_no_codes(material: Material, tmp_path: Path) -> None:
    store = VariantStore.open(material.store)
    for layer in store.manifest.layers:
        (tmp_path / "folder" / layer.name).mkdir(parents=True)
        for bits in (2, 3):
            weight = torch.full((layer.out_features, layer.in_features), float(bits))
            torch.save(weight, tmp_path / "folder" / layer.name / f"{bits}.pth")
    folder = str(tmp_path / "folder")
    run_build(BuildSettings(model=material.model, store=str(tmp_path / "s"), from_evopress=folder, group_size=32))
    lines = text(inspect(str(tmp_path / "s"))[0], width=120)
    assert any("quantization imported from EvoPress: weights without codes" in line for line in lines)


def evaluated(sparsity: float) -> Evaluation:
    costs = Costs(bits=3.0, bpw=3.5, bytes=10, size=2000, sparsity=sparsity)
    return Evaluation(perplexity=9.0, kl=0.5, base_perplexity=8.0, tokens=100, documents=2, costs=costs)


def test_sparsity_of_what_is_judged_has_a_column_where_there_is_some() -> None:
    row = {"bits": 3.0, "bpw": 3.5, "size": 2000, "kl": 0.5, "perplexity": 9.0}
    row |= {"found_minus_this_kl": 0.0, "interval_95": 0.0}
    usual = ["", "bits", "bpw", "size", "KL [nats/token]", "perplexity"]
    with_zeros = [*usual[:4], "sparsity", *usual[4:]]
    better = "found better by (95%)"
    for names, heads in [({"found": 0.0, "dp": 0.0}, usual), ({"found": 0.0, "dp": 0.25}, with_zeros)]:
        candidates = {name: {**row, "sparsity": sparsity} for name, sparsity in names.items()}
        shown = [cells(line) for line in text(comparison(candidates, 100), width=120) if "│" in line or "┃" in line]
        assert shown[0] == [*heads, better]
        assert [line[0] for line in shown[1:]] == list(names)
        if heads == with_zeros:
            assert [line[4] for line in shown[1:]] == ["0.0000", "0.2500"]
    older = text(comparison({"found": row}, 100), width=120)
    assert not any("sparsity" in line for line in older), "a best.json of before sparsity was counted"
    for sparsity, heads in [(0.0, usual), (0.25, with_zeros)]:
        lines = text(evaluation_table(evaluated(sparsity)), width=120)
        shown = [cells(line) for line in lines if "│" in line or "┃" in line]
        assert shown[0] == heads
        assert all(len(line) == len(heads) for line in shown)
        assert shown[2] == ["base model", *[""] * (len(heads) - 3), "0", "8.0000"]
        assert sparsity == 0 or shown[1][4] == "0.2500"


def shown_of(folder: Path, configuration: Mapping[str, str]) -> list[str]:
    place = folder / "c.txt"
    place.write_text("".join(f"{site}: {level}\n" for site, level in configuration.items()))
    return text(inspect(str(place))[0])


def test_what_is_dropped_of_a_run_is_counted_named_and_crossed_out(material: Material, tmp_path: Path) -> None:
    result = search(material.settings(tmp_path, **WITHOUT_STORE, drop_blocks=1, generations=1))
    lines = text(inspect(str(tmp_path))[0], width=120)
    dropped = [site for site, level in result.configuration.items() if level == "dropped"]
    assert len(dropped) == 2
    assert f"dropped: 1 attention, 1 MLP sublayers: {', '.join(dropped)}" in lines
    for kind in ("self_attn", "mlp"):
        marks = ["x" if f"model.layers.{block}.{kind}" in dropped else "." for block in range(3)]
        assert [kind, *marks] in [line.split() for line in lines]
    assert any("│ found" in line and f"{result.best['sparsity']:.4f}" in line for line in lines)


def test_rows_that_are_as_in_the_base_model_are_left_out(tmp_path: Path) -> None:
    lines = shown_of(
        tmp_path,
        {
            "model.layers.0.self_attn": "kept",
            "model.layers.1.self_attn": "kept",
            "model.layers.0.mlp": "dropped",
            "model.layers.1.mlp": "kept",
            "model.layers.0.self_attn.q_proj": "3",
            "model.layers.1.self_attn.q_proj": "base",
            "model.layers.0.self_attn.o_proj": "base",
            "model.layers.1.self_attn.o_proj": "base",
        },
    )
    assert [line.split() for line in lines] == [
        ["levels", "by", "block"],
        ["block", "0", "1"],
        ["mlp", "x", "."],
        ["self_attn.q_proj", "3", "base"],
        ["dropped:", "1", "MLP", "sublayer:", "model.layers.0.mlp"],
    ]
    assert shown_of(tmp_path, {"model.layers.0.mlp": "kept", "model.layers.0.mlp.up_proj": "base"}) == [
        "nothing is compressed or dropped"
    ]


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        (["blocks.0.attn", "blocks.1.attn", "blocks.1.mlp"], "2 attention, 1 MLP sublayers"),
        (["transformer.h.1.attn"], "1 attention sublayer"),
        (["model.decoder.layers.3.fc1+fc2"], "1 MLP sublayer"),
        (["backbone.layers.1.mixer", "backbone.layers.2.mixer"], "2 other sublayers"),
        (["model.layers.1.feed_forward.0"], "1 MLP sublayer"),
        (["model.layers.1"], "1 block"),
        (["model.layers.1", "model.layers.2"], "2 blocks"),
        (["model.layers.1", "model.layers.2.mlp"], "1 MLP sublayer and 1 block"),
    ],
)
def test_what_is_dropped_is_counted_by_kind(tmp_path: Path, sites: list[str], said: str) -> None:
    lines = shown_of(tmp_path, dict.fromkeys(sites, "dropped"))
    assert " ".join(lines[lines.index(next(line for line in lines if line.startswith("dropped"))) :]) == (
        f"dropped: {said}: {', '.join(sites)}"
    )


def test_whole_blocks_have_a_row(tmp_path: Path) -> None:
    levels = {"model.layers.0": "kept", "model.layers.1": "dropped", "model.layers.0.mlp.up_proj": "4"}
    rows = [line.split() for line in shown_of(tmp_path, levels)]
    assert rows[1:4] == [["block", "0", "1"], ["block", ".", "x"], ["mlp.up_proj", "4"]]


@pytest.mark.parametrize("level", ["0.55", "-12", "4x0.625"])
def test_wide_levels_of_many_blocks_fit_a_terminal(tmp_path: Path, level: str) -> None:
    lines = shown_of(tmp_path, {f"model.layers.{block}.self_attn.q_proj": level for block in range(40)})
    assert sum(line.split().count(level) for line in lines) == 40
    assert all("…" not in line and len(line) <= 80 for line in lines)
