"""Files of a remote file system, read and written so that what fails for a moment is done again.

Holds: `pieces`, `publish`. Errors are those of pyarrow.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from evoray.store.transfers import TRANSFERS, retried

PIECE_BYTES = 8 << 20
"""What is fetched by one request, and fetched again when it fails."""

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Types of file systems that have no folders, and no renaming in one step."""

_COPY_LIMIT = 5 << 30
"""Object stores copy no larger object by one request."""


def pieces(filesystem: pafs.FileSystem, path: str) -> Iterator[bytes]:
    """A file's bytes, each piece of them fetched until it is whole.

    Raises:
        FileNotFoundError: when there is no file.
        pyarrow.ArrowException, OSError: when it cannot be read.
    """
    with retried(lambda: filesystem.open_input_file(path)) as stream:
        size = retried(stream.size)
        for start in range(0, size, PIECE_BYTES):
            count = min(PIECE_BYTES, size - start)
            piece = retried(functools.partial(_exactly, stream, count, start))
            TRANSFERS.add(fetched=count)
            yield piece


def _exactly(stream: pa.NativeFile, count: int, start: int) -> bytes:
    piece = bytes(stream.read_at(count, start))
    if len(piece) != count:
        raise OSError(f"{len(piece)} bytes came of {count}")
    return piece


def publish(filesystem: pafs.FileSystem, source: Path, path: str, aside: str, before: Callable[[], None]) -> None:
    """Brings a whole local file to a place, where it is seen whole or not at all.

    A stream that is closed after an error publishes what it got so far, and nothing keeps an interrupted one from being
    closed. So it writes to another place, and the storage itself makes a copy when that is whole.

    Args:
        filesystem: of the place.
        source: the local file.
        path: the place.
        aside: the other place; nothing lies there afterwards.
        before: called last before the file is seen; what it raises keeps it from that.

    Raises:
        pyarrow.ArrowException, OSError: when it cannot be written.
    """
    size, in_store = source.stat().st_size, filesystem.type_name in OBJECT_STORES
    if in_store and size > _COPY_LIMIT:
        before()
        retried(lambda: _send(filesystem, source, path, size))
        return
    try:
        retried(lambda: _send(filesystem, source, aside, size))
        before()
        # A move of an object store is a copy and a deletion, and could not be done again between the two.
        place = filesystem.copy_file if in_store else filesystem.move
        retried(lambda: place(aside, path))
    except BaseException:
        with contextlib.suppress(pa.ArrowException, OSError):
            filesystem.delete_file(aside)
        raise
    # The file is there. What is left beside it is swept away when the folder is next written to.
    with contextlib.suppress(pa.ArrowException, OSError):
        if in_store:
            retried(lambda: filesystem.delete_file(aside))


def _send(filesystem: pafs.FileSystem, source: Path, path: str, size: int) -> None:
    folder = path.rpartition("/")[0]
    # A bucket must not be made in passing; other file systems want folders.
    if folder and filesystem.type_name not in OBJECT_STORES:
        filesystem.create_dir(folder, recursive=True)
    with source.open("rb") as local, filesystem.open_output_stream(path) as stream:
        while piece := local.read(PIECE_BYTES):
            stream.write(piece)
    found = filesystem.get_file_info(path).size
    if found != size:
        raise OSError(f"it has {found} bytes after an upload of {size}")
