"""MLflow: the server that MLFLOW_TRACKING_URI names, or the database RUN/logs/mlflow.db.

Holds: `open_log`.
"""

import os
import time
from collections.abc import Mapping

from evoray.errors import UserError
from evoray.run.loggers import LogPlace

LIBRARY = "mlflow"

_LONGEST = 500
"""Characters of a setting: what every server of MLflow 2 and 3 takes."""


class _Mlflow:
    def __init__(self, place: LogPlace) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=_server(place))
        if place.id is not None:
            self._id = place.id
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "evoray")
            there = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if there is None else there.experiment_id
            self._id = self._client.create_run(experiment, run_name=place.run.name).info.run_id
            # Only once: MLflow refuses to change a setting, as --generations is when a run goes on.
            given = [Param(key, str(value)[:_LONGEST]) for key, value in place.settings.items() if value is not None]
            self._client.log_batch(self._id, params=given)
        self.id: str | None = self._id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def conclude(self, step: int, values: Mapping[str, float]) -> None:
        self.write(step, values)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _server(place: LogPlace) -> str:
    if named := os.environ.get("MLFLOW_TRACKING_URI"):
        return named
    if place.folder is None:
        raise UserError(
            f"--log-to mlflow writes into a local run's folder where MLFLOW_TRACKING_URI names no server, and --run "
            f"{place.run} is none; set it, or give a local --run"
        )
    place.folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(place.folder / 'mlflow.db').absolute()}"


def open_log(place: LogPlace) -> _Mlflow:
    """Begins a run of theirs, or goes on with it.

    Raises:
        UserError: there is no place for it.
    """
    return _Mlflow(place)
