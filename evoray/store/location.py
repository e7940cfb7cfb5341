"""A place for files, on this machine or on object storage: `Location`.

Stores and run directories are written through it. What makes it more than `pyarrow.fs`: a file is seen whole or not
at all, errors are one line that names the remedy, and no secret is ever in a text.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from evoray.errors import EvorayError, UserError
from evoray.stopping import to_the_end

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*://")
_TEMPORARY = re.compile(r"^\..*\.[0-9a-f]{16}\.tmp$")
# What object stores say when it is the user who has to act: no credentials, wrong ones, no rights, no bucket.
_USERS = re.compile(
    r"credential|access.?denied|forbidden|unauthori[sz]ed|no.?such.?bucket|bucket.{0,40}(not found|does not exist)"
    r"|invalid.?access.?key|signature|permission|could not resolve region|HTTP status 30[17]|\b40[13]\b",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(r"((?:signature|credential|token|secret\w*|access_key)=)[^&\s'\"]+", re.IGNORECASE)
_OBJECT_STORES = ("s3", "gcs", "abfs")
_COPY_BYTES = 8 << 20


@functools.lru_cache(maxsize=64)
def _remote(uri: str) -> tuple[pafs.FileSystem, str]:
    """File system and path behind a URI; kept, because making an S3 client takes longer than using it."""
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return filesystem, path


def _without_secrets(text: str) -> str:
    """The first line of an error's text, without values of secret environment variables and without credentials."""
    line = (text.splitlines() or [""])[0]
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name):
            line = line.replace(value, "***")
    line = re.sub(r"//[^/@\s]+@", "//***@", line)
    return _SECRET_PARAMETER.sub(r"\1***", line)[:300]


