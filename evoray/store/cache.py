"""Files of remote stores, kept once on each node: `NodeCache`.

All processes of a node share the folder. A file is named by its sha256, so equal files of different stores are one,
and nothing in the folder ever changes its content. The files that nobody read for the longest time make room for new
ones; who has such a file mapped keeps what it has.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evoray.errors import UserError
from evoray.store.location import DiskError, Location
from evoray.store.manifest import CorruptError
from evoray.store.transfers import TRANSFERS

_KEPT = re.compile(r"^[0-9a-f]{64}$")
_HALF = re.compile(r"^\.[0-9a-f]{64}\.[0-9a-f]{16}\.tmp$")


class NodeCache:
    """A folder of files named by their sha256.

    Args:
        folder: where; by default one per user under the folder for temporary files. Made when first needed.
        budget: bytes that all files together may take; by default half of what they take and what is free.
    """

    def __init__(self, folder: str | Path | None = None, budget: int | None = None) -> None:
        self._default = folder is None
        self.folder = Path(tempfile.gettempdir()) / f"evoray-cache-{os.getuid()}" if folder is None else Path(folder)
        self.budget = budget
        self._told = False

    def fetch(self, source: Location, *, size: int, sha256: str) -> Path | None:
        """The local copy of a remote file; fetched when it is not there yet, by one process of the node only.

        Args:
            source: the file.
            size: its bytes.
            sha256: its digest, hexadecimal.

        Returns:
            Path of the copy, to be read only; None where the disk has no room for it, which is told once.

        Raises:
            CorruptError: when the file is missing or not what `size` and `sha256` say.
            UserError: when the folder cannot be used.
            EvorayError: when the file cannot be fetched.
        """
        if self._hit(sha256, size):
            return self.folder / sha256
        self._prepare()
        try:
            with self._locked(sha256):
                # Another process may have fetched it while this one waited for the lock.
                if not self._hit(sha256, size):
                    self._download(source, size, sha256)
        except DiskError as error:
            if not self._told:
                self._told = True
                logging.getLogger("evoray").warning(
                    "variants are read from %s without the cache of this node, which is slower: %s", source, error
                )
            return None
        return self.folder / sha256

    def touch(self, sha256: str) -> bool:
        """Notes that a file is in use.

        Returns:
            Whether it is there; it may have made room for another one.
        """
        try:
            os.utime(self.folder / sha256)
        except OSError:
            return False
        return True

    def has(self, sha256: str) -> bool:
        """Whether a file is there, without using it."""
        return (self.folder / sha256).exists()

    def discard(self, sha256: str) -> bool:
        """Forgets a file, so that it is fetched again. Processes that have it mapped keep what they have.

        Returns:
            Whether there was such a file.
        """
        try:
            (self.folder / sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def _hit(self, sha256: str, size: int) -> bool:
        try:
            found = (self.folder / sha256).stat().st_size == size and self.touch(sha256)
        except (FileNotFoundError, NotADirectoryError):
            return False
        TRANSFERS.add(hits=int(found))
        return found

    def _download(self, source: Location, size: int, sha256: str) -> None:
        # Whoever holds the lock is alone with this file: what lies half-written belongs to the dead.
        for stale in self.folder.glob(f".{sha256}.*.tmp"):
            stale.unlink(missing_ok=True)
        self._make_room(size)
        path = self.folder / f".{sha256}.{secrets.token_hex(8)}.tmp"
        try:
            source.download(path, sha256)
            path.chmod(0o400)
            path.replace(self.folder / sha256)
        except FileNotFoundError:
            raise CorruptError("it is missing") from None
        finally:
            path.unlink(missing_ok=True)
        # Others may have fetched meanwhile what counted for nothing when room was made.
        self._make_room(0)

    def _make_room(self, size: int) -> None:
        """Deletes the least recently used files until there is room for so many bytes.

        Raises:
            DiskError: there can't be.
        """
        with self._locked("room"):
            files = []
            held = 0
            for entry in os.scandir(self.folder):
                if not (kept := _KEPT.match(entry.name)) and not _HALF.match(entry.name):
                    continue
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    continue
                held += found.st_size
                if kept:
                    files.append((found.st_mtime_ns, found.st_size, entry.path))
            free = shutil.disk_usage(self.folder).free
            budget = (held + free) // 2 if self.budget is None else self.budget
            if size > budget and self.budget is None:
                raise DiskError(
                    f"the disk of {self.folder} has {free} bytes free beside {held} of the cache, which takes half of "
                    f"both, and a file has {size}"
                )
            if size > budget:
                raise DiskError(f"{self.folder} may take {budget} bytes, and a file has {size}; raise --cache-disk")
            for _, bytes_, path in sorted(files):
                if held + size <= budget and size <= free:
                    return
                Path(path).unlink(missing_ok=True)
                held, free = held - bytes_, free + bytes_
            if size > free:
                raise DiskError(f"the disk of {self.folder} has {free} bytes free, and a file has {size}")

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = self.folder.stat().st_uid
        except OSError as error:
            raise UserError(f"cannot use the cache folder {self.folder}: {error.strerror}; give another one") from error
        # The default name can be guessed; a folder that somebody else made there must not feed this process.
        if self._default and owner != os.getuid():
            raise UserError(f"the cache folder {self.folder} belongs to another user; give another one")

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        # The kernel gives the lock back when its holder dies, so no stale lock can stop a node.
        try:
            handle = os.open(self.folder / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DiskError(f"cannot write to the cache folder {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
