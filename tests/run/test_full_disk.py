"""A search whose node cache lies on a real file system that is small, or full, or becomes full: the same bits.

A mount of its own for each test, where this process may mount; elsewhere the tests say that they could not.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from object_storage import S3Server, flaky, gets
from searches import Material, bits_anywhere

from evoray.run.search import search
from evoray.store import Location, VariantStore

ROOM = 3
"""Times the largest file that the whole small disk has; a cache takes half of it."""


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of doing without a cache."""
    said = [record.getMessage() for record in caplog.records]
    return [line for line in said if "without the cache of this node, which is slower: " in line]


@dataclass(frozen=True)
class SmallDisk:
    """A file system of a few files' size, where the node's cache lies."""

    folder: Path

    def kept(self) -> list[str]:
        """Files of the cache, whole or half-written."""
        return [name for name in os.listdir(self.folder) if not name.endswith(".lock") and name != "filler"]

    def fill(self) -> None:
        """Somebody else takes all that is free."""
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        assert shutil.disk_usage(self.folder).free == 0


@pytest.fixture
def bucket(s3: S3Server, material: Material, request: pytest.FixtureRequest) -> str:
    """The store on object storage, in a bucket of each test's own."""
    name = s3.make_bucket(re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[-60:].strip("-"))
    for file in (path for path in Path(material.store).rglob("*") if path.is_file()):
        (Location.parse(name) / str(file.relative_to(material.store))).upload_file(file)
    return name


@pytest.fixture
def disk(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """Mounted where this process and its workers look for the cache, and gone afterwards."""
    largest = max(file.size for file in VariantStore.open(material.store).manifest.files.values())
    folder = tmp_path / "temporary" / f"evoray-cache-{os.getuid()}"
    folder.mkdir(parents=True, mode=0o700)
    options = f"size={ROOM * largest // 1024 + 8}k,mode=700"
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error.strerror}")
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        monkeypatch.setenv("TMPDIR", str(folder.parent))
        monkeypatch.setattr("tempfile.tempdir", str(folder.parent))
        yield SmallDisk(folder)
    finally:
        # Lazily: variants of a search that has ended may still be mapped.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_small_disk_files_make_room_for_others(
    s3: S3Server,
    bucket: str,
    disk: SmallDisk,
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    search(material.settings(tmp_path / "roomy", generations=1))
    with flaky(s3, every=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        search(material.settings(tmp_path / "small", store=bucket, generations=1))
        layers = {path: count for path, count in gets(proxy).items() if path.endswith(".arrow")}
    assert bits_anywhere(tmp_path / "small") == bits_anywhere(tmp_path / "roomy")
    assert len(layers) > ROOM
    assert max(layers.values()) > 1, "what made room was fetched again"
    assert 0 < len(disk.kept()) < len(layers)
    assert not told(caplog)


@pytest.mark.parametrize("when", ["before", "in a download"])
def test_on_a_full_disk_variants_are_read_without_a_cache(
    bucket: str,
    disk: SmallDisk,
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    when: str,
) -> None:
    search(material.settings(tmp_path / "roomy", generations=1))
    download, begun = Location.download, list[Path]()

    def filled(self: Location, target: Path, sha256: str | None = None) -> None:
        if not begun:
            disk.fill()
        begun.append(target)
        download(self, target, sha256)

    if when == "before":
        disk.fill()
    else:
        monkeypatch.setattr(Location, "download", filled)
    search(material.settings(tmp_path / "full", store=bucket, generations=1))
    assert bits_anywhere(tmp_path / "full") == bits_anywhere(tmp_path / "roomy")
    assert len(begun) == (0 if when == "before" else 1)
    assert disk.kept() == []
    said = told(caplog)
    assert said
    assert ("has 0 bytes free" if when == "before" else "No space left on device") in said[0]


@pytest.mark.cluster
@pytest.mark.parametrize("full", [False, True])
def test_two_workers_with_one_small_disk_leave_the_same_run(
    ray_home: Path, bucket: str, disk: SmallDisk, material: Material, tmp_path: Path, full: bool
) -> None:
    search(material.settings(tmp_path / "roomy", generations=2))
    if full:
        disk.fill()
    search(material.settings(tmp_path / "small", store=bucket, generations=2, workers=2))
    assert bits_anywhere(tmp_path / "small") == bits_anywhere(tmp_path / "roomy")
    assert bool(disk.kept()) != full
