"""Checkpoints without the blocks that a configuration drops, and the proof that they are the model that was measured.

Whole blocks go: their tensors are left out, those behind them are renumbered, and so is the configuration: the number
of blocks and every list with an entry for each block (`layer_types`, `no_rope_layers`, ...). What else may hang on a
block's number has many forms, so no list of names decides whether that is enough. What was written is loaded again and
compared with the model that was measured: logits bit for bit, and what each block is made with.

Holds: `whole_blocks`, `without_blocks`, `Expected`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from evoray.errors import UserError
from evoray.model import DropKind, ModelAdapter, find_structure, quiet_transformers
from evoray.model.probes import probe_ids
from evoray.model.products import multiplying

_T = TypeVar("_T")

# Under which configurations keep the number of their blocks, beside what they themselves name so (`attribute_map`).
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "num_transformer_layers")
_PLAIN = (bool, int, float, str, type(None))
_REMEDY = "use --depth zeros, or the configuration file"


def whole_blocks(adapter: ModelAdapter, dropped: Collection[str]) -> tuple[tuple[int, ...], list[str]]:
    """Blocks that are dropped as a whole, and the dropped sublayers of other blocks.

    Args:
        adapter: the model, with its base weights in place.
        dropped: sublayers and blocks. A block all of whose sublayers are dropped is dropped as a whole.

    Returns:
        Their indexes, and the names of the loose sublayers.

    Raises:
        UserError: something of it can't be dropped, or nothing would be left.
    """
    adapter.check_droppable(dropped)
    blocks = {adapter.droppable[name].block for name in dropped if adapter.droppable[name].kind is DropKind.block}
    for index, sublayers in enumerate(adapter.sublayers):
        if sublayers and set(sublayers) <= set(dropped):
            blocks.add(index)
    if len(blocks) == adapter.n_blocks:
        raise UserError(
            f"all {adapter.n_blocks} blocks are dropped, and a checkpoint needs one; keep one, or use --depth zeros"
        )
    loose = [
        name
        for name in dropped
        if adapter.droppable[name].kind is not DropKind.block and adapter.droppable[name].block not in blocks
    ]
    return tuple(sorted(blocks)), loose


def without_blocks(
    tensors: Mapping[str, _T], config: PretrainedConfig, blocks: Collection[int], blocks_name: str
) -> tuple[dict[str, _T], PretrainedConfig]:
    """Tensors and configuration of a checkpoint without some blocks, the rest numbered anew.

    Whether the result is the model without these blocks is for `Expected.check` to say.

    Args:
        tensors: by name: weights, codes, scales, whatever lies in a block under its number.
        config: of the model; not changed.
        blocks: indexes of those to leave out.
        blocks_name: of the list of blocks, as in the tensors' names ("model.layers").

    Raises:
        UserError: the configuration does not say how many blocks there are.
    """
    smaller = copy.deepcopy(config)
    text = smaller.get_text_config()
    numbered = {name: int(number) for name in tensors if (number := _number(name, blocks_name)) is not None}
    n_blocks = max(numbered.values(), default=-1) + 1
    kept = [index for index in range(n_blocks) if index not in blocks]
    own = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    counts = [name for name in dict.fromkeys((own, *_COUNTS)) if vars(text).get(name) == n_blocks]
    if not counts:
        raise UserError(
            f"--depth removed: the configuration {type(text).__name__} does not say in a number that the model has "
            f"{n_blocks} blocks; {_REMEDY}"
        )
    for name in counts:
        setattr(text, name, len(kept))
    for name, entries in _block_lists(text, n_blocks).items():
        setattr(text, name, type(entries)(entries[index] for index in kept))
    place = {index: new for new, index in enumerate(kept)}
    renumbered: dict[str, _T] = {}
    for name, tensor in tensors.items():
        if name not in numbered:
            renumbered[name] = tensor
        elif numbered[name] in place:
            behind = name.removeprefix(f"{blocks_name}.{numbered[name]}")
            renumbered[f"{blocks_name}.{place[numbered[name]]}{behind}"] = tensor
    return renumbered, smaller


@dataclass(frozen=True)
class Expected:
    """What a written checkpoint has to be, once it is loaded again. Holds no model.

    Attributes:
        ids_BT: a short input.
        logits_BTV: the logits of the model that was measured, its sites dropped.
        traits: of each kept block, what it is made with: plain attributes and digests of buffers, by module and name.
        kept: indexes of these blocks in the base model.
    """

    ids_BT: Tensor
    logits_BTV: Tensor
    traits: tuple[dict[str, Any], ...]
    kept: tuple[int, ...]

    @classmethod
    def of(cls, adapter: ModelAdapter, dropped: Collection[str], removed: Collection[int] = ()) -> Expected:
        """Asks the model that was measured.

        Args:
            adapter: the model with the weights that are written.
            dropped: all sublayers and blocks that are dropped; none is at the time.
            removed: blocks that the checkpoint does not have.
        """
        ids_BT = probe_ids(adapter)
        for name in dropped:
            adapter.drop(name)
        with quiet_transformers():
            logits_BTV = adapter.logits(ids_BT).clone()
        for name in dropped:
            adapter.drop(name, False)
        kept = tuple(index for index in range(adapter.n_blocks) if index not in removed)
        return cls(ids_BT, logits_BTV, tuple(_traits(adapter.blocks[index]) for index in kept), kept)

    def check(self, model: PreTrainedModel, form: str) -> None:
        """Compares a loaded checkpoint.

        Args:
            model: what was loaded.
            form: of the checkpoint, for messages ("--depth removed").

        Raises:
            UserError: it is another model than the one that was measured.
        """
        name = type(model).__name__
        blocks = find_structure(model).blocks
        if len(blocks) != len(self.kept):
            raise UserError(f"{form}: {name} loads {len(blocks)} blocks where {len(self.kept)} are written; {_REMEDY}")
        for new, (old, traits) in enumerate(zip(self.kept, self.traits, strict=True)):
            found = _traits(blocks[new])
            if off := [key for key in traits | found if not _same(traits, found, key, old, new)]:
                raise UserError(
                    f"{form}: block {old} of {name} changes with its number ({off[0]} is {found.get(off[0])} as block "
                    f"{new} and was {traits.get(off[0])}); {_REMEDY}"
                )
        # Multiplied as in the passes that measured.
        with torch.no_grad(), multiplying(model.device, model.dtype), quiet_transformers():
            output: Any = model(input_ids=self.ids_BT, use_cache=False, return_dict=True)
        if not torch.equal(output.logits, self.logits_BTV):
            raise UserError(
                f"{form}: the logits of the {name} that was written are not those of the model that was measured; "
                f"{_REMEDY}"
            )


def _number(name: str, blocks_name: str) -> str | None:
    """In the name of a block's tensor the block's number."""
    if not name.startswith(f"{blocks_name}."):
        return None
    number = name.removeprefix(f"{blocks_name}.").partition(".")[0]
    return number if number.isdecimal() else None


def _block_lists(text: PretrainedConfig, n_blocks: int) -> dict[str, list[Any] | tuple[Any, ...]]:
    """Lists with an entry for each block, by their names in a configuration."""
    return {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, list | tuple)
        and len(value) == n_blocks
        # A model of two blocks may well end its texts with either of two tokens.
        and not (name == "architectures" or name.startswith("_") or "token" in name)
    }


def _traits(block: nn.Module) -> dict[str, Any]:
    """What a block is made with: plain attributes, and digests of its buffers."""
    traits: dict[str, Any] = {}
    for path, module in block.named_modules():
        traits[f"{path}:class"] = type(module).__name__
        for name, value in vars(module).items():
            # What a library says of its codes is no part of the model.
            if not name.startswith(("_", "quantization_")) and _is_plain(value):
                traits[f"{path}:{name}"] = value
    for path, buffer in block.named_buffers():
        data = buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        traits[f"{path}:buffer"] = hashlib.sha256(data.tobytes()).hexdigest()
    return traits


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))


def _same(before: dict[str, Any], after: dict[str, Any], key: str, old: int, new: int) -> bool:
    if key not in before or key not in after:
        return False
    if before[key] == after[key]:
        return True
    # Its own number, from 0 or from 1: where a block finds its part of a cache.
    return (before[key], after[key]) in ((old, new), (old + 1, new + 1))
