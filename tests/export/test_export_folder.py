"""Where an export goes."""

from pathlib import Path

import pytest

from evoray.errors import UserError
from evoray.export.folder import new_folder


def test_a_file_uri_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_folder(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert new_folder("out") == tmp_path / "out"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_folder("~/out") == tmp_path / "out"


def test_object_storage_is_refused() -> None:
    with pytest.raises(UserError, match="--out s3://bucket/out is on object storage, and an export is a folder"):
        new_folder("s3://bucket/out")
