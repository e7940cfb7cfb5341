"""Files that limit what may be dropped: no candidate of a search drops anything else, and mistakes take one line."""

from pathlib import Path
from typing import Any

import pytest
from searches import USUAL, WITHOUT_STORE, Material, searching_with

from evoray.cluster import LocalPool
from evoray.errors import UserError
from evoray.run.journal import Journal
from evoray.run.plan import plan_search
from evoray.run.search import search
from evoray.run.sites import site_list
from evoray.settings import SearchSettings
from evoray.store import Location

ATTN = [f"model.layers.{block}.self_attn" for block in range(6)]
MLP = [f"model.layers.{block}.mlp" for block in range(6)]
BLOCK = [f"model.layers.{block}" for block in range(6)]


def settings(deep: Material, folder: Path, text: str | bytes, **changes: Any) -> SearchSettings:
    """Of a search with a file of this text; it only drops where no store is given."""
    file = folder / "droppable.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    usual = {**USUAL, **WITHOUT_STORE, "initial_candidates": 12}
    return deep.settings(folder / "run", droppable=str(file), **usual | changes)


def dropped(made: SearchSettings) -> set[frozenset[str]]:
    """What each candidate of a whole search drops."""
    plan = plan_search(made)
    with LocalPool(plan.ground.spec) as pool, searching_with(pool):
        found = search(made)
    journal, space = Journal(Location.parse(made.run)), plan.ground.space
    genotypes = {tuple(entry["genotype"]) for row in journal.rows for entry in journal.evaluations(row).to_pylist()}
    all_of_them = [space.configuration(genotype) for genotype in genotypes] + [found.configuration]
    return {frozenset(site for site, level in each.items() if level == "dropped") for each in all_of_them}


# What each file allows: of sublayers, of blocks, of pairs.
FILES: dict[str, tuple[str, dict[str, list[set[str]]]]] = {
    "names": (
        "\n".join(["# attention", *ATTN[1:4], "", "  " + MLP[0], MLP[2], MLP[3], MLP[5], BLOCK[4], MLP[5]]),
        {
            "sublayers": [{*ATTN[1:4]}, {MLP[0], MLP[2], MLP[3], MLP[5]}],
            # A block may go where it is named, or both of its sublayers are.
            "blocks": [{BLOCK[2], BLOCK[3], BLOCK[4]}],
            "pairs": [{BLOCK[2], BLOCK[3]}],
        },
    ),
    "words": (
        "\ufeffattn+mlp\nattn+mlp\n# the middle\nnone\nmlp\n\nattn\r\nattn+mlp\n",
        {
            "sublayers": [{ATTN[0], ATTN[1], ATTN[4], ATTN[5]}, {MLP[0], MLP[1], MLP[3], MLP[5]}],
            "blocks": [{BLOCK[0], BLOCK[1], BLOCK[5]}],
            "pairs": [{BLOCK[0], BLOCK[1]}],
        },
    ),
    "attention alone": ("none\nattn\nattn\nattn\nnone\nattn", {"sublayers": [{*ATTN[1:4], ATTN[5]}]}),
}


@pytest.mark.parametrize("name", FILES)
def test_only_allowed_sublayers_are_dropped(deep: Material, tmp_path: Path, name: str) -> None:
    text, allowed = FILES[name]
    found = dropped(settings(deep, tmp_path, text, drop_blocks=2))
    assert len(found) >= 6
    for gone in found:
        # Two of each kind of which there is any.
        assert [len(gone & kind) for kind in allowed["sublayers"]] == [2] * len(allowed["sublayers"])
        assert gone <= set().union(*allowed["sublayers"])
    # And all that is allowed is tried.
    assert set().union(*found) == set().union(*allowed["sublayers"])


@pytest.mark.parametrize("name", ["names", "words"])
def test_blocks_go_that_are_named_or_have_all_sublayers_named(deep: Material, tmp_path: Path, name: str) -> None:
    text, allowed = FILES[name]
    found = dropped(settings(deep, tmp_path, text, drop_blocks=2, drop_entire_block=True))
    (blocks,) = allowed["blocks"]
    assert found == {frozenset(blocks - {one}) for one in blocks}


