"""TensorBoard: event files in RUN/logs/tensorboard.

Holds: `open_log`.
"""

from collections.abc import Mapping

import yaml

from evoray.errors import UserError
from evoray.run.loggers import LogPlace

LIBRARY = "torch.utils.tensorboard"


class _TensorBoard:
    id = None

    def __init__(self, place: LogPlace) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if place.folder is None:
            raise UserError(
                f"--log-to tensorboard writes files, and --run {place.run} is no folder; give a local --run, or "
                "another logger"
            )
        # What a driver wrote and did not note before it was killed is taken back, and written again.
        self._writer = SummaryWriter(str(place.folder / "tensorboard"), purge_step=place.generation + 1)
        if place.generation < 0:
            settings = yaml.safe_dump(dict(place.settings), sort_keys=False)
            self._writer.add_text("settings", f"```yaml\n{settings}```", 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def conclude(self, step: int, values: Mapping[str, float]) -> None:
        self.write(step, values)

    def close(self, finished: bool) -> None:
        self._writer.close()


def open_log(place: LogPlace) -> _TensorBoard:
    """Begins or goes on in the same folder.

    Raises:
        UserError: the run lies on object storage.
    """
    return _TensorBoard(place)
