"""A saved tiny model with a store that `evoray build` made by rounding to nearest, and what has to come out of it.

`Case` is that; `rewritten` makes its store anew with other variants; `tensors_of` reads a checkpoint's files, `loaded`
the whole of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import tiny_ids, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from evoray.configuration import BASE, DROPPED, KEPT, Configuration
from evoray.embedded import model_path
from evoray.export import ExportOptions, ExportSource
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, quiet_transformers
from evoray.run.build import run_build
from evoray.settings import BuildSettings
from evoray.space.ties import tie
from evoray.store import StoreWriter, Variant, VariantStore

IDS_BT = tiny_ids(vocabulary=90)


@dataclass
class Case:
    """Folders of a model and a store."""

    model: str
    store: str

    @classmethod
    def of(
        cls,
        folder: Path,
        family: str = "llama",
        dtype: torch.dtype = torch.bfloat16,
        changes: dict[str, Any] | None = None,
        **building: Any,
    ) -> Case:
        """Makes both; `changes` are of the model's configuration."""
        tiny_model(family, **changes or {}).to(dtype).save_pretrained(folder / "model")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / "model" / name).write_bytes((Path(model_path()) / name).read_bytes())
        usual: dict[str, Any] = {"method": "rtn", "levels": ("3", "4"), "group_size": 32, "threads": 1}
        made = cls(str(folder / "model"), str(folder / "store"))
        run_build(BuildSettings(**usual | {"model": made.model, "store": made.store} | building))
        return made

    @property
    def variants(self) -> VariantStore:
        return VariantStore.open(self.store)

    def tied(self, levels: Sequence[str]) -> Configuration:
        """All levels in turn, equal in what engines fuse; every seventh of these groups keeps its base weight."""
        groups = tie([layer.name for layer in self.variants.manifest.layers])
        return {
            name: levels[index % len(levels)] for index, names in enumerate(groups) if index % 7 != 6 for name in names
        }

    def source(self, configuration: Configuration, **options: Any) -> ExportSource:
        return ExportSource.open(self.model, self.store, configuration, options=ExportOptions(**options))

    def weight_OI(self, layer: str, level: str, dtype: torch.dtype) -> Tensor:
        """The weight that an evaluator uses."""
        return dense_weight(self.variants.read(layer, level), dtype)

    def logits(self, configuration: Configuration, dtype: torch.dtype) -> Tensor:
        """The logits of the model that is measured."""
        adapter = ModelAdapter(loaded(self.model, dtype))
        for name, level in configuration.items():
            if level == DROPPED:
                adapter.drop(name)
            elif level not in (BASE, KEPT):
                adapter.swap(name, adapter.ready(name, self.weight_OI(name, level, dtype)))
        return adapter.logits(IDS_BT)


def rewritten(case: Case, folder: Path, change: Callable[[Variant], Variant]) -> Case:
    """The same model, and a store of changed variants."""
    old = case.variants
    writer = StoreWriter(folder, old.manifest.header)
    for entry in old.manifest.layers:
        writer.write(entry, [change(old.read(entry.name, level)) for level in entry.levels])
    writer.finish()
    return Case(case.model, str(folder))


def loaded(folder: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A checkpoint as anyone loads it; a packed one is unpacked by its first pass."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval().requires_grad_(False)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint's files."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


def quantization_of(folder: Path) -> dict[str, Any]:
    """What its config.json says of packed layers."""
    quantization: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return quantization
