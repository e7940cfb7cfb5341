"""Whole builds of the tiny model through `run_build`: settings for them, and what an interrupted one must end with.

`built` makes a store; `check_interrupted` cuts a build off several times and compares all bytes with those of a whole
one; `contents` reads all files of a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from searches import Material, Told

from evoray.run.build import run_build
from evoray.settings import BuildSettings, load_settings
from evoray.store import Manifest


class Interrupted(Exception):
    """Stands for whatever may end a build."""


class Stopping(Told):
    """Ends a build when so many layers are finished."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self._stop = stop

    def layer(self, done: int, total: int, name: str) -> None:
        if done == self._stop:
            raise Interrupted


def built(material: Material, store: Path, stop: int | None = None, **given: Any) -> Manifest:
    """Builds with a Hessian text of about 1000 tokens, or without text where `data` is None."""
    usual = {"model": material.model, "store": str(store), "data": material.text, "threads": 1}
    if "from_evopress" not in given:
        usual |= {"hessian_tokens": 1024, "sequence_length": 64, "tokens_per_pass": 256}
    return run_build(load_settings(BuildSettings, usual | given), Stopping(stop))


def check_interrupted(material: Material, folder: Path, stops: Sequence[int], **given: Any) -> Manifest:
    """Builds once in one go and once in parts, and compares."""
    whole = built(material, folder / "whole", **given)
    for stop in stops:
        with pytest.raises(Interrupted):
            built(material, folder / "parts", stop, **given)
        assert not (folder / "parts" / "manifest.json").exists()
    assert built(material, folder / "parts", **given) == whole
    assert contents(folder / "parts") == contents(folder / "whole")
    return whole


def contents(folder: Path) -> dict[str, bytes]:
    """Path inside the folder -> bytes, of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
