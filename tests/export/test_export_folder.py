"""Where an export goes."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from evoray.errors import EvorayError, UserError
from evoray.export.folder import appearing, new_folder
from evoray.store import Location


def test_a_file_uri_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_folder(f"file://{tmp_path}/a%20b").local_path == tmp_path / "a b"
    assert new_folder("out").local_path == tmp_path / "out"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_folder("~/out").local_path == tmp_path / "out"


def bucket(folder: Path) -> Location:
    folder.mkdir()
    return Location.inside(pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), "out", "s3://bucket/out")


def test_on_object_storage_the_file_that_loaders_ask_for_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, order = bucket(tmp_path / "bucket"), list[str]()
    upload = Location.upload_file

    def noted(self: Location, source: Path) -> None:
        upload(self, source)
        order.append(self.name)

    monkeypatch.setattr(Location, "upload_file", noted)
    with appearing(place) as stage:
        for name in ("config.json", "a.safetensors", "z.json"):
            (stage / name).write_text(name)
        (stage / "deep").mkdir()
        (stage / "deep" / "b").write_text("b")
    assert order == ["a.safetensors", "b", "z.json", "config.json"]
    assert (place / "deep" / "b").read_bytes() == b"b"
    monkeypatch.setattr("evoray.export.folder.Location.parse", lambda out: place)
    with pytest.raises(UserError, match="--out s3://bucket/out holds something already"):
        new_folder("s3://bucket/out")


def test_an_upload_that_fails_leaves_nothing_on_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, upload = bucket(tmp_path / "bucket"), Location.upload_file

    def failing(self: Location, source: Path) -> None:
        if self.name == "b":
            raise EvorayError("the storage is full")
        upload(self, source)

    def export() -> None:
        with appearing(place) as stage:
            (stage / "a").write_text("a")
            (stage / "b").write_text("b")

    monkeypatch.setattr(Location, "upload_file", failing)
    with pytest.raises(EvorayError, match="the storage is full"):
        export()
    assert place.list() == []


def test_credentials_in_a_uri_are_refused_and_not_told() -> None:
    with pytest.raises(UserError, match="holds credentials") as caught:
        new_folder("s3://key:hidden@bucket/out")
    assert "hidden" not in str(caught.value)
