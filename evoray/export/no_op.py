"""Checkpoints that name the sublayers they lack: `block_configs`, as in Nemotron-NAS, for `--depth no-op`.

The form is that of DeciLMForCausalLM (model type nemotron-nas): a Llama whose configuration has an entry for each
block. A sublayer that is a `no_op` has neither weights nor norm, and takes no room in the cache of keys and values.
vLLM (`nemotron_nas.py`), mlx-lm, TensorRT-LLM and llama.cpp's converter read it. What their code asks for:

- the entries are attributes in vLLM: so the checkpoint brings a class for its configuration;
- `n_heads_in_group` is the number of query heads per key head, null where there is no attention;
- the width of the feed-forward is `ffn_mult`: int(2 * ffn_mult * hidden size / 3), up to the next multiple of 256;
- in vLLM the first sublayer that runs has to be an attention: a norm in front of a feed-forward finds no residual else.

Holds: `LOADING`, `WARNINGS`, `leave_out`, `write_config`, `read_as_llama`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig

from evoray.errors import UserError
from evoray.model import DropKind, ModelAdapter, quiet_transformers

LOADING = """\
vLLM reads the form (`DeciLMForCausalLM`); the class of its configuration comes with the checkpoint:

```
vllm serve FOLDER --trust-remote-code
```

transformers has no class for this model: `AutoModelForCausalLM` can't load it without code of your own.
"""
WARNINGS = (
    "Written after the code of the engines that read `block_configs`, and read back here as a Llama with the same "
    "logits. It has not been tried in an engine.",
)

_SOURCE = "configuration_decilm"
_MULTIPLE = 256
# The norm in front of each sublayer, which goes with it.
_NORMS = {DropKind.attn: "input_layernorm", DropKind.mlp: "post_attention_layernorm"}
# What engines that know the form take from its configuration, beside `block_configs`.
_READ = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "max_position_embeddings",
    "rms_norm_eps", "attention_bias", "mlp_bias", "tie_word_embeddings", "head_dim", "rope_theta", "rope_scaling",
)  # fmt: skip


def leave_out(
    adapter: ModelAdapter, config: PretrainedConfig, tensors: Mapping[str, Tensor], silent: Collection[str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What is left of a model's tensors, and the entries that say so.

    Args:
        adapter: the model.
        config: of the model.
        tensors: of the model, by name.
        silent: sublayers that are dropped.

    Returns:
        The tensors, and `block_configs`.

    Raises:
        UserError: the form can't say it.
    """
    if config.model_type != "llama":
        raise UserError(
            f"--depth no-op is for llama, and this model is of type {config.model_type}; use --depth removed or zeros"
        )
    if config.intermediate_size % _MULTIPLE:
        raise UserError(
            f"--depth no-op: a feed-forward of width {config.intermediate_size} can't be said, engines take multiples "
            f"of {_MULTIPLE}; use --depth removed or zeros"
        )
    gone = {(adapter.droppable[name].block, adapter.droppable[name].kind) for name in silent}
    has_attention, has_mlp = (
        [(index, kind) not in gone for index in range(adapter.n_blocks)] for kind in (DropKind.attn, DropKind.mlp)
    )
    first = next((index for index in range(adapter.n_blocks) if has_attention[index] or has_mlp[index]), None)
    if first is None or not has_attention[first]:
        raise UserError(
            f"--depth no-op: the attention of block {first or 0} is dropped, and engines need that of the first block "
            "that is left; use --depth removed or zeros"
        )
    prefixes = tuple(
        f"{adapter.blocks_name}.{block}.{part}."
        for block, kind in gone
        for part in (_NORMS[kind], "self_attn" if kind is DropKind.attn else "mlp")
    )
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
    group = config.num_attention_heads // config.num_key_value_heads
    width = round(3 * config.intermediate_size / (2 * config.hidden_size), 6)
    entries = [
        _entry(group if attention else None, width if mlp else None)
        for attention, mlp in zip(has_attention, has_mlp, strict=True)
    ]
    return kept, entries


def write_config(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Makes the config.json of a Llama one of this form, and lays the class that reads it beside.

    Args:
        folder: of the checkpoint.
        entries: what `leave_out` returned.
    """
    place = folder / "config.json"
    config: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    rope: dict[str, Any] = dict(config.get("rope_parameters") or {})
    if rope:
        # Newer transformers keep all of the rotation in one dict; engines that know the form read the older names.
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    config |= {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{_SOURCE}.DeciLMConfig"},
        "block_configs": entries,
        "model_type": "nemotron-nas",
    }
    place.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(f"{_SOURCE}.py"), folder / f"{_SOURCE}.py")


def read_as_llama(folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """What an engine would make of the checkpoint: from its entries alone, a Llama with zeros for what it lacks.

    Args:
        folder: of the checkpoint.
        dtype: to read it in.
    """
    written: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    groups = {entry["attention"]["n_heads_in_group"] for entry in written["block_configs"]} - {None}
    widths = {entry["ffn"]["ffn_mult"] for entry in written["block_configs"]} - {None}
    hidden = written["hidden_size"]
    config = LlamaConfig(
        **{name: written[name] for name in _READ if name in written},
        num_key_value_heads=written["num_attention_heads"] // groups.pop(),
        # Without any feed-forward its width makes no difference.
        intermediate_size=-(-int(2 * (widths.pop() if widths else 1) * hidden / 3) // _MULTIPLE) * _MULTIPLE,
    )
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    for name, shape in shapes.items():
        if name not in tensors and not (name == "lm_head.weight" and config.tie_word_embeddings):
            tensors[name] = torch.zeros(shape, dtype=dtype)
    with quiet_transformers():
        model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    return model.eval()


def _entry(group: int | None, width: float | None) -> dict[str, Any]:
    """One of `block_configs`, with all fields that such configurations have.

    Args:
        group: query heads per key head; None: no attention.
        width: `ffn_mult`; None: no feed-forward.
    """
    common = {"replace_with_linear": False, "sparsify": None}
    return {
        "attention": {
            "n_heads_in_group": group, "no_op": group is None, "num_sink_tokens": None, "unshifted_sink": False,
            "use_prefill_window_in_sink_attention": False, "window_length": None, **common,
        },
        "ffn": {"ffn_mult": width, "no_op": width is None, **common},
    }  # fmt: skip