@pytest.mark.parametrize("name", ["names", "words"])
def test_pairs_go_of_which_both_blocks_may(deep: Material, tmp_path: Path, name: str) -> None:
    text, allowed = FILES[name]
    found = dropped(settings(deep, tmp_path, text, drop_blocks=1, drop_two_consecutive=True))
    assert found == set(map(frozenset, allowed["pairs"]))


def test_beside_levels_only_allowed_sublayers_are_dropped(deep: Material, tmp_path: Path) -> None:
    text = "\n".join([ATTN[1], MLP[2], MLP[4]])
    budget = {"store": deep.store, "target_bpw": 3.2, "allow_drops": True, "generations": 6}
    found = dropped(settings(deep, tmp_path, text, **budget))
    assert set().union(*found) == {ATTN[1], MLP[2], MLP[4]}


def test_another_file_is_another_run(deep: Material, tmp_path: Path) -> None:
    dropped(settings(deep, tmp_path, "\n".join(ATTN[:3]), drop_blocks=2))
    # The same sites, written otherwise, are the same run.
    plan = settings(deep, tmp_path, "attn\nattn\nattn\nnone\nnone\nnone", drop_blocks=2)
    with searching_with(None):
        search(plan)
        with pytest.raises(UserError, match=r"holds another run .*droppable"):
            search(settings(deep, tmp_path, "\n".join(ATTN[:4]), drop_blocks=2))


@pytest.mark.parametrize(
    ("text", "how", "said"),
    [
        ("none\n" * 6, {}, "allows none of the 12 parts that could be dropped, such as model.layers.0.self_attn"),
        ("attn\n" * 6, {"drop_entire_block": True}, "allows none of the 6 parts that could be dropped"),
        (f"{BLOCK[1]}\n{BLOCK[2]}", {"drop_two_consecutive": True}, "allows none of the 3 parts"),
        ("# nothing yet\n\n", {}, "names nothing; name sites, one a line, or leave it out"),
        ("", {}, "names nothing"),
        ("model.layers.9.mlp\n", {}, "names 'model.layers.9.mlp', which the model can't do without; its sites run"),
        (f"{ATTN[0]}\nattn\n", {}, "names 'attn', which the model can't do without"),
        ("model.embed_tokens", {}, "names 'model.embed_tokens'"),
        (f"{ATTN[0]}: dropped\n", {}, "names 'model.layers.0.self_attn: dropped'"),
        ("x" * 5000, {}, f"names '{'x' * 80}', which"),
        (b"model.layers.0.mlp\n\xff\xfe", {}, "is no text; give a file with a site, or none|attn|mlp, a line"),
        ("attn\nattn\n", {}, "2 blocks up to number 1, the model has 6"),
        ("attn\n" * 7, {}, "7 blocks up to number 6, the model has 6"),
        (f"{ATTN[0]}\n{MLP[0]}\n{MLP[1]}\n", {}, "--drop-blocks 2: 1 attn sublayers may be dropped; give a number"),
    ],
)
def test_mistakes_take_one_line_and_no_worker(
    deep: Material, tmp_path: Path, text: str | bytes, how: dict[str, Any], said: str
) -> None:
    with searching_with(None), pytest.raises(UserError) as caught:
        search(settings(deep, tmp_path, text, drop_blocks=2, **how))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "droppable" in str(caught.value) or "drop-blocks" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_file(deep: Material, tmp_path: Path) -> None:
    made = settings(deep, tmp_path, "attn", drop_blocks=2)
    with pytest.raises(UserError, match=r"nope\.txt: no such file; give one with a site"):
        plan_search(made.model_copy(update={"droppable": str(tmp_path / "nope.txt")}))
    with pytest.raises(UserError, match="Is a directory; give"):
        plan_search(made.model_copy(update={"droppable": str(tmp_path)}))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^--droppable: cannot read {tmp_path}: Is a directory; [^\n]*$"):
        site_list(str(tmp_path), ())
