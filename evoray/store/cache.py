"""Files of remote stores, kept once on each node: `NodeCache`.

All processes of a node share the folder. A file is named by its sha256, so equal files of different stores are one,
and nothing in the folder ever changes its content.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evoray.errors import EvorayError, UserError
from evoray.store.location import Location
from evoray.store.manifest import CorruptError
from evoray.store.transfers import TRANSFERS


class NodeCache:
    """A folder of files named by their sha256.

    Args:
        folder: where; by default one per user under the folder for temporary files. Made when first needed.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._default = folder is None
        self.folder = Path(tempfile.gettempdir()) / f"evoray-cache-{os.getuid()}" if folder is None else Path(folder)

    def fetch(self, source: Location, *, size: int, sha256: str) -> Path:
        """The local copy of a remote file; fetched when it is not there yet, by one process of the node only.

        Args:
            source: the file.
            size: its bytes.
            sha256: its digest, hexadecimal.

        Returns:
            Path of the copy, to be read only.

        Raises:
            CorruptError: when the file is missing or not what `size` and `sha256` say.
            UserError: when the folder cannot be used.
            EvorayError: when the file cannot be fetched.
        """
        target = self.folder / sha256
        if _has(target, size):
            TRANSFERS.add(hits=1)
            return target
        self._prepare()
        with self._locked(sha256):
            # Another process may have fetched it while this one waited for the lock.
            if _has(target, size):
                TRANSFERS.add(hits=1)
                return target
            # Whoever holds the lock is alone with this file: what lies half-written belongs to the dead.
            for stale in self.folder.glob(f".{sha256}.*.tmp"):
                stale.unlink(missing_ok=True)
            path = self.folder / f".{sha256}.{secrets.token_hex(8)}.tmp"
            try:
                source.download(path, sha256)
                path.chmod(0o400)
                path.replace(target)
            except FileNotFoundError:
                raise CorruptError("it is missing") from None
            finally:
                path.unlink(missing_ok=True)
        return target

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
    def _locked(self, sha256: str) -> Iterator[None]:
        # The kernel gives the lock back when its holder dies, so no stale lock can stop a node.
        try:
            handle = os.open(self.folder / f".{sha256}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EvorayError(f"cannot write to the cache folder {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False
