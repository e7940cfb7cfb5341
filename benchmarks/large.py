"""A model of the size that matters, with random weights: what is measured of it does not depend on what it has learned.

Holds: `LLAMA_8B`, `random_llama`, `random_text`, `matrix_rate`, `computed_rate`.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evoray.model import ModelAdapter
from evoray.tokens import TokenText

LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
"""The shape of Llama-3-8B."""


def random_llama(folder: Path, shape: dict[str, Any], device: str) -> str:
    """Writes a checkpoint in bfloat16 and returns its folder. Weights are small, so that states stay finite."""
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return str(folder)


def random_text(vocabulary: int, length: int, tokens: int) -> TokenText:
    """Blocks of one length, every one a document of its own."""
    draws = np.random.default_rng(0)
    blocks = tuple(draws.integers(0, vocabulary, length, dtype=np.int32) for _ in range(tokens // length))
    return TokenText(blocks, tuple(map(str, range(len(blocks)))), length)


def matrix_rate(device: str, dtype: torch.dtype, size: int = 8192, times: int = 20) -> float:
    """Operations per second (a product and a sum are two) of large matrix products, as this device does them now."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        left @ right
    _wait(device)
    return 2 * size**3 * times / (time.perf_counter() - began)


def computed_rate(adapter: ModelAdapter, tokens_per_second: float, blocks_run: float) -> float:
    """Operations per second of the products that were really made, attention itself not counted.

    Args:
        adapter: the model.
        tokens_per_second: candidate tokens.
        blocks_run: share of the candidates' blocks that was not reused.
    """
    blocks = sum(layer.in_features * layer.out_features for layer in adapter.layers.values())
    head = 0 if adapter.head is None else adapter.head.weight.numel()
    return 2 * tokens_per_second * (blocks_run * blocks + head)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
