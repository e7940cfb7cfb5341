"""Store, run and export on object storage that fails at every third request: all as on a disk."""

from pathlib import Path

import pytest
from builds import built, contents
from object_storage import CREDENTIALS, S3Server, flaky, gets, spoilt
from searches import Material, bits_anywhere

from evoray.run.export import run_export
from evoray.run.search import search
from evoray.settings import ExportSettings
from evoray.store import TRANSFERS, Location


@pytest.mark.cluster
def test_a_job_on_bad_object_storage_ends_as_on_a_disk(
    s3: S3Server, impatient: None, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.make_bucket("job")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where the node's cache is
    levels = {"levels": ("2", "3", "4"), "group_size": 32}
    manifest = built(material, tmp_path / "store", **levels)
    search(material.settings(tmp_path / "run", store=str(tmp_path / "store")))
    run_export(ExportSettings(configuration=str(tmp_path / "run"), out=str(tmp_path / "out")))
    retries = TRANSFERS.retries
    with flaky(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert built(material, f"{bucket}/store", **levels) == manifest  # type: ignore[arg-type]
        for generations in (2, 4):
            search(material.settings(f"{bucket}/run", store=f"{bucket}/store", generations=generations))
        run_export(ExportSettings(configuration=f"{bucket}/run", out=f"{bucket}/out"))
        assert 20 < TRANSFERS.retries - retries <= spoilt(proxy)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    assert bits_anywhere(f"{bucket}/run") == bits_anywhere(tmp_path / "run")
    objects = s3.contents("job")
    for folder in ("store", "out"):
        there = {key.partition("/")[2]: data for key, data in objects.items() if key.startswith(f"{folder}/")}
        here = contents(tmp_path / folder)
        if folder == "out":  # the card tells the command, and so the places
            assert len(there.pop("README.md")) > 1000 < len(here.pop("README.md"))
        assert there == here
    assert not [key for key in objects if key.endswith(".tmp")]
    secrets = [value.encode() for name, value in CREDENTIALS.items() if value.endswith("tests")]
    assert len(secrets) == 3
    assert not [key for key, data in objects.items() if any(secret in data for secret in secrets)]


@pytest.mark.cluster
def test_workers_of_a_node_share_one_download(
    ray_home: Path, s3: S3Server, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.make_bucket("shared")
    for file in (path for path in Path(material.store).rglob("*") if path.is_file()):
        (Location.parse(bucket) / str(file.relative_to(material.store))).upload_file(file)
    search(material.settings(tmp_path / "here", generations=2))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the node's cache is
    with flaky(s3, every=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        search(material.settings(tmp_path / "run", store=bucket, generations=2, workers=2))
        layers = {path: count for path, count in gets(proxy).items() if path.endswith(".arrow")}
    assert bits_anywhere(tmp_path / "run") == bits_anywhere(tmp_path / "here")
    # A search does not read what no candidate has.
    assert len(layers) > 10
    assert set(layers.values()) == {1}
