"""Drivers as processes of their own: `driver` starts one, `await_line` reads what it says."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from evoray.settings import SearchSettings, SweepSettings

LONG = 200
"""Generations of a run that nobody lets end."""


@contextmanager
def driver(settings: SearchSettings, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`evoray search`, or a sweep by its settings, as a process in a group of its own, as a terminal starts it."""
    verb = "sweep" if isinstance(settings, SweepSettings) else "search"
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)))
    process = subprocess.Popen(
        [sys.executable, "-m", "evoray", verb, "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs these tests in the background of a script has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def await_line(process: subprocess.Popen[str], begin: str) -> list[str]:
    """Reads what it says until a line begins so; returns all lines."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(begin):
            return lines
    raise AssertionError(f"it ended without {begin!r}: {''.join(lines)[-2000:]}")
