"""Configurations as people read and write them: `layer: level`, a line each.

Holds: `BASE`, `DROPPED`, `KEPT`, `Configuration`, `needs_variants`, `parse_configuration`, `configuration_text`,
`DEPTH_WORDS`, `alias`, `alias_of`.

Texts of EvoPress are read, too. Its levels are written like ours. Its depth files have a line for each block, one of
`none`, `attn`, `mlp` and `attn+mlp`, and name no module. So their sites have aliases, two for each block:
`blocks.3.attn` and `blocks.3.mlp`, dropped or kept; who knows the model puts its names in their place
(`evoray.run.named.resolve_sites`).
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from evoray.errors import UserError

BASE = "base"
"""The level of a layer that keeps its uncompressed weight."""

DROPPED = "dropped"
"""The level of a sublayer or block that the model does without."""

KEPT = "kept"
"""The level of a sublayer or block that could be dropped and is not."""

Configuration = dict[str, str]
"""Site -> level. A site is a layer, or a sublayer or block; one that is not named stays as it is in the base model."""


DEPTH_WORDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "attn": ("attn",),
    "mlp": ("mlp",),
    "attn+mlp": ("attn", "mlp"),
}
"""What a line of EvoPress's depth files drops of its block."""

_ALIAS = re.compile(r"blocks\.(0|[1-9][0-9]*)\.(attn|mlp)")


def needs_variants(configuration: Configuration) -> bool:
    """Whether a configuration needs a store: it says more than what is dropped."""
    return any(level not in (BASE, DROPPED, KEPT) for level in configuration.values())


def alias(block: int, kind: str) -> str:
    """The name for all sublayers of a kind, `attn` or `mlp`, in a block, where the model's own names are not known."""
    return f"blocks.{block}.{kind}"


def alias_of(site: str) -> tuple[int, str] | None:
    """Block and kind of an alias; None for any other name."""
    found = _ALIAS.fullmatch(site)
    return (int(found[1]), found[2]) if found else None


def parse_configuration(text: str, origin: str = "configuration") -> Configuration:
    """Reads `layer: level` lines, a depth file of EvoPress, or JSON: an object, or one with it under "configuration".

    Args:
        text: what the file holds. Blank lines and lines that begin with `#` are skipped.
        origin: names the source in errors.

    Raises:
        UserError: a line without a level, a layer named twice, or nothing at all.
    """
    stripped = text.removeprefix("\ufeff").lstrip()  # some editors put a byte order mark first
    if stripped.startswith("{"):
        return _from_json(stripped, origin)
    lines = [line.strip() for line in stripped.splitlines()]
    words = [line for line in lines if line and not line.startswith("#")]
    if words and all(word in DEPTH_WORDS for word in words):
        return {
            alias(block, kind): DROPPED if kind in DEPTH_WORDS[word] else KEPT
            for block, word in enumerate(words)
            for kind in ("attn", "mlp")
        }
    configuration: Configuration = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        layer, colon, level = (part.strip() for part in line.rpartition(":"))
        if not colon or not layer or not level:
            raise UserError(f"{origin}, line {number}: {line[:80]!r} is not `layer: level`")
        if layer in configuration:
            raise UserError(f"{origin}, line {number}: {layer} is named twice; keep one of the lines")
        configuration[layer] = level
    if not configuration:
        raise UserError(f"{origin} names no layer; it needs lines of the form `layer: level`")
    return configuration


class _TwiceError(Exception):
    """A key that stands twice in one JSON object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(key)
        found[key] = value
    return found


def _from_json(text: str, origin: str) -> Configuration:
    try:
        found: Any = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{origin} begins like JSON but is none: {error}; write it again, or `layer: level` lines"
        ) from None
    except _TwiceError as error:
        raise UserError(f"{origin}: {error} is named twice; keep one of them") from None
    found = found.get("configuration", found)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{origin} holds no configuration; it needs an object layer -> level")
    wrong = [
        layer for layer, level in found.items() if isinstance(level, bool) or not isinstance(level, str | int | float)
    ]
    if wrong:
        raise UserError(f"{origin}: the level of {wrong[0]} is {found[wrong[0]]!r}; a level is a word or a number")
    return {str(layer): str(level) for layer, level in found.items()}


def configuration_text(configuration: Mapping[str, str]) -> str:
    """The `layer: level` lines of a configuration, in its own order."""
    return "".join(f"{layer}: {level}\n" for layer, level in configuration.items())
