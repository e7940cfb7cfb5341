"""Signals that ask a process to stop, and what is finished before it does. Knows nothing of the package.

Holds: `Stopped`, `stops_by_signal`, `to_the_end`.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What `ray job stop`, Kubernetes and `kill` send, and Ctrl-C. SIGKILL follows a few seconds later; it can't be caught,
and needs not be: whatever it meets, the same command goes on."""


class Stopped(BaseException):
    """Somebody asked this process to stop. Unwinds it as Ctrl-C does, so that what is open is closed; no
    KeyboardInterrupt, because libraries of command lines turn that into an exit code of their own.

    Attributes:
        signal: by which.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return self.signal.name


AGAIN, LONGEST = 0.05, 20.0
"""Seconds after which a signal that came in the middle of an import is sent again, and for how long."""

_IMPORTING = "<frozen importlib._bootstrap>"


class _Stopper:
    """What SIGTERM does: raises `Stopped`, but in no import. What is half imported is broken for good, and libraries
    that catch whatever an import raises would go on without it."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if _imports(frame) and now < self._since + LONGEST:
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        raise Stopped(number)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def stops_by_signal() -> Iterator[None]:
    """SIGTERM inside raises `Stopped` in the main thread, as Ctrl-C raises KeyboardInterrupt by itself. What is being
    imported just then is imported first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set what a signal does
        return
    before = signal.signal(signal.SIGTERM, _Stopper())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def to_the_end() -> Iterator[None]:
    """What is begun inside is finished before a signal has its effect; asked a second time, it has it at once.

    For what must not be cut short by an exception: the upload of a file, whose stream publishes at closing what it
    got so far.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread alone
        return
    held: list[int] = []
    before: dict[int, Callable[[int, FrameType | None], object] | int] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            held.clear()
            restore()
            signal.raise_signal(number)
        else:
            held.append(number)

    for number in SIGNALS:
        handler = signal.getsignal(number)
        if handler is not None:  # else not Python's own, and can't be given back
            before[number] = handler
            signal.signal(number, hold)
    try:
        yield
    finally:
        restore()
        # In `finally`, because an error inside is no reason to forget that somebody asked.
        if held:
            signal.raise_signal(held[0])
