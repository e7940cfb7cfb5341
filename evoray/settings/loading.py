"""Settings from flags, a YAML file, a preset and defaults, and one line about all that is wrong with them.

Holds: `load_settings`, `read_yaml`.
"""

import difflib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from evoray.errors import UserError
from evoray.settings.fields import Preset, Settings, flag
from evoray.settings.presets import preset_values

_S = TypeVar("_S", bound=Settings)


def load_settings(kind: type[_S], given: Mapping[str, Any], file: str | Path | None = None) -> _S:
    """Settings from flags over a YAML file over a preset over defaults.

    Args:
        kind: the class of settings.
        given: flags; None means not given.
        file: a YAML file with the same names, dashes or underscores.

    Raises:
        UserError: an unknown key, a missing or wrong value; one line for all of them.
    """
    named = {key: value for key, value in given.items() if value is not None}
    merged = (read_yaml(file) if file is not None else {}) | named
    preset = merged.get("preset")
    if "preset" in kind.model_fields and preset in list(Preset):
        merged = preset_values(Preset(preset), merged) | merged
    try:
        return kind(**merged)
    except ValidationError as error:
        lines = (_line(kind, entry, named, file) for entry in error.errors(include_url=False))
        raise UserError("; ".join(dict.fromkeys(lines))) from None


def _line(kind: type[Settings], entry: Any, named: Mapping[str, Any], file: str | Path | None) -> str:
    name = str(entry["loc"][0]) if entry["loc"] else ""
    where = f" in {file}" if file is not None and name and name not in named else ""
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(kind.model_fields))}"
        return f"unknown key {name!r}{where}; {remedy}"
    if entry["type"] == "missing":
        return f"{flag(name)} is missing"
    message = entry["msg"].removeprefix("Value error, ").removeprefix("Input ").partition(", unable to parse")[0]
    message = message.replace("a valid tuple", "a list, like 16,4,1")
    return f"{flag(name)} {entry['input']!r}{where}: {message[:1].lower()}{message[1:]}" if name else message


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, where YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [str(self.construct_object(key, deep=True)).replace("-", "_") for key, _ in node.value]
        if len(twice := [key for key in keys if keys.count(key) > 1]):
            raise yaml.YAMLError(f"{twice[0]} is named twice; keep one of the lines")
        return super().construct_mapping(node, deep)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, with underscores in its keys.

    Raises:
        UserError: missing, unreadable, or no mapping.
    """
    try:
        # A loader of its own, but one that constructs nothing beyond plain values.
        found: Any = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"no settings file at {file}; give a YAML file of `key: value` lines") from None
    except UnicodeDecodeError:
        raise UserError(f"settings file {file} is no text; give a YAML file of `key: value` lines") from None
    except OSError as error:
        raise UserError(f"settings file {file} can't be read: {error.strerror}; give another") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"settings file {file} is no YAML that can be read: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"settings file {file} must hold `key: value` lines, it holds a {type(found).__name__}")
    return {str(key).replace("-", "_"): value for key, value in found.items()}