@dataclass(frozen=True)
class Location:
    """A file or folder, local or in any `pyarrow.fs` file system. Equal when the URIs are; may be pickled.

    Attributes:
        uri: absolute path of a local place, otherwise the URI.
        path: path inside the file system.
        filesystem: None when local.

    Example:
        >>> folder = Location.parse("results")                   # doctest: +SKIP
        >>> (folder / "best.json").write_bytes(b"{}")            # doctest: +SKIP
    """

    uri: str
    path: str = field(compare=False)
    filesystem: pafs.FileSystem | None = field(default=None, compare=False, repr=False)

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
        if "@" in parts.netloc and not parts.scheme.lower().startswith("abfs"):
            raise UserError(
                f"the URI {parts.scheme}://***@{parts.netloc.rpartition('@')[2]}{parts.path} holds credentials; "
                "give them through the environment instead"
            )
        if re.search(r"secret|password|token|access_key", parts.query, re.IGNORECASE):
            raise UserError(
                f"the URI {parts.scheme}://{parts.netloc}{parts.path}?*** holds credentials; "
                "give them through the environment instead"
            )
        if parts.scheme.lower() in ("s3", "gs", "gcs") and not parts.netloc:
            raise UserError(f"{text} names no bucket; write {parts.scheme}://bucket/folder")
        try:
            filesystem, path = _remote(text)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"cannot use {text}: {_without_secrets(str(error))}; give a folder, or a URI that pyarrow.fs knows "
                "(s3://, gs://, file://) with credentials in the environment"
            ) from None
        return cls(uri=text, path=path.rstrip("/"), filesystem=filesystem)

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
        return Location(uri=uri, path=path, filesystem=self.filesystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

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
        try:
            if self.filesystem is None:
                return os.stat(self.path).st_size if os.path.isfile(self.path) else None
            info = self.filesystem.get_file_info(self.path)
        except (pa.ArrowException, OSError) as error:
            self._fail("look at", error)
        return int(info.size) if info.type == pafs.FileType.File else None

    def exists(self) -> bool:
        """Whether there is a file or folder.

        Raises:
            UserError, EvorayError: when the place cannot be reached.
        """
        try:
            if self.filesystem is None:
                return os.path.exists(self.path)
            return bool(self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound)
        except (pa.ArrowException, OSError) as error:
            self._fail("look at", error)

    def list(self) -> list[str]:
        """Sorted names of the files and folders directly inside; none where there is no folder.

        Half-written files are left out.

        Raises:
            UserError, EvorayError: when the place cannot be reached.
        """
        try:
            if self.filesystem is None:
                names = os.listdir(self.path)
            else:
                found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
                names = [info.base_name for info in found]
        except FileNotFoundError:
            return []
        except (pa.ArrowException, OSError) as error:
            self._fail("list", error)
        return sorted(name for name in names if not _TEMPORARY.match(name))

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: when there is none.
            UserError, EvorayError: when it cannot be read.
        """
        try:
            if self.filesystem is None:
                return Path(self.path).read_bytes()
            with self.filesystem.open_input_stream(self.path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {self}") from None
        except (pa.ArrowException, OSError) as error:
            self._fail("read", error)

    def download(self, target: Path) -> None:
        """Copies the file to a local path, in pieces.

        Raises:
            FileNotFoundError: when there is none.
            UserError, EvorayError: when it cannot be read or the copy cannot be written.
        """
        try:
            with self._stream() as stream, target.open("wb") as copy:
                while piece := stream.read(_COPY_BYTES):
                    copy.write(piece)
                copy.flush()
                os.fsync(copy.fileno())
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {self}") from None
        except (pa.ArrowException, OSError) as error:
            self._fail("fetch", error)

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
        renamed after it has reached the disk; a remote file is uploaded from a temporary folder and its size compared.

        Yields:
            The path, where nothing lies yet.

        Raises:
            UserError, EvorayError: when the file cannot be written.
        """
        if self.filesystem is not None:
            with tempfile.TemporaryDirectory(prefix="evoray-") as folder:
                path = Path(folder) / self.name
                yield path
                with to_the_end():
                    self._upload(path)
            return
        target = Path(self.path)
        path = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._fail("write", error)
        try:
            yield path
            with to_the_end():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
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
        try:
            if self.filesystem is None:
                Path(self.path).unlink(missing_ok=True)
            else:
                self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            return
        except (pa.ArrowException, OSError) as error:
            self._fail("delete", error)

    def remove_temporary(self) -> None:
        """Deletes what killed writers left half-written directly inside this folder."""
        if self.filesystem is None:
            for path in Path(self.path).glob(".*.tmp"):
                if _TEMPORARY.match(path.name):
                    path.unlink(missing_ok=True)

    def _stream(self) -> pa.NativeFile:
        if self.filesystem is None:
            return pa.OSFile(self.path, "rb")
        return self.filesystem.open_input_stream(self.path)

    def _upload(self, source: Path) -> None:
        filesystem = self.filesystem
        assert filesystem is not None
        size = source.stat().st_size
        parent = self.path.rpartition("/")[0]
        try:
            # Object stores have no folders, and a bucket must not be made in passing; other file systems want them.
            if parent and filesystem.type_name not in _OBJECT_STORES:
                filesystem.create_dir(parent, recursive=True)
            with source.open("rb") as local, filesystem.open_output_stream(self.path) as stream:
                while piece := local.read(_COPY_BYTES):
                    stream.write(piece)
        except (pa.ArrowException, OSError) as error:
            self._fail("write", error)
        # Closing a stream after an error publishes what it got so far, so only the size tells.
        found = self.size()
        if found != size:
            raise EvorayError(f"{self} has {found} bytes after an upload of {size}; run the same command again")

    def _fail(self, verb: str, error: Exception) -> NoReturn:
        text = _without_secrets(getattr(error, "strerror", None) or str(error))
        if self.filesystem is None:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise EvorayError(f"cannot {verb} {self}: {text}") from error
            raise UserError(f"cannot {verb} {self}: {text}; give a place that may be read and written") from error
        if _USERS.search(text):
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
