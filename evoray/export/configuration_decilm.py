"""The configuration of models whose blocks may lack sublayers: `block_configs`, an entry for each block.

This file lies in checkpoints that say so, because engines read the entries as attributes, and transformers has no class
for this kind of model. It needs transformers only.

Holds: `DeciLMConfig`.
"""

from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):  # type: ignore[misc]
    """A Llama's configuration with `attention` and `ffn` of each block, which say `no_op` where there is none."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            SimpleNamespace(attention=SimpleNamespace(**entry["attention"]), ffn=SimpleNamespace(**entry["ffn"]))
            for entry in block_configs or []
        ]

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {
            **super().to_dict(),
            "block_configs": [
                {"attention": vars(entry.attention), "ffn": vars(entry.ffn)} for entry in self.block_configs
            ],
        }
