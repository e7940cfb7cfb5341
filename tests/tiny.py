"""Tiny random models of many decoder families, for tests of everything that touches a model.

`tiny_model(family, seed=0)` builds one (two to four blocks, hidden size 64, a vocabulary of about a hundred, float32,
evaluation mode). Its weights are far from zero, so that every layer matters for the output, and depend on nothing but
family and seed; no global random state is touched. `FAMILIES` names them all.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
HIDDEN = 64

_ATTENTION: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_GEMMA: dict[str, Any] = {**_ATTENTION, "head_dim": 16, "sliding_window": 8}

# family -> (model type of transformers, settings beside the common ones)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_ATTENTION, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_ATTENTION, "head_dim": 16, "sliding_window": 8}),
    "qwen2": ("qwen2", _ATTENTION),
    "qwen3": ("qwen3", {**_ATTENTION, "head_dim": 16}),
    "gemma2": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {**_GEMMA, "query_pre_attn_scalar": 16}),
    "phi3": ("phi3", _ATTENTION),
    "gpt2": ("gpt2", {"n_embd": HIDDEN, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 128}),
    "opt": (
        "opt",
        {
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "ffn_dim": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "falcon": ("falcon", {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4}),
    # Its attention and its feed-forward add to the residual stream themselves.
    "bloom": ("bloom", {"hidden_size": HIDDEN, "n_layer": 3, "n_head": 4}),
    "mamba": ("mamba", {"hidden_size": HIDDEN, "num_hidden_layers": 3, "state_size": 4, "time_step_rank": 8}),
    "cohere": ("cohere", {**_ATTENTION, "logit_scale": 0.25}),
    "granite": (
        "granite",
        {
            **_ATTENTION,
            "logits_scaling": 4.0,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
        },
    ),
    # Four blocks, the last two of which take keys and values from the first two.
    "gemma3n": (
        "gemma3n_text",
        {
            **_GEMMA,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0],
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **_ATTENTION,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "decoder_sparse_step": 1,
        },
    ),
    # Text and vision: the blocks of the vision tower are none of ours.
    "gemma3_vision": (
        "gemma3",
        {
            "text_config": {**_GEMMA, "query_pre_attn_scalar": 16, "vocab_size": VOCABULARY},
            "vision_config": {
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 90,
            "boi_token_index": 91,
            "eoi_token_index": 92,
        },
    ),
    # Sees later tokens: a causal language model by class, not by its answers.
    "bert": (
        "bert",
        {
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "is_decoder": False,
        },
    ),
    # Its head is narrower than its hidden state.
    "electra": (
        "electra",
        {
            "hidden_size": HIDDEN,
            "embedding_size": 32,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "is_decoder": True,
        },
    ),
}


def tiny_config(family: str, **changes: Any) -> Any:
    """The transformers configuration of a tiny model; `changes` replace single settings of it."""
    model_type, settings = FAMILIES[family]
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoConfig.for_model(model_type, **{**tokens, **settings, **changes})


def tiny_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Build a tiny random model of a family.

    Args:
        family: One of `FAMILIES`.
        seed: Decides the weights, together with the family.
        **changes: Settings of the transformers configuration to replace.

    Returns:
        A float32 model on the CPU in evaluation mode. Matrices have a spread of about 1.2 / sqrt(fan in), so a hidden
        state keeps its size through a layer; vectors (norms, biases) keep their initial value plus a little noise.
    """
    config = tiny_config(family, **changes)
    # transformers draws its own initial weights: from the forked default generator, which the block puts back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            elif name.endswith("A_log"):  # the time constants of a state space model: exp(A_log) must stay tame
                parameter.add_(0.05 * noise)
            else:
                parameter.copy_(0.15 * noise)
    model.eval()
    model.requires_grad_(False)
    return model


def tiny_ids(rows: int = 2, tokens: int = 12, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    """Token ids int64 [rows, tokens], none of them a special token of the tiny models."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary - 10, (rows, tokens), generator=generator)
