"""Checkpoints of a configuration, for people's engines, and texts for other programs. One file per format, and no list.

A format is a module here with `export(source: ExportSource, stage: Path) -> None`, which writes into a folder that
appears whole or not at all; its name is what `--format` takes, with underscores for dashes. It may have

    DEPTHS: tuple[Depth, ...]     how it can say what is dropped; without: by zeros only
    WARNINGS: tuple[str, ...]     sentences for who uses the checkpoint
    LOADING: str                  how to load it, in markdown
    LOADING_COMPRESSED: str       the same, further, where a layer is compressed
    LIBRARY: str                  that loads it, as hubs call it; without: transformers

for the model card, which every checkpoint gets: whatever has a config.json, and no README.md of its own.

Holds:
    source: `ExportSource`, `ExportOptions`, `Depth`: what is exported, checked
    folder: the folder that all write
    depth: checkpoints without dropped blocks, and the proof of what was written; no_op: those that name what they lack
    configuration_decilm: the class that comes with the latter
    card: the model card
    hf: dequantized weights that plain transformers loads
    compressed_tensors: packed codes for vLLM; `schemes`: which layers can be packed, and how
    packable: which layers can be written as codes, by the rules of a format
    silence: zeros for what is dropped, in all checkpoints
    gptq: codes in the layout of GPTQ, which engines load; `gptq_rules`: what its configuration says of single layers
    gguf: what llama.cpp needs to make a GGUF file with a type for each layer
    evopress: the text files that EvoPress's programs read
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from evoray.configuration import needs_variants
from evoray.errors import UserError
from evoray.export import no_op
from evoray.export.card import Card, model_card
from evoray.export.folder import appearing, new_folder
from evoray.export.source import Depth, ExportOptions, ExportSource
from evoray.store import Location

__all__ = ["Depth", "ExportOptions", "ExportSource", "export"]


README = "README.md"


class Format(Protocol):
    """What the module of a format has."""

    def export(self, source: ExportSource, stage: Path) -> None:
        """Writes a configuration.

        Args:
            source: what to write.
            stage: an empty folder.

        Raises:
            UserError: the format can't hold it; the message names the rule and what would have avoided it.
        """


def export(name: str, source: ExportSource, out: str) -> Path | Location:
    """Writes a configuration in a format.

    Args:
        name: of the format, such as hf or compressed-tensors.
        source: what to write.
        out: a new or empty folder, or a URI. It appears whole or not at all.

    Returns:
        The folder, or the place on object storage.

    Raises:
        UserError: no such format, the folder holds something, or the format can't hold the configuration.
    """
    target = new_folder(out)
    module = _format(name)
    _check_depth(name, module, source.options.depth)
    with appearing(target) as stage:
        module.export(source, stage)
        if (stage / "config.json").exists() and not (stage / README).exists():
            card = model_card(source, _card(name, module, source), stage)
            (stage / README).write_text(card, encoding="utf-8")
    return target.local_path or target


def _card(name: str, module: Format, source: ExportSource) -> Card:
    warnings: tuple[str, ...] = getattr(module, "WARNINGS", ())
    if source.options.depth is Depth.no_op:
        # Such a checkpoint is for other engines than the format by itself.
        return Card(name, (*warnings, *no_op.WARNINGS), no_op.LOADING, "")
    loading = getattr(module, "LOADING", "")
    if needs_variants(source.configuration):
        loading += getattr(module, "LOADING_COMPRESSED", "")
    return Card(name, warnings, loading, getattr(module, "LIBRARY", "transformers"))


def _check_depth(name: str, module: Format, depth: Depth) -> None:
    forms: tuple[Depth, ...] = getattr(module, "DEPTHS", (Depth.zeros,))
    if depth not in forms:
        raise UserError(f"--depth {depth} is not for --format {name}; choose {' or '.join(forms)}")


def _format(name: str) -> Format:
    if name.replace("-", "_") in {module.name for module in pkgutil.iter_modules(__path__)}:
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
        if hasattr(module, "export"):
            return cast("Format", module)
    raise UserError(f"there is no export format {name!r}; see evoray export --help")
