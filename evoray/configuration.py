"""Configurations as people read and write them: `layer: level`, a line each.

Holds: `BASE`, `Configuration`, `parse_configuration`, `read_configuration`, `configuration_text`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evoray.errors import UserError

BASE = "base"
"""The level of a layer that keeps its uncompressed weight."""

Configuration = dict[str, str]
"""Layer name -> level. A layer that is not named keeps its base weight."""


def parse_configuration(text: str, origin: str = "configuration") -> Configuration:
    """Reads `layer: level` lines, or JSON: such an object, or one that holds it under "configuration".

    Args:
        text: what the file holds. Blank lines and lines that begin with `#` are skipped.
        origin: names the source in errors.

    Raises:
        UserError: a line without a level, a layer named twice, or nothing at all.
    """
    stripped = text.lstrip()
    if stripped.startswith("{"):
        return _from_json(stripped, origin)
    configuration: Configuration = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        layer, colon, level = (part.strip() for part in line.rpartition(":"))
        if not colon or not layer or not level:
            raise UserError(f"{origin}, line {number}: {line!r} is not `layer: level`")
        if layer in configuration:
            raise UserError(f"{origin}, line {number}: {layer} is named twice; keep one of the lines")
        configuration[layer] = level
    if not configuration:
        raise UserError(f"{origin} names no layer; it needs lines of the form `layer: level`")
    return configuration


def _from_json(text: str, origin: str) -> Configuration:
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{origin} begins like JSON but is none: {error}") from None
    found = found.get("configuration", found)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{origin} holds no configuration; it needs an object layer -> level")
    wrong = [
        layer for layer, level in found.items() if isinstance(level, bool) or not isinstance(level, str | int | float)
    ]
    if wrong:
        raise UserError(f"{origin}: the level of {wrong[0]} is {found[wrong[0]]!r}; a level is a word or a number")
    return {str(layer): str(level) for layer, level in found.items()}


def read_configuration(path: str | Path) -> Configuration:
    """Reads the configuration in a text file, a JSON file, or a `best.json`.

    Raises:
        UserError: the file is missing, unreadable or holds no configuration.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no configuration at {path}; give a file of `layer: level` lines or a run folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration {path} can't be read: {error}") from None
    return parse_configuration(text, str(path))


def configuration_text(configuration: Mapping[str, str]) -> str:
    """The `layer: level` lines of a configuration, in its own order."""
    return "".join(f"{layer}: {level}\n" for layer, level in configuration.items())
