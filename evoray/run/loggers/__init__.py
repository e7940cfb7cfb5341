"""Places beside the run directory where people watch their runs. One file per logger, and no list.

A logger is a module here with `LIBRARY`, the module that it needs, and `open_log(place: LogPlace) -> Log`. Its name is
what `--log-to` takes, and the extra that installs the library. Nothing of it is imported unless it is asked for.

Holds:
    `Log`, `LogPlace`, `check_loggers`, `open_log`
    tensorboard, wandb, mlflow: the loggers
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from evoray.errors import UserError
from evoray.store import Location


@dataclass(frozen=True)
class LogPlace:
    """What is logged, and where it goes on.

    Attributes:
        run: the run directory.
        settings: of the run, resolved; JSON values.
        id: that the library gave this run's log before; None at its begin.
        generation: the last that the log has; -1 at its begin.
    """

    run: Location
    settings: Mapping[str, Any]
    id: str | None
    generation: int

    @property
    def folder(self) -> Path | None:
        """Where local files of logs lie; None where the run lies on object storage."""
        path = self.run.local_path
        return None if path is None else path / "logs"


class Log(Protocol):
    """A log that is open. Whatever it raises ends the log and not the search."""

    id: str | None
    """What the library knows this run's log by, to go on with it later; None where the folder alone tells."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a generation; visible at once."""

    def conclude(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of the result, after those of the last generation."""

    def close(self, finished: bool) -> None:
        """The run has its result, or was ended before."""


class _Logger(Protocol):
    LIBRARY: str

    def open_log(self, place: LogPlace) -> Log: ...


def _logger(name: str) -> _Logger:
    known = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    if name not in known:
        raise UserError(f"--log-to {name!r}: no such logger; there are {', '.join(known)}")
    return cast("_Logger", importlib.import_module(f"{__name__}.{name}"))


def check_loggers(names: Sequence[str]) -> None:
    """Sees that there are such loggers, and their libraries.

    Raises:
        UserError: an unknown name, or a library that is not installed.
    """
    for name in names:
        library = _logger(name).LIBRARY
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise UserError(
                f"--log-to {name}: {library} can't be imported ({error}); pip install 'evoray[{name}]', or leave it out"
            ) from None


def open_log(name: str, place: LogPlace) -> Log:
    """Begins a run's log, or goes on with it.

    Raises:
        UserError: it can't be opened.
    """
    try:
        return _logger(name).open_log(place)
    except UserError:
        raise
    except Exception as error:
        # Libraries raise whatever they like for a server that is away or a key that is missing.
        raise UserError(
            f"--log-to {name}: the log can't be opened ({type(error).__name__}: {error}); set it up, or leave it out"
        ) from error
