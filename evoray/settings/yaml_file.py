"""A YAML file of `key: value` lines, read strictly.

Holds: `read_yaml`.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from evoray.errors import UserError


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
