"""The command that gives a result again.

Holds: `command_of`.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from evoray.settings.fields import Settings, flag

_NOT_DECIDING = {
    "workers",
    "address",
    "wait",
    "hung_after",
    "hung_at_start",
    "allow_mixed",
    "work_memory",
    "variant_memory",
    "cache_disk",
    "take_over",
    "max_hours",
    "max_tokens",
    "dry_run",
    "run",
    "preset",
    "recipe",
    "log_to",
}
"""Who does the work, when it stops, and where it goes; values of a preset and a recipe are named one by one."""


def command_of(verb: str, settings: Settings, changes: Mapping[str, Any]) -> str:
    """The command line that gives a result again, in a run directory called `again`.

    Args:
        verb: such as search.
        settings: as resolved; what decides nothing is left out, and what is as it is by default.
        changes: values in the place of those of the settings.
    """
    values = settings.model_dump(mode="json") | {"run": "again"} | dict(changes)
    words = ["evoray", verb]
    for name, field in type(settings).model_fields.items():
        value, usual = values[name], field.default
        if name != "run" and (name in _NOT_DECIDING or value is None or value == usual or value == _plain(usual)):
            continue
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            words += [flag(name), ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    return shlex.join(words)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
