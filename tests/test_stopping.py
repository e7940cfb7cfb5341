"""What a signal interrupts, and what is finished first."""

import importlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from evoray.errors import EvorayError
from evoray.stopping import SIGNALS, Stopped, stops_by_signal, to_the_end
from evoray.store import Location
from evoray.store import remote as remote_files

RAISED = {signal.SIGTERM: Stopped, signal.SIGINT: KeyboardInterrupt}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ctrl-C as in a terminal, whoever runs the tests; all as it was afterwards, even where a test fails."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopping(begun: Callable[[], None]) -> None:
    """Runs it to its end, whatever signals come."""
    with stops_by_signal(), to_the_end():
        begun()


def test_sigterm_stops_and_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, stops_by_signal():
        signal.raise_signal(signal.SIGTERM)
    assert (stopped.value.signal, str(stopped.value)) == (signal.SIGTERM, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_being_imported_is_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that catch whatever an import raises would go on without it, and fail later."""
    (tmp_path / "half_imported.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGTERM)\nfor _ in range(1000): pass\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    imported = []

    def importing() -> None:
        imported.append(importlib.import_module("half_imported").whole)
        time.sleep(60)

    with pytest.raises(Stopped), stops_by_signal():
        importing()
    assert imported == [True]


def test_an_import_without_end_is_stopped_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evoray.stopping.LONGEST", 0.2)
    (tmp_path / "never_imported.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Stopped), stops_by_signal():
        importlib.import_module("never_imported")


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_begun_is_finished_first(number: int) -> None:
    finished: list[int] = []

    def begun() -> None:
        signal.raise_signal(number)
        finished.append(number)

    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(RAISED[signal.Signals(number)]):
        stopping(begun)
    assert finished == [number]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_asked_twice_it_stops_at_once() -> None:
    def begun() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("this is never reached")

    with pytest.raises(Stopped):
        stopping(begun)


def test_an_error_inside_does_not_forget_the_signal() -> None:
    def begun() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise EvorayError("the disk is full")

    with pytest.raises(Stopped):
        stopping(begun)


def test_one_inside_the_other_waits_for_the_outer() -> None:
    finished: list[str] = []

    def begun() -> None:
        with to_the_end():
            signal.raise_signal(signal.SIGTERM)
            finished.append("inner")
        finished.append("outer")

    with pytest.raises(Stopped):
        stopping(begun)
    assert finished == ["inner", "outer"]


def test_other_threads_leave_signals_alone() -> None:
    def publish() -> None:
        before = [signal.getsignal(number) for number in SIGNALS]
        with stops_by_signal(), to_the_end():
            seen.append([signal.getsignal(number) for number in SIGNALS] == before)

    seen: list[bool] = []
    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("remote", [False, True])
def test_a_file_that_is_being_published_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remote: bool
) -> None:
    data = bytes(range(256)) * 64
    folder = Location.parse(tmp_path)
    if remote:
        folder = Location.inside(pafs.LocalFileSystem(), str(tmp_path), "s3://bucket")
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1
        signal.raise_signal(number)

    if remote:
        send = remote_files._send

        def sent(*place: Any) -> None:
            send(*place)
            ask()  # between the upload and the step that makes it seen

        monkeypatch.setattr(remote_files, "_send", sent)
    else:
        replace = Path.replace

        def replaced(self: Path, target: Path) -> Path:
            ask()
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", replaced)
    with stops_by_signal(), pytest.raises(RAISED[signal.Signals(number)]):
        (folder / "best.json").write_bytes(data)
    assert asked == 1
    assert [file.name for file in tmp_path.iterdir()] == ["best.json"]
    assert (tmp_path / "best.json").read_bytes() == data
