"""Places on Google's storage: made without asking anybody, and told in one line and in time where nothing answers."""

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from evoray.errors import UserError
from evoray.store import TRANSFERS, Location, uris
from evoray.store.remote import OBJECT_STORES


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No credentials, and nothing listens where Google's machines have a server that gives tokens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")
    uris._gs_client.cache_clear()
    yield
    uris._gs_client.cache_clear()


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_a_place_is_made_without_asking_anybody(nobody: None, scheme: str) -> None:
    place = Location.parse(f"{scheme}://bucket/a%20folder/")
    assert isinstance(place.filesystem, pafs.GcsFileSystem)
    assert place.filesystem.type_name in OBJECT_STORES
    assert (place.path, place.is_local) == ("bucket/a folder", False)
    file = place / "x.json"
    assert (file.uri, file.path) == (f"{scheme}://bucket/a%20folder/x.json", "bucket/a folder/x.json")
    again = pickle.loads(pickle.dumps(file))
    assert (again, again.path, again.filesystem) == (file, file.path, file.filesystem)


def test_the_client_is_told_what_the_uri_says_and_makes_no_tries_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []

    def client(**given: object) -> pafs.FileSystem:
        made.append(given)
        return pafs.LocalFileSystem()

    monkeypatch.setattr(pafs, "GcsFileSystem", client)
    uris._gs_client.cache_clear()
    place = Location.parse("gs://bucket/run?endpoint_override=127.0.0.1:1&scheme=http&project_id=mine")
    assert place.path == "bucket/run"
    Location.parse("gs://bucket/other?endpoint_override=127.0.0.1:1&scheme=http&project_id=mine")
    uris._gs_client.cache_clear()
    (given,) = made
    limit = given.pop("retry_time_limit")
    assert limit == uris.GS_TRIES
    assert given == {"endpoint_override": "127.0.0.1:1", "scheme": "http", "project_id": "mine"}
    with pytest.raises(UserError, match="says 'region'; it may say endpoint_override, scheme, project_id"):
        Location.parse("gs://bucket/run?region=us")
    with pytest.raises(UserError, match="names no bucket; write gs://bucket/folder"):
        Location.parse("gs://")


def test_a_pyarrow_without_google_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**given: object) -> pafs.FileSystem:
        raise ImportError("The pyarrow installation is not built with support for 'GcsFileSystem'")

    monkeypatch.setattr(pafs, "GcsFileSystem", missing)
    uris._gs_client.cache_clear()
    with pytest.raises(UserError, match=r"^cannot use gs://bucket/x: The pyarrow installation is not built .*; give a"):
        Location.parse("gs://bucket/x")


def test_where_nobody_gives_a_token_all_calls_end_in_one_line(
    nobody: None, impatient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("evoray.store.transfers.ATTEMPTS", 2)
    place, retries = Location.parse("gs://bucket/run"), TRANSFERS.retries
    calls = {
        "look at": place.size,
        "list": place.list,
        "read": (place / "x").read_bytes,
        "write": lambda: (place / "x").write_bytes(b"x"),
        "delete": (place / "x").delete,
    }
    for verb, call in calls.items():
        with pytest.raises(UserError) as caught:
            call()
        said = str(caught.value)
        assert said.startswith(f"cannot {verb} gs://bucket/run")
        assert said.endswith("check the bucket's name and the credentials in the environment")
        assert "\n" not in said
    assert TRANSFERS.retries == retries + len(calls), "the server that gives tokens may have been away for a moment"
