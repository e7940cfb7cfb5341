"""Hessians of the layers of one block: `HessianWalk`, `add_sums`, `shared_inputs`, `whole_hessian`, `relative_errors`.

GPTQ's Hessian of a layer is X^T X over all its inputs: rows of X are positions of the text. Layers that read the same
tensor (q/k/v, gate/up) share one. Which do is found by looking: hooks on the block's layers see their inputs, and
inputs that are the same memory in the same state are the same input.

The text's batches are cut into a fixed number of shards, each shard is summed on its own, and the sums are added in
order. A walk keeps the hidden states of shards at block boundaries, on the CPU, and takes them block by block through
the model, each shard for itself: so shards may be walked by different processes.

Shape letters: B rows of a batch, T tokens, I in, O out, N positions that count.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from evoray.compress.recipe import HESSIAN_SHARDS
from evoray.errors import EvorayError
from evoray.model import ModelAdapter
from evoray.model.products import library, product
from evoray.tokens import Batch, TokenText, all_batches

Sums: TypeAlias = dict[tuple[str, ...], Any]
"""Layers that saw the same inputs -> sum of X^T X over those inputs, float32 [I, I], lower triangle only: tensors, or
arrays where they have come from another process. They are only added, and that has the same bits in both."""

# X^T X is symmetric, so only panels of columns from the diagonal down are computed: 9/16 of the work with eight panels.
_PANELS = 8
# Narrower panels make inefficient matrix products.
_LEAST_PANEL = 64


@dataclass
class _Shard:
    """A part of the text on its way: its batches, the boundary it stands at, and the states there."""

    batches: list[Batch]
    boundary: int
    states: list[Tensor | None]


class HessianWalk:
    """Takes shards of a text through a model block by block and sums up what the layers see.

    Args:
        adapter: the model.
        text: the Hessian text.
        tokens_per_pass: most tokens of a pass, with padding.

    Example:
        >>> walk = HessianWalk(adapter, text, 4096)             # doctest: +SKIP
        >>> for block in range(adapter.n_blocks):               # doctest: +SKIP
        ...     total = {}
        ...     for shard in range(HESSIAN_SHARDS):
        ...         # and the states move on to the next block
        ...         add_sums(total, walk.observe(shard, block, names_of_layers, advance=True))
    """

    def __init__(self, adapter: ModelAdapter, text: TokenText, tokens_per_pass: int) -> None:
        self._adapter = adapter
        self._text = text
        batches = all_batches(text, tokens_per_pass)
        edges = [len(batches) * shard // HESSIAN_SHARDS for shard in range(HESSIAN_SHARDS + 1)]
        self._batches = [batches[first:last] for first, last in itertools.pairwise(edges)]
        self._shards: dict[int, _Shard] = {}
        self._copies = False

    def boundary(self, shard: int) -> int:
        """The block boundary whose states are kept: passes begin there, so weights before it are out of use."""
        return self._shards[shard].boundary if shard in self._shards else 0

    @property
    def last_boundary(self) -> int:
        """That of the shard which is furthest behind, of all that are on their way."""
        return min((shard.boundary for shard in self._shards.values()), default=0)

    def observe(self, shard: int, block: int, layers: Collection[str], *, advance: bool) -> Sums:
        """One pass of a shard through a block, with a look at the inputs of its layers.

        Args:
            shard: of the text, 0 to `HESSIAN_SHARDS` - 1.
            block: its index; the shard has walked the blocks before it.
            layers: names of its layers, in the order of the model.
            advance: let the states move on to the next boundary. Without it they stay, for `advance`.

        Returns:
            What the layers saw of this shard. Layers that got no input stand in no group.
        """
        walked = self._begun(shard)
        moving = advance and block + 1 in self._adapter.boundaries
        sums: Sums = {}
        for index, batch in enumerate(walked.batches):
            output = self._look(walked, index, batch, block, layers, sums)
            if moving:
                walked.states[index] = output
        if moving:
            walked.boundary = block + 1
        return sums

    def advance(self, shard: int, block: int) -> None:
        """Lets a shard's states pass a block with the weights that it has now."""
        walked = self._begun(shard)
        # Where no pass can begin (blocks that read what earlier ones left behind), the states stay where they are.
        if block + 1 in self._adapter.boundaries:
            for index in range(len(walked.batches)):
                walked.states[index] = self._run(walked, index, block)
            walked.boundary = block + 1

    def _begun(self, shard: int) -> _Shard:
        if shard not in self._shards:
            batches = self._batches[shard]
            self._shards[shard] = _Shard(batches, 0, [None] * len(batches))
        return self._shards[shard]

    def _look(
        self, walked: _Shard, index: int, batch: Batch, block: int, layers: Collection[str], sums: Sums
    ) -> Tensor:
        """Runs one batch through a block, adds what its layers see to `sums`, and returns the state behind it."""
        with _Watch(self._adapter, layers, copy=self._copies) as watch:
            output = self._run(walked, index, block)
        if watch.spoilt:
            # Something writes into the tensors that layers have read. Then copies have to be taken, from now on.
            self._copies = True
            return self._look(walked, index, batch, block, layers, sums)
        for group, inputs in watch.inputs():
            for rows_NI in _counted(inputs, batch):
                _add_product(sums, group, rows_NI)
        return output

    def _run(self, walked: _Shard, index: int, block: int) -> Tensor:
        state = walked.states[index]
        device = self._adapter.device
        ids_BT = torch.from_numpy(walked.batches[index].ids(self._text).astype(np.int64)).to(device)
        output = self._adapter.hidden(
            ids_BT,
            start=walked.boundary,
            hidden_BTD=None if state is None else state.to(device),
            stop=block + 1,
        )
        return output.to("cpu")


