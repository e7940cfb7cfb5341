"""A folder that one driver works in, and no other: `HeldFolder`. Run directories are such, and the folders of sweeps.

Who works in it has the highest number of `fence`, and a driver that another one took the folder from can't write any
more. Locally a file lock tells as well whether a driver lives: the system drops it when a process dies, however it
dies.
"""

import fcntl
import os
from collections.abc import Callable
from typing import Any, Self

from evoray.errors import UserError
from evoray.run.fence import Fence
from evoray.store import Location

LOCK = ".lock"


class HeldFolder:
    """A context manager: entering takes the folder, leaving gives it back.

    Args:
        place: folder or URI. Where it lies in a folder that is held, its own guard is asked as well, so that whoever
            lost the outer one writes nothing here.
        what: to call it in messages.
        note: told of a wait.
        take_over: take it from a driver that seems to be at work, and wait for none.
        parts: names of folders inside, in which writers leave half-written files as well.

    Attributes:
        location: the folder; while it is held, only its holder can write there.

    Raises:
        UserError: another driver works in it.
    """

    def __init__(
        self,
        place: str | Location,
        what: str,
        note: Callable[[str], None] = lambda text: None,
        take_over: bool = False,
        parts: tuple[str, ...] = (),
    ) -> None:
        self.location, self._what, self._note, self._take_over = Location.parse(place), what, note, take_over
        self._outer, self._parts = self.location, parts
        self._fence = Fence(self.location, what)
        self._lock: int | None = None

    def __truediv__(self, name: str) -> Location:
        return self.location / name

    def __enter__(self) -> Self:
        locked = self._locked()
        try:
            if not self._take_over:
                self._await_others(locked)
            if not self._fence.take(locked=locked is True):
                raise self._in_use("a driver that began at the same moment")
            self.location = self.location.guarded(self.check)
            for folder in (self.location, *(self / part for part in self._parts)):
                folder.remove_temporary()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._fence.release()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def check(self) -> None:
        """Sees that no other driver took the folder over, nor the one that it lies in.

        Raises:
            FencedError: one did.
        """
        self._outer.allow_writing()
        self._fence.check()

    def _locked(self) -> bool | None:
        """Whether this process has the lock of the folder now, or another one has it; None where there are none."""
        path = self.location.local_path
        if path is None:
            return None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{self._what} {self.location} can't be used: {error.strerror}; give another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None  # some shared folders know no locks
        return True

    def _await_others(self, locked: bool | None) -> None:
        holder = self._fence.holder()
        if locked is False:
            raise self._in_use("another driver" if holder is None or holder.ended else str(holder))
        if locked and (holder is None or holder.locked):
            return  # whoever had the lock is gone
        if (holder := self._fence.living(self._note)) is not None:
            raise self._in_use(str(holder))

    def _in_use(self, who: str) -> UserError:
        return UserError(
            f"{self._what} {self.location} is in use by {who}; stop it first, give another --run, or take this one "
            "over by --take-over, which stops the other"
        )
