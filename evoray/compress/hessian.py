"""Hessians of the layers of one block: `HessianWalk`, `SharedHessian`, `relative_errors`.

GPTQ's Hessian of a layer is X^T X over all its inputs: rows of X are positions of the text. Layers that read the same
tensor (q/k/v, gate/up) share one. Which do is found by looking: hooks on the block's layers see their inputs, and
inputs that are the same memory in the same state are the same input.

The walk keeps the hidden states of the whole text at one block boundary, on the CPU, and takes them block by block
through the model. The text's batches are cut into a fixed number of shards, each shard is summed on its own, and the
sums are added in order.

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
from evoray.tokens import Batch, TokenText, all_batches

Sums: TypeAlias = dict[tuple[str, ...], Tensor]
"""Layers that saw the same inputs -> sum of X^T X over those inputs, float32 [I, I], lower triangle only."""

# X^T X is symmetric, so only panels of columns from the diagonal down are computed: 9/16 of the work with eight panels.
_PANELS = 8
# Narrower panels make inefficient matrix products.
_LEAST_PANEL = 64


@dataclass(frozen=True)
class SharedHessian:
    """The Hessian of layers with the same inputs.

    Attributes:
        layers: their names, in the order of the model.
        matrix_II: mean of x x^T over the positions, float32 [I, I] on the model's device.
    """

    layers: tuple[str, ...]
    matrix_II: Tensor


class HessianWalk:
    """Takes a text through a model block by block and sums up what the layers see.

    Args:
        adapter: the model.
        text: the Hessian text.
        tokens_per_pass: most tokens of a pass, with padding.

    Example:
        >>> walk = HessianWalk(adapter, text, 4096)             # doctest: +SKIP
        >>> for block in range(adapter.n_blocks):               # doctest: +SKIP
        ...     shared = walk.observe(block, names_of_layers)   # and the states move on to the next block
    """

    def __init__(self, adapter: ModelAdapter, text: TokenText, tokens_per_pass: int) -> None:
        self._adapter = adapter
        self._text = text
        batches = all_batches(text, tokens_per_pass)
        edges = [len(batches) * shard // HESSIAN_SHARDS for shard in range(HESSIAN_SHARDS + 1)]
        self._shards = [range(first, last) for first, last in itertools.pairwise(edges)]
        self._batches: list[Batch] = batches
        self._boundary = 0
        self._states: list[Tensor | None] = [None] * len(batches)
        self._copies = False

    @property
    def boundary(self) -> int:
        """The block boundary whose states are kept: passes begin there, so weights before it are out of use."""
        return self._boundary

    def observe(self, block: int, layers: Collection[str], *, advance: bool) -> list[SharedHessian]:
        """One pass of the whole text through a block, with a look at the inputs of its layers.

        Args:
            block: its index; the blocks before it have been walked.
            layers: names of its layers, in the order of the model.
            advance: let the states move on to the next boundary. Without it they stay, for `advance`.

        Returns:
            Hessians in the order of their first layers. Layers that got no input in the whole text have none.

        Raises:
            EvorayError: inputs that are not finite.
        """
        total: Sums = {}
        moving = advance and block + 1 in self._adapter.boundaries
        for shard in self._shards:
            sums: Sums = {}
            for index in shard:
                output = self._look(index, block, layers, sums)
                if moving:
                    self._states[index] = output
            for group, sum_II in sums.items():
                total[group] = total[group] + sum_II if group in total else sum_II
        if moving:
            self._boundary = block + 1
        return self._shared(layers, total)

    def advance(self, block: int) -> None:
        """Lets the states pass a block with the weights that it has now."""
        # Where no pass can begin (blocks that read what earlier ones left behind), the states stay where they are.
        if block + 1 in self._adapter.boundaries:
            for index in range(len(self._batches)):
                self._states[index] = self._run(index, block)
            self._boundary = block + 1

    def _look(self, index: int, block: int, layers: Collection[str], sums: Sums) -> Tensor:
        """Runs one batch through a block, adds what its layers see to `sums`, and returns the state behind it."""
        with _Watch(self._adapter, layers, copy=self._copies) as watch:
            output = self._run(index, block)
        if watch.spoilt:
            # Something writes into the tensors that layers have read. Then copies have to be taken, from now on.
            self._copies = True
            return self._look(index, block, layers, sums)
        for group, inputs in watch.inputs():
            for rows_NI in _counted(inputs, self._batches[index]):
                _add_product(sums, group, rows_NI)
        return output

    def _run(self, index: int, block: int) -> Tensor:
        batch, state = self._batches[index], self._states[index]
        device = self._adapter.device
        ids_BT = torch.from_numpy(batch.ids(self._text).astype(np.int64)).to(device)
        output = self._adapter.hidden(
            ids_BT,
            start=self._boundary,
            hidden_BTD=None if state is None else state.to(device),
            stop=block + 1,
        )
        return output.to("cpu")

    def _shared(self, layers: Collection[str], total: Sums) -> list[SharedHessian]:
        # Nearly always each layer stands in one group. Where two layers share an input in some passes only (experts),
        # each gets the sum of the groups it is in; those with the same groups share the Hessian.
        groups_of = {name: tuple(group for group in total if name in group) for name in layers}
        together: dict[tuple[tuple[str, ...], ...], list[str]] = {}
        for name, groups in groups_of.items():
            if groups:
                together.setdefault(groups, []).append(name)
        shared: list[SharedHessian] = []
        for groups, names in together.items():
            matrix_II = total[groups[0]]
            for group in groups[1:]:
                matrix_II = matrix_II + total[group]
            matrix_II = (matrix_II.tril() + matrix_II.tril(-1).T).div_(self._text.tokens)
            if not bool(matrix_II.diagonal().isfinite().all()):
                raise EvorayError(
                    f"layer {names[0]} gets inputs that are not finite; build in another --dtype (bfloat16 or float32)"
                )
            shared.append(SharedHessian(tuple(names), matrix_II))
        return shared


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
    for first in range(0, width, panel):
        last = min(first + panel, width)
        sum_II[first:, first:last].addmm_(rows_NI[:, first:].T, rows_NI[:, first:last])


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
