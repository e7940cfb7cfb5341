"""Weights & Biases. Project, entity and mode are those of its environment (WANDB_PROJECT, WANDB_MODE=offline, ...).

Holds: `open_log`.
"""

import os
from collections.abc import Mapping

from evoray.run.loggers import LogPlace

LIBRARY = "wandb"


class _WeightsAndBiases:
    def __init__(self, place: LogPlace) -> None:
        import wandb

        if place.folder is not None:
            # Where this is missing, the library writes to a temporary folder.
            place.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "evoray"),
            name=os.environ.get("WANDB_NAME", place.run.name),
            dir=None if place.folder is None else str(place.folder),
            config=dict(place.settings),
            id=place.id,
            resume="allow",
            # Bars and tables are for the terminal.
            settings=wandb.Settings(console="off"),
        )
        self.id: str | None = self._run.id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # A step that the log has already is dropped by the library. `commit` sends it now, not with the next one.
        self._run.log(dict(values), step=step, commit=True)

    def conclude(self, step: int, values: Mapping[str, float]) -> None:
        # Not by `log`: the step of the last generation is closed.
        self._run.summary.update(dict(values))

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def open_log(place: LogPlace) -> _WeightsAndBiases:
    """Begins a run of theirs, or goes on with it."""
    return _WeightsAndBiases(place)