def add_sums(total: Sums, sums: Sums) -> None:
    """Adds what the layers of a block saw of one shard to the total of the shards before it."""
    for group, sum_II in sums.items():
        total[group] = total[group] + sum_II if group in total else sum_II


def shared_inputs(layers: Collection[str], total: Sums) -> list[tuple[tuple[str, ...], Any]]:
    """The layers that share a Hessian.

    Nearly always each layer stands in one group. Where two layers share an input in some passes only (experts), each
    gets the sum of the groups it is in; those with the same groups share the Hessian.

    Args:
        layers: names, in the order of the model.
        total: of all shards.

    Returns:
        Names and sum of X^T X, lower triangle only, in the order of the first layers. Layers that got no input in the
        whole text are left out.
    """
    together: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in layers:
        groups = tuple(group for group in total if name in group)
        if groups:
            together.setdefault(groups, []).append(name)
    found: list[tuple[tuple[str, ...], Any]] = []
    for groups, names in together.items():
        lower_II = total[groups[0]]
        for group in groups[1:]:
            lower_II = lower_II + total[group]
        found.append((tuple(names), lower_II))
    return found


def whole_hessian(layers: tuple[str, ...], lower_II: Tensor, tokens: int) -> Tensor:
    """The Hessian of layers that share an input: mean of x x^T over the positions of the text.

    Args:
        layers: their names, for the message.
        lower_II: sum of X^T X, of which only the lower triangle is read: float32 [I, I].
        tokens: of the whole text.

    Returns:
        float32 [I, I], symmetric, on the same device.

    Raises:
        EvorayError: inputs that are not finite.
    """
    matrix_II = (lower_II.tril() + lower_II.tril(-1).T).div_(tokens)
    if not bool(matrix_II.diagonal().isfinite().all()):
        raise EvorayError(
            f"layer {layers[0]} gets inputs that are not finite; build in another --dtype (bfloat16 or float32)"
        )
    return matrix_II


