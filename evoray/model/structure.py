"""What a causal language model is made of, found by structure and not by a table of names.

Holds:
- `LayerRef`: one compressible matrix and where it lives.
- `Structure`: decoder, blocks, layers and head of a model.
- `find_structure`: finds them; works on a model of the meta device too, so a driver needs no weights.
- `is_layer`: whether a module is a layer.
- `check_reach`: refuses a model too many of whose weights lie outside the layers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evoray.errors import UserError

# Below this share of the blocks' weights a "compressed" model would be mostly uncompressed, and its sizes misleading.
MINIMUM_REACH = 0.9


@dataclass(frozen=True)
class LayerRef:
    """One compressible matrix.

    Attributes:
        name: Module path in the whole model ("model.layers.0.mlp.up_proj").
        block: Index of the block it lies in.
        module: The module that owns the weight.
        out_features: Rows of the weight as [out, in].
        in_features: Columns of the weight as [out, in].
        transposed: The module stores [in, out] (transformers' `Conv1D`).
        base: The uncompressed weight in the module's own layout, dtype and device. Not to be written to.
    """

    name: str
    block: int
    module: nn.Module
    out_features: int
    in_features: int
    transposed: bool
    base: Tensor


@dataclass(frozen=True)
class Structure:
    """Decoder, blocks, layers and head of a model.

    Attributes:
        decoder: The module that turns token ids into the last hidden state.
        blocks: Its list of blocks.
        blocks_name: Module path of that list.
        layers: Layers by name, in order of the blocks, then of definition inside the block.
        head: The output embedding where it is a linear module, else None.
        reach: Share of the blocks' weights (parameters of two or more dimensions) that lie in layers.
        unreachable: Numbers of weights per kind of module outside the layers, largest first
            ("Qwen3MoeExperts.gate_up_proj" -> 49152).
    """

    decoder: nn.Module
    blocks: nn.ModuleList
    blocks_name: str
    layers: dict[str, LayerRef]
    head: nn.Linear | None
    reach: float
    unreachable: dict[str, int]


def find_structure(model: PreTrainedModel) -> Structure:
    """Find a model's decoder, blocks, layers and head.

    The decoder is what the model itself names so (`get_decoder`, else `base_model`), the blocks are the list of
    modules under it that holds the most weights, the layers are the 2-D weights of linear and `Conv1D` modules in the
    blocks. Weights that several modules share count once, under the first module's name.

    Args:
        model: A causal language model, on any device, the meta device included.

    Raises:
        UserError: The model has no list of blocks, or no layer in them.
    """
    names = {module: name for name, module in model.named_modules()}
    decoder = _decoder(model)
    blocks = _largest_list(decoder)
    if blocks is None or len(blocks) == 0:
        raise UserError(
            f"model class {type(model).__name__}: no list of blocks under {type(decoder).__name__}; "
            "choose a decoder-only transformers model whose blocks are in a ModuleList"
        )
    layers: dict[str, LayerRef] = {}
    weights, reached = 0, 0
    outside: dict[str, int] = defaultdict(int)
    seen: set[int] = set()
    for index, block in enumerate(blocks):
        for module in block.modules():
            for kind, parameter in module.named_parameters(recurse=False):
                if parameter.ndim < 2 or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                weights += parameter.numel()
                if kind == "weight" and is_layer(module):
                    reached += parameter.numel()
                    ref = _layer(names[module], index, module)
                    layers[ref.name] = ref
                else:
                    outside[f"{type(module).__name__}.{kind}"] += parameter.numel()
    if not layers:
        raise UserError(
            f"model class {type(model).__name__}: its blocks ({type(blocks[0]).__name__}) hold no linear layer; "
            "choose a model with nn.Linear or Conv1D layers"
        )
    head = model.get_output_embeddings()
    return Structure(
        decoder=decoder,
        blocks=blocks,
        blocks_name=names[blocks],
        layers=layers,
        head=head if isinstance(head, nn.Linear) else None,
        reach=reached / weights,
        unreachable=dict(sorted(outside.items(), key=lambda item: -item[1])),
    )


def check_reach(model: PreTrainedModel, structure: Structure, allow_partial: bool) -> str | None:
    """Refuse a model too little of which can be compressed.

    Args:
        model: The model, for its class's name in the message.
        structure: What `find_structure` found in it.
        allow_partial: Let it pass all the same.

    Returns:
        None, or one line to show when the model passed only because of `allow_partial`.

    Raises:
        UserError: Less than `MINIMUM_REACH` of the blocks' weights are in layers, and `allow_partial` is not set.
    """
    if structure.reach >= MINIMUM_REACH:
        return None
    kinds = ", ".join(list(structure.unreachable)[:4])
    found = (
        f"model class {type(model).__name__}: {structure.reach:.1%} of its blocks' weights are in layers that can be "
        f"compressed, {kinds} can't"
    )
    if allow_partial:
        return f"{found}; they stay as they are"
    raise UserError(f"{found}; at least {MINIMUM_REACH:.0%} are wanted unless --allow-partial is given")


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    # Some classes answer with themselves or with nothing; then the base model is the decoder.
    if not isinstance(decoder, nn.Module) or decoder is model:
        decoder = model.base_model
    if decoder is model:
        raise UserError(
            f"model class {type(model).__name__} does not tell its decoder from its head; "
            "choose a model with get_decoder() or a base model"
        )
    return decoder


def _largest_list(decoder: nn.Module) -> nn.ModuleList | None:
    """The list of modules with the most parameters; of equal ones the outermost, which comes first."""
    largest: nn.ModuleList | None = None
    most = -1
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size > most:
                largest, most = module, size
    return largest


def is_layer(module: nn.Module) -> bool:
    """Whether a module's weight can be compressed: a 2-D weight of a linear or `Conv1D` module."""
    return isinstance(module, nn.Linear | Conv1D) and module.weight.ndim == 2 and module.weight.is_floating_point()


def _layer(name: str, block: int, module: nn.Module) -> LayerRef:
    weight = module.weight
    assert isinstance(weight, Tensor)
    transposed = isinstance(module, Conv1D)
    rows, columns = weight.shape
    if transposed:
        rows, columns = columns, rows
    return LayerRef(name, block, module, rows, columns, transposed, weight.data)
