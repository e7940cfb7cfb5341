"""A place for files, on this machine or on object storage: `Location`.

Stores and run directories are written through it. What makes it more than `pyarrow.fs`: a file is seen whole or not
at all, errors are one line that names the remedy, and no secret is ever in a text.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from evoray.credentials import without_secrets
from evoray.errors import EvorayError, UserError
from evoray.stopping import to_the_end
from evoray.store.manifest import CorruptError
from evoray.store.remote import PIECE_BYTES, pieces, publish
from evoray.store.transfers import TRANSFERS, retried
from evoray.store.uris import is_users, lacks_token, open_uri

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*://")
_TEMPORARY = re.compile(r"^\..*\.[0-9a-f]{16}\.tmp$")
_READS = 3
"""Times that a file is fetched which has not the bytes that it should have."""


class DiskError(EvorayError):
    """It is this machine's file, not the remote one, that failed: a full disk, no rights."""


@dataclass(frozen=True)
class Location:
    """A file or folder, local or in any `pyarrow.fs` file system. Equal when the URIs are; may be pickled.

    Attributes:
        uri: absolute path of a local place, otherwise the URI.
        path: path inside the file system.
        filesystem: None when local.
        guard: of this place and all below: called before anything appears or is deleted, and what it raises keeps it
            from that.

    Example:
        >>> folder = Location.parse("results")                   # doctest: +SKIP
        >>> (folder / "best.json").write_bytes(b"{}")            # doctest: +SKIP
    """

    uri: str
    path: str = field(compare=False)
    filesystem: pafs.FileSystem | None = field(default=None, compare=False, repr=False)
    guard: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, place: str | Path | Location) -> Location:
        """A place from what users write: a folder or file, or a URI such as `s3://bucket/folder`.

        Credentials come from the environment or the usual chain of the object store, never from the URI.

        Raises:
            UserError: for an empty place, an unknown scheme, credentials in the URI, or a file system that cannot be
                reached.
        """
        if isinstance(place, Location):
            return place
        text = str(place)
        if not text.strip():
            raise UserError("a place is empty; give a folder or a URI such as s3://bucket/folder")
        if isinstance(place, Path) or not _SCHEME.match(text):
            path = _absolute(os.path.expanduser(text))
            return cls(uri=path, path=path)
        parts = urlsplit(text)
        if parts.scheme.lower() == "file":
            if parts.netloc not in ("", "localhost"):
                raise UserError(
                    f"{text} names the host '{parts.netloc}'; write file:///folder for a folder of this machine"
                )
            path = _absolute(unquote(parts.path))
            return cls(uri=path, path=path)
        filesystem, path = open_uri(text)
        return cls(uri=text, path=path, filesystem=filesystem)

    @classmethod
    def inside(cls, filesystem: pafs.FileSystem, path: str, uri: str) -> Location:
        """A place in a file system that no URI leads to.

        Args:
            filesystem: any `pyarrow.fs` file system; treated as remote.
            path: path inside it.
            uri: what to call the place in messages.
        """
        return cls(uri=uri, path=path.rstrip("/"), filesystem=filesystem)

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, child: str) -> Location:
        address, question, query = self.uri.partition("?") if self.filesystem is not None else (self.uri, "", "")
        uri = f"{address.rstrip('/')}/{child}{question}{query}"
        path = f"{self.path.rstrip('/')}/{child}" if self.path else child
        return Location(uri=uri, path=path, filesystem=self.filesystem, guard=self.guard)

    def guarded(self, guard: Callable[[], None]) -> Location:
        """The same place with a guard."""
        return replace(self, guard=guard)

    def allow_writing(self) -> None:
        """Asks the guard, if there is one, for who writes here by other means."""
        if self.guard is not None:
            self.guard()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that it lies in."""
        address, question, query = self.uri.partition("?") if self.filesystem is not None else (self.uri, "", "")
        uri = f"{address.rstrip('/').rpartition('/')[0]}{question}{query}"
        return Location(uri=uri, path=self.path.rpartition("/")[0], filesystem=self.filesystem)

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine, to be opened and mapped in place."""
        return self.filesystem is None

    @property
    def local_path(self) -> Path | None:
        """The path on this machine; None for a remote place."""
        return Path(self.path) if self.filesystem is None else None

    def size(self) -> int | None:
        """Bytes of the file; None where there is no file.

        Raises:
            UserError, EvorayError: when the place cannot be reached.
        """
        if self.filesystem is not None:
            info = self._info(self.filesystem)
            return int(info.size) if info.type == pafs.FileType.File else None
        with self._named("look at"):
            return os.stat(self.path).st_size if os.path.isfile(self.path) else None

    def exists(self) -> bool:
        """Whether there is a file or folder.

        Raises:
            UserError, EvorayError: when the place cannot be reached.
        """
        if self.filesystem is None:
            return os.path.exists(self.path)
        return bool(self._info(self.filesystem).type != pafs.FileType.NotFound)

    def list(self) -> list[str]:
        """Sorted names of the files and folders directly inside; none where there is no folder.

        Half-written files are left out.

        Raises:
            UserError, EvorayError: when the place cannot be reached.
        """
        return [name for name in self._names() if not _TEMPORARY.match(name)]

    def read_bytes(self, sha256: str | None = None) -> bytes:
        """The whole file.

        Args:
            sha256: its digest, hexadecimal, where it is known. A remote file that has another one is fetched again.

        Raises:
            FileNotFoundError: when there is none.
            CorruptError: when it has another digest.
            UserError, EvorayError: when it cannot be read.
        """
        for left in reversed(range(self._reads(sha256))):
            data = b"".join(self._pieces())
            if sha256 is None or self._is(hashlib.sha256(data).hexdigest(), sha256, left):
                break
        return data

    def download(self, target: Path, sha256: str | None = None) -> None:
        """Copies the file to a local path, in pieces.

        Args:
            target: the path; where it fails, a part of the file may lie there.
            sha256: its digest, hexadecimal, where it is known. A remote file that has another one is fetched again.

        Raises:
            FileNotFoundError: when there is none.
            CorruptError: when it has another digest.
            DiskError: when the copy cannot be written.
            UserError, EvorayError: when it cannot be read.
        """
        for left in reversed(range(self._reads(sha256))):
            digest = hashlib.sha256()
            try:
                with target.open("wb") as copy:
                    for piece in self._pieces():
                        digest.update(piece)
                        copy.write(piece)
                    copy.flush()
                    os.fsync(copy.fileno())
            except FileNotFoundError:
                raise
            except OSError as error:
                raise DiskError(f"cannot write {target}: {error.strerror}") from error
            if self._is(digest.hexdigest(), sha256, left):
                break

    def write_bytes(self, data: bytes) -> None:
        """Writes the whole file, replacing what was there; nobody ever sees a part of it.

        Raises:
            UserError, EvorayError: when it cannot be written.
        """
        with self.staged() as path:
            path.write_bytes(data)

    def upload_file(self, source: Path) -> None:
        """Copies a local file here, replacing what was there; the local file stays.

        Raises:
            UserError, EvorayError: when it cannot be written.
        """
        with self.staged() as path:
            try:
                shutil.copyfile(source, path)
            except OSError as error:
                self._fail("write", error)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """A local path to write this file to. It is published when the block ends well, and gone when it doesn't.

        So a writer can verify what it wrote before anyone sees it. Locally the path lies in the same folder and is
        renamed after it has reached the disk; a remote file is uploaded from a temporary folder under another name,
        its size compared, and then renamed, too.

        Yields:
            The path, where nothing lies yet.

        Raises:
            UserError, EvorayError: when the file cannot be written.
        """
        if self.filesystem is not None:
            with tempfile.TemporaryDirectory(prefix="evoray-") as folder:
                path = Path(folder) / self.name
                try:
                    yield path
                except OSError as error:
                    self._fail("write", error)
                with to_the_end():
                    self._upload(path, self.filesystem)
            return
        target = Path(self.path)
        path = target.parent / self._temporary_name()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._fail("write", error)
        try:
            yield path
            with to_the_end():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
                self.allow_writing()
                path.replace(target)
                _sync_folder(target.parent)
        except OSError as error:
            self._fail("write", error)
        finally:
            path.unlink(missing_ok=True)

    def delete(self) -> None:
        """Deletes the file; nothing happens where there is none.

        Raises:
            UserError, EvorayError: when it cannot be deleted.
        """
        filesystem = self.filesystem
        self.allow_writing()
        with contextlib.suppress(FileNotFoundError), self._named("delete"):
            if filesystem is None:
                os.unlink(self.path)
            else:
                retried(lambda: filesystem.delete_file(self.path))

    def remove_temporary(self) -> None:
        """Deletes what killed writers left half-written directly inside this folder."""
        for name in self._names():
            if _TEMPORARY.match(name):
                (self / name).delete()

    def _info(self, filesystem: pafs.FileSystem) -> pafs.FileInfo:
        with self._named("look at"):
            return retried(lambda: filesystem.get_file_info(self.path))

    def _names(self) -> tuple[str, ...]:
        filesystem = self.filesystem
        with contextlib.suppress(FileNotFoundError), self._named("list"):
            if filesystem is None:
                return tuple(sorted(os.listdir(self.path)))
            inside = pafs.FileSelector(self.path, allow_not_found=True)
            return tuple(sorted(info.base_name for info in retried(lambda: filesystem.get_file_info(inside))))
        return ()

    def _pieces(self) -> Iterator[bytes]:
        with self._named("read"):
            if self.filesystem is None:
                with open(self.path, "rb") as file:
                    while piece := file.read(PIECE_BYTES):
                        yield piece
            else:
                yield from pieces(self.filesystem, self.path)

    def _reads(self, sha256: str | None) -> int:
        return 1 if sha256 is None or self.filesystem is None else _READS

    def _is(self, found: str, wanted: str | None, left: int) -> bool:
        """Whether a digest is the wanted one; where it is not, and no try is left, that is an error."""
        if wanted is None or found == wanted:
            return True
        if not left:
            raise CorruptError(f"its sha256 is {found} instead of {wanted}")
        TRANSFERS.add(retries=1)
        return False

    def _temporary_name(self) -> str:
        return f".{self.name}.{secrets.token_hex(8)}.tmp"

    def _upload(self, source: Path, filesystem: pafs.FileSystem) -> None:
        """The one place from where this package puts a file on object storage."""
        aside = f"{self.path.rpartition('/')[0]}/{self._temporary_name()}"
        with self._named("write"):
            publish(filesystem, source, self.path, aside, self.allow_writing)

    @contextlib.contextmanager
    def _named(self, verb: str) -> Iterator[None]:
        """Gives errors inside this place's name.

        Raises:
            FileNotFoundError: when there is no file.
            UserError, EvorayError: when something else failed.
        """
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {self}") from None
        except (pa.ArrowException, OSError) as error:
            self._fail(verb, error)

    def _fail(self, verb: str, error: Exception) -> NoReturn:
        text = without_secrets(getattr(error, "strerror", None) or str(error))
        if self.filesystem is None:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise EvorayError(f"cannot {verb} {self}: {text}") from error
            raise UserError(f"cannot {verb} {self}: {text}; give a place that may be read and written") from error
        if is_users(text) or lacks_token(text):
            raise UserError(
                f"cannot {verb} {self}: {text}; check the bucket's name and the credentials in the environment"
            ) from None
        raise EvorayError(f"cannot {verb} {self}: {text}") from None


def _absolute(path: str) -> str:
    # POSIX lets two leading slashes mean something else, and `abspath` keeps them; here they are a slip of the pen.
    return "/" + os.path.abspath(path).lstrip("/")


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a loss of power; file systems that cannot sync a folder are let be."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
