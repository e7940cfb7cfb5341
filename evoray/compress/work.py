"""What a worker of a build does: `BuildWork`, `Task`, `Finished`.

A shard of the Hessian text goes through a block; layers are made at all levels. Each piece depends on nothing but the
model, the recipe, the text and what it is given, so any process may do it: one that does them all, or many.

Shape letters: O out, I in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evoray.compress.hessian import HessianWalk, Sums, relative_errors, whole_hessian
from evoray.compress.outliers import outlier_ratios
from evoray.compress.plan import layer_entry
from evoray.compress.recipe import Levels, Made, Recipe
from evoray.errors import EvorayError
from evoray.formats import dense_weight
from evoray.model import ModelAdapter
from evoray.store import LayerEntry, StoreHeader, Variant
from evoray.tokens import TokenText


@dataclass(frozen=True, eq=False)
class Task:
    """Layers that are made together.

    A group with one input is always made as a whole, so that its matrix products have the shapes, and the bits, of the
    first time.

    Attributes:
        layers: with the same input, in the order of the model; one alone where there is no Hessian.
        wanted: those of them whose variants are asked for.
        lower_II: sum of X^T X over the text, float32 [I, I], lower triangle: a tensor, or what a carrier made of it;
            None to go by the weights alone.
    """

    layers: tuple[str, ...]
    wanted: Collection[str]
    lower_II: Any = None


@dataclass(frozen=True)
class Finished:
    """What became of a task.

    Attributes:
        layers: each wanted layer with the variants of all its levels.
        notes: lines that a user should read.
    """

    layers: tuple[tuple[LayerEntry, tuple[Variant, ...]], ...]
    notes: tuple[str, ...] = field(default=())


class BuildWork:
    """The work on one model. Its layers have their base weights between two calls.

    Args:
        adapter: the model.
        header: of the store.
        recipe: how variants are made.
        text: the Hessian text; None where the method needs none.
    """

    def __init__(self, adapter: ModelAdapter, header: StoreHeader, recipe: Recipe, text: TokenText | None) -> None:
        self._adapter = adapter
        self._header = header
        self._compressor = recipe.compressor(header)
        self._tokens = 0 if text is None else text.tokens
        self._walk = None if text is None else HessianWalk(adapter, text, recipe.tokens_per_pass)
        self._names: list[list[str]] = [[] for _ in range(adapter.n_blocks)]
        for name, ref in adapter.layers.items():
            self._names[ref.block].append(name)
        # Block -> its layers' weights in the model compressed so far.
        self._given: dict[int, dict[str, Tensor]] = {}

    def observe(self, shard: int, block: int, *, moves: bool) -> Sums:
        """A pass of a shard through a block, with a look at the inputs of its layers.

        Args:
            shard: of the text.
            block: the shard has passed those before it, by `observe` or `advance`.
            moves: it passes this one, too, with the base weights.
        """
        walk = self._walking()
        with self._compressed(walk.boundary(shard), block):
            return walk.observe(shard, block, self._names[block], advance=moves)

    def advance(self, shard: int, block: int, given: Mapping[str, Variant] | None = None) -> None:
        """Lets a shard pass a block.

        Args:
            shard: of the text.
            block: the shard has passed those before it.
            given: layer -> variant of this block's layers in the model compressed so far, the same for all shards;
                None to pass it with the base weights.
        """
        walk = self._walking()
        if given is not None and block not in self._given:
            self._given[block] = {name: self._ready(name, variant) for name, variant in given.items()}
        with self._compressed(walk.boundary(shard), block + 1):
            walk.advance(shard, block)
        # Passes begin at the boundary, so what lies before that of every shard is out of use.
        self._given = {known: ready for known, ready in self._given.items() if known >= walk.last_boundary}

    def make(self, task: Task) -> Finished:
        """All levels of the layers of a task. The layer error is that of `relative_errors`.

        Raises:
            EvorayError: weights or Hessians that can't be used.
        """
        weights = {name: self._weight(name) for name in task.layers}
        if task.lower_II is None:
            hessian_II = None
            made = Made({name: self._compressor.alone(weight_OI) for name, weight_OI in weights.items()})
        else:
            hessian_II = whole_hessian(task.layers, task.lower_II.to(self._adapter.device), self._tokens)
            made = self._compressor.with_hessian(weights, hessian_II)
        wanted = [name for name in task.layers if name in task.wanted]
        layers = (self._encoded(name, weights[name], made.layers[name], hessian_II) for name in wanted)
        return Finished(tuple(layers), tuple(made.notes))

    def restore(self) -> None:
        """Puts all base weights back, whatever a call that failed left behind."""
        for name in self._adapter.layers:
            self._adapter.restore(name)

    def _walking(self) -> HessianWalk:
        if self._walk is None:
            raise ValueError("there is no Hessian text to walk")
        return self._walk

    def _weight(self, name: str) -> Tensor:
        weight_OI = self._adapter.weight_OI(name).to(torch.float32)
        if not bool(weight_OI.isfinite().all()):
            raise EvorayError(f"layer {name} has weights that are not finite; the checkpoint can't be compressed")
        return weight_OI

    def _encoded(
        self, name: str, weight_OI: Tensor, levels: Levels, hessian_II: Tensor | None
    ) -> tuple[LayerEntry, tuple[Variant, ...]]:
        ref = self._adapter.layers[name]
        dense = (weight.dequantize(torch.float32) for weight in levels.values())
        errors = relative_errors(weight_OI, dense, hessian_II)
        variants = tuple(
            weight.to_variant(name, level, error) for (level, weight), error in zip(levels.items(), errors, strict=True)
        )
        entry = layer_entry(name, ref.block, ref.out_features, ref.in_features, self._header)
        return entry.model_copy(update={"outliers": outlier_ratios(weight_OI, hessian_II)}), variants

    def _ready(self, name: str, variant: Variant) -> Tensor:
        base = self._adapter.layers[name].base
        return self._adapter.ready(name, dense_weight(variant, base.dtype, base.device))

    @contextmanager
    def _compressed(self, first: int, last: int) -> Iterator[None]:
        """Blocks `first` to `last` - 1 as they are in the model compressed so far, where they were given."""
        swapped = [name for block in range(first, last) for name in self._given.get(block, ())]
        try:
            for block in range(first, last):
                for name, ready in self._given.get(block, {}).items():
                    self._adapter.swap(name, ready)
            yield
        finally:
            for name in swapped:
                self._adapter.restore(name)
