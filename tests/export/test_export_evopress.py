"""Text files of EvoPress: what is written is read again as the same, and what they can't say is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from searches import Material

from evoray.cli import main
from evoray.configuration import DROPPED, KEPT, Configuration, parse_configuration
from evoray.errors import UserError
from evoray.export.evopress import depth_text, levels_text
from evoray.model import checkpoint_facts
from evoray.model.droppable import DropKind, Droppable
from evoray.run.named import as_blocks, configuration_of, resolve_sites

WORDS = st.sampled_from(["none", "attn", "mlp", "attn+mlp"])


def sites(blocks: int, kinds: Sequence[DropKind] = (DropKind.attn, DropKind.mlp)) -> list[Droppable]:
    parts = [
        Droppable(f"h.{block}.{kind.value}{number}", block, kind, (), 0)
        for block in range(blocks)
        for number, kind in enumerate(kinds)
    ]
    return parts + [Droppable(f"h.{block}", block, DropKind.block, (), 0) for block in range(blocks)]


@given(st.lists(WORDS, min_size=1, max_size=40))
def test_depth_round_trip(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    droppable = sites(len(lines))
    resolved = resolve_sites(parse_configuration(text), droppable)
    assert resolved == {
        site.name: DROPPED if site.kind.value in lines[site.block].split("+") else KEPT
        for site in droppable
        if site.kind is not DropKind.block
    }
    whole = as_blocks(resolved, droppable)
    assert [block for block, line in enumerate(lines) if whole.get(f"h.{block}") == DROPPED] == [
        block for block, line in enumerate(lines) if line == "attn+mlp"
    ]
    assert all(line in ("none", "attn+mlp") or f"h.{block}" not in whole for block, line in enumerate(lines))
    assert depth_text(resolved, droppable) == depth_text(whole, droppable) == text
    # With the model's own names there is nothing to resolve.
    assert resolve_sites(whole, droppable) == whole


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,4}(\.[a-z0-9]{1,4}){0,2}", fullmatch=True), st.integers(-9, 9), min_size=1)
)
def test_levels_round_trip(levels: dict[str, int]) -> None:
    configuration = {layer: str(level) for layer, level in levels.items()}
    assert parse_configuration(levels_text(configuration, list(configuration))) == configuration


def test_blocks_that_do_not_fit() -> None:
    lines = parse_configuration("none\nattn+mlp\nmlp\n")
    with pytest.raises(UserError, match="speaks of 3 blocks up to number 2, the model has 4"):
        resolve_sites(lines, sites(4))
    with pytest.raises(UserError, match="speaks of 3 blocks up to number 2, the model has 2"):
        resolve_sites(lines, sites(2))
    with pytest.raises(UserError, match=r"dropped of mlp in block 1, which has none but h\.1\.attn0, h\.1"):
        resolve_sites(lines, sites(3, [DropKind.attn]))
    several = sites(3, [DropKind.attn, DropKind.mlp, DropKind.mlp])
    found = resolve_sites(lines, several)
    assert [name for name, level in found.items() if level == DROPPED] == [
        "h.1.attn0", "h.1.mlp1", "h.1.mlp2", "h.2.mlp1", "h.2.mlp2",
    ]  # fmt: skip
    with pytest.raises(UserError, match="block 2 has 2 sublayers of kind mlp, not all of which"):
        depth_text({**found, "h.2.mlp1": KEPT}, several)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"a": "3"}, "b has its base weight, and EvoPress needs"),
        ({"a": "3", "b": "base"}, "b has its base weight, and EvoPress needs"),
        ({"a": "4x0.5", "b": "0.5"}, r"a \(and 1 more\) has level '4x0.5', and EvoPress reads whole numbers only"),
    ],
)
def test_levels_that_evopress_can_not_read(layers: Configuration, said: str) -> None:
    with pytest.raises(UserError, match=said):
        levels_text(layers, ["a", "b"])


def test_both_files_of_one_configuration(material: Material, tmp_path: Path) -> None:
    facts = checkpoint_facts(material.model)
    levels = {layer.name: "3" if layer.block else "2" for layer in facts.layers if layer.block != 1}
    given = tmp_path / "c.txt"
    given.write_text("".join(f"{layer}: {level}\n" for layer, level in levels.items()) + "model.layers.1: dropped\n")
    words = ["export", "--format", "evopress", "--configuration", str(given), "--store", material.store]
    with pytest.raises(SystemExit) as leaving:
        main([*words, "--out", str(tmp_path / "out")])
    assert leaving.value.code in (0, None)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["configuration.txt", "layer_drop_config.txt"]
    assert (tmp_path / "out" / "layer_drop_config.txt").read_text() == "none\nattn+mlp\nnone\n"
    assert configuration_of(str(tmp_path / "out" / "configuration.txt")) == levels


def test_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "layer_drop_config.txt").write_bytes(b"none\nattn\xff\n")
    with pytest.raises(SystemExit) as leaving:
        main(["inspect", str(tmp_path / "layer_drop_config.txt")])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
