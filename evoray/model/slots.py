"""How many models load at once on a node.

Holds:
- `LoadSlots`: context that waits for one of N places, shared by all processes of a user on a node.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType

# Two: one process reads from disk while another copies to its device; more only pile up in host memory.
DEFAULT_SLOTS = 2
_POLL_SECONDS = 0.1


class LoadSlots:
    """One of N places to load a model in, shared by all processes of a user on a node.

    The places are file locks in a temporary folder: the system takes them back when a process dies, however it dies.

    Example:
        >>> with LoadSlots(2):
        ...     model = load()
    """

    def __init__(self, slots: int = DEFAULT_SLOTS, folder: str | os.PathLike[str] | None = None) -> None:
        """Name the places; takes none yet.

        Args:
            slots: Number of places; all processes that share them should say the same.
            folder: Folder of the lock files; one in the system's temporary folder by default.

        Raises:
            ValueError: `slots` is not positive.
        """
        if slots < 1:
            raise ValueError(f"slots {slots}: at least one process must be able to load")
        self.slots = slots
        self.folder = Path(folder) if folder else Path(tempfile.gettempdir()) / f"evoray-load-slots-{os.getuid()}"
        self._descriptor: int | None = None

    def acquire(self, blocking: bool = True) -> bool:
        """Take a place.

        Args:
            blocking: Wait until one is free.

        Returns:
            Whether a place was taken (always, when blocking).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            for slot in range(self.slots):
                descriptor = os.open(self.folder / f"slot-{slot}.lock", os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                else:
                    self._descriptor = descriptor
                    return True
            if not blocking:
                return False
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give the place back; without one, nothing happens."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> LoadSlots:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
