"""How a model that is too large for one GPU is spread over several: whole blocks, in their order, balanced by bytes.

Holds:
- `Parts`: what there is to spread, in bytes. `parts_of`: of a model, and which of its modules belong where.
- `spread_blocks`: the GPU of each block; pure.
- `device_map`: the same as the loader takes it.
- `free_output`: leaves what a spread model returns where it was made.

The library accelerate does the rest: its hooks bring what enters a module (states, masks, rotary embeddings) to the
module's GPU. No product is split, so every number is computed by the kernels of one GPU, with the shapes that it has
on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from evoray.errors import UserError
from evoray.model.structure import find_structure


@dataclass(frozen=True)
class Parts:
    """Bytes of a model's parts, in the order in which they run.

    Attributes:
        first: What goes with the first block: embeddings, a head that is tied to them, all without weights.
        blocks: Of each block.
        last: What goes with the last block: the final norm, the head.
    """

    first: int
    blocks: tuple[int, ...]
    last: int


def spread_blocks(parts: Parts, memory: Sequence[int]) -> tuple[int, ...]:
    """The GPU of each block, so that the fullest GPU is as empty as can be.

    Each GPU gets neighbouring blocks, at least one.

    Args:
        parts: Of the model.
        memory: Bytes of each GPU, in the order in which blocks go to them.

    Returns:
        Indexes into `memory`, one per block, never falling.

    Raises:
        UserError: Fewer blocks than GPUs, or more bytes than they hold.
    """
    blocks, gpus = len(parts.blocks), len(memory)
    if blocks < gpus:
        raise UserError(
            f"--gpus-per-worker {gpus}: the model has {blocks} blocks, and each GPU needs one; give {blocks} or fewer"
        )
    before = [0]
    for size in parts.blocks:
        before.append(before[-1] + size)

    def share(gpu: int, start: int, stop: int) -> float:
        size = before[stop] - before[start]
        size += (parts.first if gpu == 0 else 0) + (parts.last if gpu == gpus - 1 else 0)
        return size / memory[gpu]

    # Of the best way to put the blocks before `stop` on the GPUs so far: the share of its fullest GPU, and, per GPU,
    # where its last one begins.
    fullest: dict[int, float] = {stop: share(0, 0, stop) for stop in range(1, blocks + 1)}
    cuts: list[dict[int, int]] = [dict.fromkeys(fullest, 0)]
    for gpu in range(1, gpus):
        found: dict[int, float] = {}
        cut: dict[int, int] = {}
        for stop in range(gpu + 1, blocks + 1):
            ways = {start: max(fullest[start], share(gpu, start, stop)) for start in range(gpu, stop)}
            cut[stop] = min(ways, key=lambda start: ways[start])
            found[stop] = ways[cut[stop]]
        fullest = found
        cuts.append(cut)
    if fullest[blocks] > 1:
        total = parts.first + before[-1] + parts.last
        raise UserError(
            f"--gpus-per-worker {gpus}: the model has {total / 1e9:.1f} GB, and whole blocks of it don't fit into "
            f"{' + '.join(f'{size / 1e9:.1f}' for size in memory)} GB; give more GPUs, or another --dtype"
        )
    gpu_of: list[int] = []
    stop = blocks
    for gpu in reversed(range(gpus)):
        start = cuts[gpu][stop]
        gpu_of += [gpu] * (stop - start)
        stop = start
    return tuple(reversed(gpu_of))


def parts_of(model: PreTrainedModel, itemsize: int) -> tuple[Parts, tuple[str, ...], tuple[str, ...]]:
    """A model's parts, and the module paths of those that go with the first block, and with the last.

    Modules that stand before the blocks go with the first one, modules with weights behind them with the last. What
    shares a weight with an earlier module goes where that one goes: a head that is tied to the embeddings stays there.

    Args:
        model: On any device, the meta device included.
        itemsize: Bytes of a weight.

    Raises:
        UserError: See `find_structure`.
    """
    structure = find_structure(model)
    outside: list[tuple[str, nn.Module, bool]] = []

    def walk(module: nn.Module, path: str, behind: bool) -> bool:
        for name, child in module.named_children():
            full = f"{path}{name}"
            if full == structure.blocks_name:
                behind = True
            elif structure.blocks_name.startswith(f"{full}."):
                behind = walk(child, f"{full}.", behind)
            else:
                outside.append((full, child, behind))
        # Weights that lie beside the blocks in no module of their own.
        loose = [name for name, _ in module.named_parameters(recurse=False)]
        first.extend(f"{path}{name}" for name in loose)
        first_ids.update(id(parameter) for parameter in module.parameters(recurse=False))
        sizes["first"] += itemsize * sum(parameter.numel() for parameter in module.parameters(recurse=False))
        return behind

    first: list[str] = []
    last: list[str] = []
    first_ids: set[int] = set()
    sizes = {"first": 0, "last": 0}
    walk(model, "", False)
    seen = {id(parameter) for block in structure.blocks for parameter in block.parameters()} | first_ids
    for path, module, behind in outside:
        parameters = list(module.parameters())
        shared = any(id(parameter) in first_ids for parameter in parameters)
        goes_last = behind and bool(parameters) and not shared
        (last if goes_last else first).append(path)
        new = {id(parameter): parameter for parameter in parameters if id(parameter) not in seen}
        seen |= new.keys()
        if not goes_last:
            first_ids |= new.keys()
        sizes["last" if goes_last else "first"] += itemsize * sum(parameter.numel() for parameter in new.values())
    blocks = tuple(itemsize * sum(p.numel() for p in block.parameters()) for block in structure.blocks)
    return Parts(sizes["first"], blocks, sizes["last"]), tuple(first), tuple(last)


def device_map(model: PreTrainedModel, itemsize: int, memory: Sequence[int]) -> dict[str, int]:
    """Module path -> index of its GPU.

    Args:
        model: On any device, the meta device included.
        itemsize: Bytes of a weight.
        memory: Bytes of each GPU.

    Raises:
        UserError: See `find_structure` and `spread_blocks`.
    """
    parts, first, last = parts_of(model, itemsize)
    name = find_structure(model).blocks_name
    found = {f"{name}.{block}": gpu for block, gpu in enumerate(spread_blocks(parts, memory))}
    return {**dict.fromkeys(first, 0), **found, **dict.fromkeys(last, len(memory) - 1)}


def free_output(model: PreTrainedModel) -> None:
    """Let a spread model leave its logits where they were made. Its outermost hook would bring them to the GPU of the
    token ids, all [B, T, V] of them; losses are computed where the head is."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model)