class _Watch:
    """Sees the inputs of layers during one pass.

    Args:
        adapter: the model.
        layers: names of the layers.
        copy: keep copies, for models that write into tensors that layers have read.
    """

    def __init__(self, adapter: ModelAdapter, layers: Collection[str], *, copy: bool) -> None:
        self._modules = {name: adapter.layers[name].module for name in layers}
        self._copy = copy
        # Memory and version of an input -> the input, what is kept of it, and the layers that saw it.
        self._seen: dict[tuple[Any, ...], tuple[Tensor, Tensor, set[str]]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def spoilt(self) -> bool:
        """Whether what is kept is no longer what the layers read."""
        return not self._copy and any(inputs._version != key[-1] for key, (inputs, _, _) in self._seen.items())

    def inputs(self) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Names of the layers that saw an input, in the order of the model, and the input."""
        for _, kept, names in self._seen.values():
            yield tuple(name for name in self._modules if name in names), kept

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
            key = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs.dtype, inputs._version)
            if key not in self._seen:
                # The input itself is held too until the pass is over, so that no other tensor takes its memory.
                self._seen[key] = (inputs, inputs.clone() if self._copy else inputs, set())
            self._seen[key][2].add(name)

        return look


def _counted(inputs: Tensor, batch: Batch) -> Iterator[Tensor]:
    """The rows of an input that count, [N, I]: positions of the text, not padding."""
    rows, padded = len(batch.cuts), batch.padded
    width = inputs.shape[-1]
    if min(batch.cuts) == padded:
        yield inputs.reshape(-1, width)
        return
    ends_B = torch.tensor(batch.cuts, device=inputs.device)
    counts_BT = torch.arange(padded, device=inputs.device) < ends_B.unsqueeze(1)
    if inputs.ndim >= 3 and inputs.shape[-3:-1] == (rows, padded):
        for part_BTI in inputs.reshape(-1, rows, padded, width):
            yield part_BTI[counts_BT]
    elif inputs.ndim == 2 and len(inputs) == rows * padded:
        yield inputs[counts_BT.view(-1)]
    else:
        # Routed to an expert: which positions these are can't be seen, so padding counts too. It is little, because
        # batches are made of blocks of like lengths.
        yield inputs.reshape(-1, width)


def _add_product(sums: Sums, group: tuple[str, ...], rows_NI: Tensor) -> None:
    """Adds X^T X to the sum of a group; lower triangle only."""
    width = rows_NI.shape[1]
    rows_NI = rows_NI.to(torch.float32)
    sum_II = sums.get(group)
    if sum_II is None:
        sum_II = sums[group] = torch.zeros(width, width, device=rows_NI.device)
    panel = max(_LEAST_PANEL, -(-width // _PANELS))
    in_place = library(rows_NI.device, rows_NI.dtype) == "torch"
    columns_IN = rows_NI.T if in_place else rows_NI.T.contiguous()
    for first in range(0, width, panel):
        last = min(first + panel, width)
        if in_place:
            sum_II[first:, first:last].addmm_(columns_IN[first:], columns_IN[first:last].T)
        else:
            sum_II[first:, first:last].add_(product(columns_IN[first:], columns_IN[first:last]))


def relative_errors(weight_OI: Tensor, quantized: Iterable[Tensor], hessian_II: Tensor | None) -> list[float]:
    """Layer errors: what quantization changes in the layer's output, relative to the output.

    tr((W - Q) H (W - Q)^T) / tr(W H W^T): the mean squared error of the output over the Hessian text, relative to the
    output's mean square.

    Args:
        weight_OI: the base weight, float32 [O, I].
        quantized: what the quantized weights dequantize to, float32 [O, I] each.
        hessian_II: float32 [I, I]; None for the identity, which gives the relative squared error of the weight.

    Returns:
        One for each; 0 for a layer whose output is 0 anyway.
    """
    whole = _energy(weight_OI, hessian_II)
    return [_energy(weight_OI - quantized_OI, hessian_II) / whole if whole > 0 else 0.0 for quantized_OI in quantized]


def _energy(matrix_OI: Tensor, hessian_II: Tensor | None) -> float:
    product_OI = matrix_OI if hessian_II is None else matrix_OI @ hessian_II
    # Never below zero but for rounding.
    return max(0.0, float((product_OI * matrix_OI).sum(dtype=torch.float64)))
