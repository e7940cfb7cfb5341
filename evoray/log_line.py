"""Log lines of JSON, of drivers and of workers. Knows nothing of the package.

Holds: `json_line`, `JsonFormatter`.
"""

import json
import logging
import math
from datetime import UTC, datetime
from typing import Any


def json_line(event: str, level: str = "info", **fields: Any) -> str:
    """One event with its time; what is no finite number is null, which JSON has for it.

    Args:
        event: what kind it is: note, stage, generation, layer, concluded; and as the last one done, stopped or error.
        level: info, warning or error.
        fields: what it says.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields.items()
    }
    return json.dumps({"time": now, "level": level, "event": event, **finite}, ensure_ascii=False)


class JsonFormatter(logging.Formatter):
    """Makes such lines of log records.

    Args:
        fields: that every line has.

    Attributes:
        at: what every line has as well, as long as it is so.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields
        self.at: dict[str, Any] = {}

    def format(self, record: logging.LogRecord) -> str:
        """The line. A traceback becomes one string."""
        trace = {"trace": self.formatException(record.exc_info)} if record.exc_info else {}
        return json_line(
            "log",
            record.levelname.lower(),
            **self._fields,
            **self.at,
            logger=record.name,
            text=record.getMessage(),
            **trace,
        )
