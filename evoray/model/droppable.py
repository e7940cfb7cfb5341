"""What a model can do without: the sublayers of its blocks, and whole blocks, found by structure.

Holds:
- `DropKind`: token mixer, feed-forward or whole block.
- `Droppable`: one of them, and what goes with it.
- `find_droppable`: finds them; works on a model of the meta device too.
- `modules_of`: the modules that one consists of.
- `silenced_parameters`: what has to be zero for a sublayer to add nothing.

Whether dropping one means anything is another question, and a probe's to answer (`drop_probes`).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evoray.model.structure import Structure, is_layer

# What only a module that looks at several positions is handed.
_MIXER_WORDS = ("mask", "cache", "past")


class DropKind(StrEnum):
    """What a droppable site is."""

    attn = "attn"
    """A token mixer: attention, a convolution, a state space model."""
    mlp = "mlp"
    """Works on each position by itself."""
    block = "block"
    """A whole block."""


@dataclass(frozen=True)
class Droppable:
    """One sublayer or block that a model can be run without.

    Attributes:
        name: Module path ("model.layers.3.self_attn", "model.layers.3"). Layers that lie in a block without a module of
            their own are one sublayer, named after all of them ("model.decoder.layers.3.fc1+fc2").
        block: Index of the block.
        kind: What it is, by its signature.
        layers: Names of the layers that go with it.
        other_bytes: Bytes of the tensors under it that are no layer: biases, norms inside, fused experts.
    """

    name: str
    block: int
    kind: DropKind
    layers: tuple[str, ...]
    other_bytes: int


def find_droppable(model: PreTrainedModel, structure: Structure, dtype: torch.dtype) -> tuple[Droppable, ...]:
    """Find the sublayers and blocks of a model.

    The sublayers of a block are its direct children that hold weights of two or more dimensions. A module that several
    blocks share is none: it can't be dropped from one of them.

    Args:
        model: A causal language model, on any device, the meta device included.
        structure: What `find_structure` found in it.
        dtype: In which bytes are counted.

    Returns:
        All sublayers in order of the blocks, then of definition, and behind them all blocks.
    """
    owners = Counter(child for block in structure.blocks for child in {child for _, child in _children(block)})
    layer_names = {ref.module: name for name, ref in structure.layers.items()}
    weights = {id(ref.module.weight) for ref in structure.layers.values()}
    names = {module: name for name, module in model.named_modules()}

    def found(name: str, index: int, kind: DropKind, modules: Iterable[nn.Module], counted: set[int]) -> Droppable:
        inside = [part for module in modules for part in module.modules()]
        tensors = [tensor for module in modules for tensor in module.state_dict(keep_vars=True).values()]
        other = 0
        for tensor in tensors:
            if id(tensor) not in counted:
                counted.add(id(tensor))
                other += tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())
        layers = tuple(layer_names[part] for part in dict.fromkeys(inside) if part in layer_names)
        return Droppable(name, index, kind, layers, other)

    sublayers: list[Droppable] = []
    counted = set(weights)  # a tensor that several share counts once, where it comes first
    for index, block in enumerate(structure.blocks):
        loose: list[str] = []
        place = len(sublayers)
        for path, child in _children(block):
            if owners[child] > 1 or not _holds_matrix(child):
                continue
            if is_layer(child):
                place = place if loose else len(sublayers)
                loose.append(path)
            else:
                sublayers.append(found(f"{names[block]}.{path}", index, _kind(child), [child], counted))
        if loose:
            path = "+".join(loose)
            site = found(f"{names[block]}.{path}", index, DropKind.mlp, modules_of(block, path), counted)
            sublayers.insert(place, site)
    counted = set(weights)
    blocks = [
        found(names[block], index, DropKind.block, [block], counted) for index, block in enumerate(structure.blocks)
    ]
    return (*sublayers, *blocks)


def modules_of(block: nn.Module, path: str) -> list[nn.Module]:
    """The modules that a site consists of.

    Args:
        block: The block it lies in.
        path: Its name inside the block: "" for the block itself, several joined by "+" for loose layers.
    """
    return [block.get_submodule(part) for part in path.split("+")]


def silenced_parameters(modules: Iterable[nn.Module]) -> dict[int, nn.Parameter]:
    """All weights of two or more dimensions and all biases under some modules, by identity.

    With these at zero a sublayer adds nothing, if it can add nothing at all; its norms keep their scales.
    """
    return {
        id(parameter): parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 or name.endswith("bias")
    }


def _children(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Direct children with their paths; lists of modules are looked into, because nothing calls a list."""
    for name, child in block.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from ((f"{name}.{path}", inner) for path, inner in _children(child))
        else:
            yield name, child


def _holds_matrix(module: nn.Module) -> bool:
    return any(isinstance(parameter, Tensor) and parameter.ndim >= 2 for parameter in module.parameters())


def _kind(module: nn.Module) -> DropKind:
    names = inspect.signature(module.forward).parameters
    mixes = any(word in name for name in names for word in _MIXER_WORDS)
    return DropKind.attn if mixes else DropKind.mlp
