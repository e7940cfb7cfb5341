"""Checkpoints of a configuration, for people's engines, and texts for other programs. One file per format, and no list.

A format is a module here with `export(source: ExportSource, stage: Path) -> None`, which writes into a folder that
appears whole or not at all; its name is what `--format` takes, with underscores for dashes.

Holds:
    source: `ExportSource`, `ExportOptions`, `Depth`: what is exported, checked
    folder: the folder that all write
    hf: dequantized weights that plain transformers loads
    compressed_tensors: packed codes for vLLM; `schemes`: which layers can be packed, and how
    silence: zeros for what is dropped, in all checkpoints
    evopress: the text files that EvoPress's programs read
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from evoray.errors import UserError
from evoray.export.folder import appearing, new_folder
from evoray.export.source import Depth, ExportOptions, ExportSource

__all__ = ["Depth", "ExportOptions", "ExportSource", "export"]


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


def export(name: str, source: ExportSource, out: str) -> Path:
    """Writes a configuration in a format.

    Args:
        name: of the format, such as hf or compressed-tensors.
        source: what to write.
        out: a new or empty folder. It appears whole or not at all.

    Returns:
        The folder.

    Raises:
        UserError: no such format, the folder holds something, or the format can't hold the configuration.
    """
    target = new_folder(out)
    module = _format(name)
    with appearing(target) as stage:
        module.export(source, stage)
    return target


def _format(name: str) -> Format:
    if name.replace("-", "_") in {module.name for module in pkgutil.iter_modules(__path__)}:
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
        if hasattr(module, "export"):
            return cast("Format", module)
    raise UserError(f"there is no export format {name!r}; see evoray export --help")
