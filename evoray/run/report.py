"""The verb report: a page and pictures of one run, or of several side by side.

Holds: `write_report`, `report_if_possible`, `Report`.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evoray.errors import UserError
from evoray.report.numbers import RunNumbers
from evoray.report.reading import named_apart, read_run
from evoray.run.budgets import SweepRecord
from evoray.run.directory import IDENTITY
from evoray.store import Location

PAGE = "index.html"
FOLDER = "report"
"""Where a report goes when nothing else is said: inside the run directory."""


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the HTML file.
        pictures: the PNG files.
        runs: the numbers in them.
    """

    page: str
    pictures: tuple[str, ...]
    runs: tuple[RunNumbers, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"page": self.page, "pictures": list(self.pictures), "runs": [run.as_dict() for run in self.runs]}


def write_report(places: Sequence[str], out: str | None = None) -> Report:
    """Writes the report of one run, or of several side by side. A search may be at work in them meanwhile.

    Args:
        places: run directories of searches and baselines, finished or not, and folders of sweeps, which are all of
            their runs; one that is named twice counts once.
        out: folder or URI to write to; by default `report` in the first place.

    Raises:
        UserError: a place that is no run, a damaged one, or matplotlib is missing.
        EvorayError: storage fails.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("evoray report draws with matplotlib, which is missing: pip install 'evoray[plots]'")
    if not places:
        raise UserError("no run to report on; give one run directory or more")
    given = [Location.parse(place) for place in places]
    locations = list(dict.fromkeys(run for place in given for run in _runs_in(place)))
    runs = tuple(read_run(location, name) for location, name in zip(locations, named_apart(locations), strict=True))
    folder = Location.parse(out) if out is not None else given[0] / FOLDER
    # Here, because they load matplotlib, and a place that is no run is said at once.
    from evoray.report.page import page
    from evoray.report.pictures import pictures_beside, pictures_of

    own = [pictures_of(run) for run in runs]
    beside = pictures_beside(runs) if len(runs) > 1 else []
    files = {f"{picture.key}.png": picture.png for picture in beside}
    for place, pictures in enumerate(own, start=1):
        prefix = f"run-{place}-" if len(runs) > 1 else ""
        files |= {f"{prefix}{picture.key}.png": picture.png for picture in pictures}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    # Last: who sees the page finds the pictures beside it.
    (folder / PAGE).write_bytes(page(runs, own, beside).encode())
    return Report(str(folder / PAGE), tuple(str(folder / name) for name in files), runs)


def _runs_in(place: Location) -> list[Location]:
    """The run directories of a sweep's folder; any other place itself."""
    record = SweepRecord.read(place) if not (place / IDENTITY).exists() else None
    return record.runs() if record is not None else [place]


def report_if_possible(places: Sequence[str], out: str) -> str | None:
    """The page of `write_report`; None where matplotlib is missing, without which a result is one all the same."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    return write_report(places, out).page
