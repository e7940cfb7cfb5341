"""The cache of a node: one download per file, however many processes and however they die."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from evoray.errors import UserError
from evoray.store import TRANSFERS
from evoray.store.cache import NodeCache
from evoray.store.location import Location
from evoray.store.manifest import CorruptError

DATA = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(DATA).hexdigest()


def source(folder) -> Location:
    return Location.inside(pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), "file", "s3://bucket/file")


@pytest.fixture
def bucket(tmp_path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path


def kept(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder / "cache") if not name.endswith(".lock"))


# A process that says when it waits for another one and when it downloads, and goes on downloading when told.
CHILD = """
import sys
sys.path[:0] = {paths!r}
import fcntl
import test_node_cache as mine
from pathlib import Path

def say(word):
    print(word, flush=True)

lock, download = fcntl.flock, mine.Location.download
def waiting(handle, how):
    try:
        lock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waits")
        lock(handle, how)
def slow(self, target, sha256):
    target.write_bytes(mine.DATA[:1000])
    say("downloads")
    sys.stdin.readline()
    download(self, target, sha256)
fcntl.flock, mine.Location.download = waiting, slow
folder = Path({folder!r})
path = mine.NodeCache(folder / "cache").fetch(mine.source(folder), size=len(mine.DATA), sha256=mine.SHA256)
assert path.read_bytes() == mine.DATA
say("has it")
"""


def start(folder) -> subprocess.Popen:
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    code = CHILD.format(paths=paths, folder=str(folder))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_two_processes_at_once_download_once(bucket):
    with start(bucket) as first:
        assert first.stdout.readline() == "downloads\n"
        with start(bucket) as second:
            assert second.stdout.readline() == "waits\n"
            first.stdin.write("go on\n")
            assert first.stdout.readline() == "has it\n"
            assert second.stdout.readline() == "has it\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert kept(bucket) == [SHA256]


def test_the_other_takes_over_from_a_killed_process(bucket):
    with start(bucket) as first:
        assert first.stdout.readline() == "downloads\n"
        with start(bucket) as second:
            assert second.stdout.readline() == "waits\n"
            assert len(kept(bucket)) == 1
            first.kill()
            assert second.stdout.readline() == "downloads\n"
            second.stdin.write("go on\n")
            assert second.stdout.readline() == "has it\n"
    assert kept(bucket) == [SHA256]


def test_threads_download_once(bucket, monkeypatch):
    count = []
    download = Location.download

    def counting(self, target, sha256):
        count.append(target)
        download(self, target, sha256)

    monkeypatch.setattr(Location, "download", counting)
    cache, found = NodeCache(bucket / "cache"), []
    threads = [
        threading.Thread(target=lambda: found.append(cache.fetch(source(bucket), size=len(DATA), sha256=SHA256)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [bucket / "cache" / SHA256] * 8
    assert len(count) == 1
    (bucket / "file").unlink()
    assert cache.fetch(source(bucket), size=len(DATA), sha256=SHA256).read_bytes() == DATA


@pytest.mark.parametrize("cuts", [2, 3])
def test_a_download_cut_short_is_tried_again_then_named(bucket, monkeypatch, cuts):
    whole, tries = Location._pieces, []

    def cut(self):
        tries.append(self)
        return iter([DATA[:-1]]) if len(tries) <= cuts else whole(self)

    monkeypatch.setattr(Location, "_pieces", cut)
    cache = NodeCache(bucket / "cache")
    if cuts == 2:
        assert cache.fetch(source(bucket), size=len(DATA), sha256=SHA256).read_bytes() == DATA
    else:
        with pytest.raises(CorruptError, match=f"its sha256 is [0-9a-f]{{64}} instead of {SHA256}"):
            cache.fetch(source(bucket), size=len(DATA), sha256=SHA256)
    assert kept(bucket) == ([SHA256] if cuts == 2 else [])


def test_what_was_used_longest_ago_makes_room(tmp_path):
    contents = [bytes([number]) * 1000 for number in range(6)]
    names = [hashlib.sha256(data).hexdigest() for data in contents]
    for number, data in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(data)
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    cache = NodeCache(tmp_path / "cache", budget=3000)
    used: list[int] = []

    def use(number):
        place = Location.inside(filesystem, f"{number}", f"s3://bucket/{number}")
        path = cache.fetch(place, size=1000, sha256=names[number])
        assert path.read_bytes() == contents[number]
        # The clock of a file system may be coarse.
        os.utime(path, ns=(len(used), len(used)))
        used.append(number)

    hits = TRANSFERS.hits
    expected_hits = 0
    for number in (0, 1, 2, 0, 3, 0, 1, 4, 5, 4, 2):
        last = list(dict.fromkeys(reversed(used)))[:3]
        expected_hits += number in last
        use(number)
        assert set(kept(tmp_path)) == {names[each] for each in list(dict.fromkeys(reversed(used)))[:3]}
    assert TRANSFERS.hits - hits == expected_hits > 0
    (tmp_path / "large").write_bytes(b"x" * 3001)
    large = Location.inside(filesystem, "large", "s3://bucket/large")
    assert cache.fetch(large, size=3001, sha256=hashlib.sha256(b"x" * 3001).hexdigest()) is None
    assert len(kept(tmp_path)) == 3, "nothing makes room for what has none anyway"


def test_a_missing_file_and_a_bad_folder_are_named(bucket):
    (bucket / "file").unlink()
    with pytest.raises(CorruptError, match="it is missing"):
        NodeCache(bucket / "cache").fetch(source(bucket), size=1, sha256=SHA256)
    (bucket / "flat").write_bytes(b"")
    with pytest.raises(UserError, match="cannot use the cache folder"):
        NodeCache(bucket / "flat").fetch(source(bucket), size=1, sha256=SHA256)


def test_the_default_folder_is_private(bucket, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(bucket))
    cache = NodeCache()
    assert cache.folder == bucket / f"evoray-cache-{os.getuid()}"
    path = cache.fetch(source(bucket), size=len(DATA), sha256=SHA256)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.discard(SHA256)
    assert not path.exists()
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    cache.folder.rename(bucket / f"evoray-cache-{os.getuid()}")
    with pytest.raises(UserError, match="belongs to another user"):
        NodeCache().fetch(source(bucket), size=len(DATA), sha256=SHA256)
