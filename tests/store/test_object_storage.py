"""Places on an S3 server: files, what fails for a moment, what fails for good, and secrets."""

import hashlib
import socket
from pathlib import Path

import pytest
from object_storage import S3Server, flaky, spoilt

from evoray.errors import EvorayError, UserError
from evoray.store import TRANSFERS, Location, uris
from evoray.store.manifest import CorruptError

LARGE = bytes(range(256)) * (80 << 10)
"""20 MiB: several pieces to fetch, and several parts to upload."""


def counted() -> tuple[int, int, int]:
    return TRANSFERS.hits, TRANSFERS.fetched, TRANSFERS.retries


def test_files_on_s3_are_written_whole_listed_and_deleted(s3: S3Server, tmp_path: Path) -> None:
    place = Location.parse(s3.make_bucket("files")) / "deep" / "folder"
    file = place / "x y.json"
    assert (place.is_local, place.exists(), place.list(), file.size()) == (False, False, [], None)
    with pytest.raises(FileNotFoundError, match=r"there is no file s3://files/deep/folder/x y.json"):
        file.read_bytes()
    file.delete()
    fetched = TRANSFERS.fetched
    for data in (b"one", LARGE, b"", b"two!"):
        file.write_bytes(data)
        assert (file.read_bytes(hashlib.sha256(data).hexdigest()), file.size()) == (data, len(data))
        file.download(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
    assert TRANSFERS.fetched - fetched == 2 * (len(LARGE) + 7)
    assert place.list() == ["x y.json"]
    status, listing = s3.request("GET", "/files?list-type=2&prefix=deep/folder/.")
    assert (status, b".tmp" in listing) == (200, False), "nothing is left of uploads"
    # What a killed writer left.
    assert s3.request("PUT", "/files/deep/folder/.x.0123456789abcdef.tmp", b"half")[0] == 200
    assert place.list() == ["x y.json"]
    place.remove_temporary()
    assert s3.request("GET", "/files/deep/folder/.x.0123456789abcdef.tmp")[0] == 404
    file.delete()
    assert place.list() == []


def test_the_uri_may_name_endpoint_and_region(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.make_bucket("named")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    place = Location.parse(f"s3://named/a%20b?endpoint_override=127.0.0.1:{s3.port}&scheme=http&region=eu-west-1")
    (place / "x").write_bytes(b"data")
    assert Location.parse(f"s3://named?endpoint_override={s3.url}").list() == ["a b"]
    with pytest.raises(UserError, match="says 'anonymous'; it may say endpoint_override, region, scheme"):
        Location.parse("s3://named/a?anonymous=true")


def test_what_fails_for_a_moment_is_tried_again(s3: S3Server, impatient: None, tmp_path: Path) -> None:
    s3.make_bucket("moments")
    before, sha256 = counted(), hashlib.sha256(LARGE).hexdigest()
    with flaky(s3) as proxy:
        place = Location.parse(f"s3://moments/run?endpoint_override=127.0.0.1:{proxy.port}&scheme=http")
        for number in range(6):
            (place / f"{number}").write_bytes(f"small {number}".encode())
        assert place.list() == [f"{number}" for number in range(6)]
        assert [(place / name).read_bytes() for name in place.list()] == [b"small %d" % number for number in range(6)]
        (place / "large").write_bytes(LARGE[: 4 << 20])
        assert (place / "large").size() == 4 << 20
        # Larger than a piece, straight from the server.
        (Location.parse("s3://moments/run") / "large").write_bytes(LARGE)
        (place / "large").download(tmp_path / "large", sha256)
        assert (tmp_path / "large").read_bytes() == LARGE
        (place / "3").delete()
        assert not (place / "3").exists()
        again = spoilt(proxy)
    # To cut an answer without a body spoils nothing.
    assert 10 < counted()[2] - before[2] <= again
    assert s3.request("GET", "/moments?list-type=2")[1].count(b".tmp<") == 0


def test_what_fails_for_good_is_named(s3: S3Server, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    retries = TRANSFERS.retries
    with pytest.raises(UserError, match=r"cannot write s3://nobody/x: .*NO_SUCH_BUCKET.*; check the bucket's name"):
        (Location.parse("s3://nobody") / "x").write_bytes(b"x")
    assert TRANSFERS.retries == retries, "asking again does not make a bucket"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gone = Location.parse(f"s3://bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http")
    with pytest.raises(EvorayError, match=r"cannot read s3://bucket/x.*NETWORK_CONNECTION"):
        gone.read_bytes()
    assert TRANSFERS.retries == retries + 5


def test_storage_that_answers_nothing_is_given_up(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uris, "STALLED_SECONDS", 1.0)
    monkeypatch.setattr("evoray.store.transfers.ATTEMPTS", 2)
    uris._s3_client.cache_clear()
    # Connections are taken by the system, and nobody reads.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        place = Location.parse(f"s3://bucket/x?endpoint_override=127.0.0.1:{deaf.getsockname()[1]}&scheme=http")
        with pytest.raises(EvorayError, match=r"cannot look at s3://bucket/x.*Timeout was reached"):
            place.size()
    uris._s3_client.cache_clear()


def test_wrong_bytes_are_fetched_again_then_told(s3: S3Server, tmp_path: Path) -> None:
    file = Location.parse(s3.make_bucket("wrong")) / "x"
    file.write_bytes(b"spoilt")
    got, expected = hashlib.sha256(b"spoilt").hexdigest(), hashlib.sha256(b"sound").hexdigest()
    before = counted()
    for call in (lambda: file.read_bytes(expected), lambda: file.download(tmp_path / "x", expected)):
        with pytest.raises(CorruptError, match=f"its sha256 is {got} instead of {expected}"):
            call()
    after = counted()
    assert (after[1] - before[1], after[2] - before[2]) == (2 * 3 * len(b"spoilt"), 4)
