"""Settings from flags, a YAML file, a recipe, a preset and defaults, and one line about all that is wrong with them.

Holds: `load_settings`.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from evoray.errors import UserError
from evoray.settings.fields import Preset, Settings, flag
from evoray.settings.presets import preset_values
from evoray.settings.recipes import recipe_values
from evoray.settings.yaml_file import read_yaml

_S = TypeVar("_S", bound=Settings)


def load_settings(kind: type[_S], given: Mapping[str, Any], file: str | Path | None = None) -> _S:
    """Settings from flags over a YAML file over a recipe over a preset over defaults.

    Args:
        kind: the class of settings.
        given: flags; None means not given.
        file: a YAML file with the same names, dashes or underscores.

    Raises:
        UserError: an unknown key, a missing or wrong value, one line for all of them; or an unknown recipe.
    """
    named = {key: value for key, value in given.items() if value is not None}
    merged = (read_yaml(file) if file is not None else {}) | named
    recipe = merged.get("recipe")
    if kind.recipe_part is not None and isinstance(recipe, str):
        merged = recipe_values(recipe, kind.recipe_part, merged) | merged
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
