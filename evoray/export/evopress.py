"""The text files that EvoPress's own programs read: `--format evopress`.

Holds: `export`, `levels_text`, `depth_text`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from evoray.configuration import BASE, DEPTH_WORDS, DROPPED, Configuration, configuration_text
from evoray.errors import UserError
from evoray.export.source import ExportSource
from evoray.space import PricedDroppable
from evoray.space.costs import dropped_layers, more
from evoray.space.depth import BLOCK

LEVELS, DEPTH = "configuration.txt", "layer_drop_config.txt"
"""Files of levels, and of what is dropped."""

_WHOLE = re.compile(r"-?[0-9]+")


def export(source: ExportSource, stage: Path) -> None:
    """Writes a file of levels where the configuration has some, and one of dropped sublayers where it drops some.

    Args:
        source: what to write.
        stage: an empty folder.

    Raises:
        UserError: the configuration is one that these files can't say.
    """
    facts, layers = source.facts, source.layers
    known = {layer.name for layer in facts.layers}
    if unknown := [name for name in layers if name not in known]:
        raise UserError(f"the configuration names {unknown[0]}{more(unknown)}, which the model lacks; give its model")
    files: dict[str, str] = {}
    if any(level != BASE for level in layers.values()):
        gone = dropped_layers(source.configuration, facts.droppable)
        files[LEVELS] = levels_text(layers, [layer.name for layer in facts.layers if layer.name not in gone])
    if source.dropped:
        files[DEPTH] = depth_text(source.configuration, facts.droppable)
    if not files:
        raise UserError("the configuration is the base model, for which EvoPress has no file; give one that changes it")
    for name, text in files.items():
        (stage / name).write_text(text, encoding="utf-8")


def levels_text(layers: Configuration, needed: Sequence[str]) -> str:
    """`layer: level` lines with whole levels, which are the names of EvoPress's files of weights.

    Args:
        layers: layer -> level.
        needed: layers that must have a level.

    Raises:
        UserError: a layer without a level, at its base weight, or at a level that is no whole number.
    """
    if missing := [layer for layer in needed if layers.get(layer, BASE) == BASE]:
        raise UserError(
            f"{missing[0]}{more(missing)} has its base weight, and EvoPress needs a level of every layer; "
            "use --format hf, or give one with levels of all layers"
        )
    if odd := [layer for layer in needed if not _WHOLE.fullmatch(layers[layer])]:
        raise UserError(
            f"{odd[0]}{more(odd)} has level {layers[odd[0]]!r}, and EvoPress reads whole numbers only; use --format hf"
        )
    return configuration_text({layer: layers[layer] for layer in needed})


def depth_text(configuration: Configuration, droppable: Sequence[PricedDroppable]) -> str:
    """A line for each block: which kinds of its sublayers are dropped.

    Args:
        configuration: site -> level, in the model's own names.
        droppable: the model's sublayers and blocks.

    Raises:
        UserError: of several sublayers of a kind in a block only some are dropped.
    """
    words = {kinds: word for word, kinds in DEPTH_WORDS.items()}
    lines = []
    for block in (site for site in droppable if site.kind == BLOCK):
        inside = [site for site in droppable if site.block == block.block and site.kind != BLOCK]
        whole = configuration.get(block.name) == DROPPED
        gone: list[str] = []
        for kind in ("attn", "mlp"):
            dropped = [whole or configuration.get(site.name) == DROPPED for site in inside if site.kind == kind]
            if any(dropped) and not all(dropped):
                raise UserError(
                    f"block {block.block} has {len(dropped)} sublayers of kind {kind}, not all of which are dropped; "
                    "EvoPress can't say that: use --format hf"
                )
            gone += [kind] if any(dropped) else []
        lines.append(words[tuple(gone)] + "\n")
    return "".join(lines)
