"""Threads decide the last bits of sums, so a store knows those that it was begun with, and goes on with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builds import Interrupted, built, contents
from searches import Material

from evoray.errors import UserError
from evoray.run import build as verb

GIVEN: dict[str, Any] = {"levels": ("2", "4"), "group_size": 32}


@pytest.fixture(autouse=True)
def threads() -> Any:
    """Those of this process, put back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_store_goes_on_with_the_threads_that_it_was_begun_with(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "usable_cores", lambda: 3)
    with pytest.raises(Interrupted):
        built(material, tmp_path / "two", 5, threads=2, **GIVEN)
    with pytest.raises(UserError) as caught:
        built(material, tmp_path / "two", threads=1, **GIVEN)
    said = "was begun with --threads 2, which its bits depend on; leave out --threads 1, or"
    assert str(caught.value) == f"{tmp_path / 'two'} {said} give another folder by --store"
    assert built(material, tmp_path / "two", threads=None, **GIVEN).settings["threads"] == 2
    assert torch.get_num_threads() == 2
    # Nobody began this one, so it has the default.
    assert built(material, tmp_path / "new", threads=None, **GIVEN).settings["threads"] == 3


def test_a_store_that_was_begun_before_threads_were_recorded_goes_on(material: Material, tmp_path: Path) -> None:
    whole = built(material, tmp_path / "whole", **GIVEN)
    with pytest.raises(Interrupted):
        built(material, tmp_path / "old", 5, **GIVEN)
    state = json.loads((tmp_path / "old" / "building.json").read_text())
    assert state["header"]["settings"].pop("threads") == 1
    (tmp_path / "old" / "building.json").write_text(json.dumps(state))
    manifest = built(material, tmp_path / "old", **GIVEN)
    assert "threads" not in manifest.settings
    assert manifest.layers == whole.layers
    assert manifest.files == whole.files
    before = contents(tmp_path / "old")
    assert built(material, tmp_path / "old", threads=2, **GIVEN) == manifest
    assert contents(tmp_path / "old") == before


def test_a_store_goes_on_with_the_attention_that_it_was_begun_with(
    material: Material, tmp_path: Path, threads: Any
) -> None:
    """Hessians depend on it."""
    with pytest.raises(Interrupted):
        built(material, tmp_path / "sdpa", 5, attn_implementation="sdpa", **GIVEN)
    with pytest.raises(UserError, match="attn_implementation"):
        built(material, tmp_path / "sdpa", attn_implementation="eager", **GIVEN)
    whole = built(material, tmp_path / "sdpa", attn_implementation="sdpa", **GIVEN)
    assert whole.settings["attn_implementation"] == "sdpa"
    assert "attn_implementation" not in built(material, tmp_path / "usual", **GIVEN).settings
