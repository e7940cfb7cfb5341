"""Makes the variants of every layer of a model, block by block: `build`.

What is finished is never made again: a build that was cut off takes the states of the Hessian text through the
finished blocks, with the weights that the first time had, and goes on. So it ends with the same bytes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from evoray.compress.gptq import gptq
from evoray.compress.hessian import HessianWalk, SharedHessian, relative_errors
from evoray.compress.plan import check_group_size, layer_entry
from evoray.compress.recipe import KIND, HessianInputs, Recipe
from evoray.compress.rtn import rtn
from evoray.errors import EvorayError, UserError
from evoray.formats import dense_weight
from evoray.formats.packed import SCALE_DTYPES, QuantizedWeight, to_variant
from evoray.model import ModelAdapter
from evoray.store import Manifest, StoreWriter, VariantStore
from evoray.store.cache import NodeCache
from evoray.store.manifest import BUILDING, BuildState, read_document
from evoray.tokens import TokenText

Progress: TypeAlias = Callable[[int, int, str], None]
"""Takes (finished layers, all layers, name of the layer just finished or of what goes on)."""

Levels: TypeAlias = dict[int, QuantizedWeight]
"""Bits -> quantized weight of one layer."""

_logger = logging.getLogger(__name__)


def build(
    adapter: ModelAdapter,
    writer: StoreWriter,
    recipe: Recipe,
    text: TokenText | None = None,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] = _logger.warning,
) -> Manifest:
    """Makes the variants of every layer and finishes the store.

    Layers that the writer has already are not computed again; the result is the same, bit by bit. The layer error of
    a variant is that of `relative_errors`: of the layer's output for GPTQ, of the weight for round to nearest.

    Args:
        adapter: the base model. Its weights are swapped on the way, and all base weights are back at the end.
        writer: of the store, under the header that `store_header` gives for this recipe and text.
        recipe: how variants are made.
        text: the Hessian text; not used where the method needs none.
        progress: told at the start and after each layer.
        note: told what a user should know: layers without input, damping that had to be raised.

    Returns:
        The manifest of the finished store.

    Raises:
        UserError: the group size does not fit, the text is missing, or a finished layer's file is corrupt.
        EvorayError: weights or Hessians that can't be used, or files that can't be written.
        ValueError: writer, recipe and text don't belong together.

    Example:
        >>> facts = checkpoint_facts("gpt2")                                             # doctest: +SKIP
        >>> header = store_header(facts, recipe, text, compute_dtype="float32", device="cpu")  # doctest: +SKIP
        >>> writer = StoreWriter("my-store", header)      # refuses a store made otherwise  # doctest: +SKIP
        >>> manifest = build(ModelAdapter(load_model("gpt2")), writer, recipe, text)       # doctest: +SKIP
    """
    check_group_size({name: ref.in_features for name, ref in adapter.layers.items()}, recipe.group_size)
    if recipe.needs_text and text is None:
        raise UserError(f"method {recipe.method.value} needs text for its Hessians; name some by --data, or use rtn")
    _check_header(writer, recipe, text if recipe.needs_text else None)
    work = _Build(adapter, writer, recipe, progress or (lambda done, total, name: None), note)
    try:
        if recipe.needs_text and text is not None:
            work.with_hessians(text)
        else:
            work.without_hessians()
    finally:
        for name in adapter.layers:
            adapter.restore(name)
    return writer.finish(list(adapter.layers))


def _check_header(writer: StoreWriter, recipe: Recipe, text: TokenText | None) -> None:
    header = writer.header
    expected = {
        "kind": KIND,
        "method": recipe.method.value,
        "levels": recipe.labels,
        "group_size": recipe.group_size,
        "symmetric": recipe.symmetric,
        "cost_format": recipe.cost_format.value,
        "text_digest": text.digest if text is not None else None,
    }
    found = {key: getattr(header, key) for key in expected}
    settings = {key: header.settings.get(key) for key in recipe.settings()}
    if found != expected or settings != recipe.settings():
        raise ValueError("the store's header is not that of this recipe and text; make it by store_header")


class _Build:
    """One build: what all its steps share."""

    def __init__(
        self,
        adapter: ModelAdapter,
        writer: StoreWriter,
        recipe: Recipe,
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        self.adapter = adapter
        self.writer = writer
        self.recipe = recipe
        self.progress = progress
        self.note = note
        self.scale_dtype = SCALE_DTYPES[writer.header.scale_dtype]
        self.todo = [name for name in adapter.layers if name not in writer.finished_layers()]
        self._report("start")

    def without_hessians(self) -> None:
        """Round to nearest, layer by layer."""
        for name in self.todo:
            self._write(name, self._rtn(name), None)

    def with_hessians(self, text: TokenText) -> None:
        """GPTQ, block by block."""
        missing = set(self.todo)
        if not missing:
            return
        blocks: list[list[str]] = [[] for _ in range(self.adapter.n_blocks)]
        for name, ref in self.adapter.layers.items():
            blocks[ref.block].append(name)
        last = max(block for block, names in enumerate(blocks) if missing & set(names))
        quantized = self.recipe.hessian_inputs is HessianInputs.QUANTIZED
        walk = HessianWalk(self.adapter, text, self.recipe.tokens_per_pass)
        blind: list[str] = []
        for block, names in enumerate(blocks[: last + 1]):
            made: dict[str, Levels] = {}
            if missing & set(names):
                # With base weights the pass that looks moves the states on, too.
                for shared in walk.observe(block, names, advance=not quantized):
                    if missing & set(shared.layers):
                        made |= self._gptq(shared, missing)
                for name in [name for name in names if name in missing - set(made)]:
                    made[name] = self._rtn(name)
                    self._write(name, made[name], None)
                    blind.append(name)
            elif not quantized:
                walk.advance(block)
            if quantized and block < last:
                for name in names:
                    self._swap(name, made.get(name))
                walk.advance(block)
                for name, ref in self.adapter.layers.items():
                    if ref.block < walk.boundary:
                        self.adapter.restore(name)
        if blind:
            listed = ", ".join(blind[:3]) + (f" and {len(blind) - 3} more" if len(blind) > 3 else "")
            self.note(f"the Hessian text gave no input to {len(blind)} layers, which are rounded to nearest: {listed}")

    def _gptq(self, shared: SharedHessian, missing: set[str]) -> dict[str, Levels]:
        """Makes all layers of a group, and writes those that are missing.

        A group is always made as a whole, so that its matrix products have the shapes, and the bits, of the first time.
        """
        weights = {name: self._weight(name) for name in shared.layers}
        solution = gptq(
            weights,
            shared.matrix_II,
            self.recipe.levels,
            group_size=self.recipe.group_width(len(shared.matrix_II)),
            symmetric=self.recipe.symmetric,
            scales=self.recipe.scales,
            scale_dtype=self.scale_dtype,
            damping=self.recipe.damping,
            act_order=self.recipe.act_order,
        )
        if solution.damping != self.recipe.damping:
            self.note(
                f"the Hessian of {', '.join(shared.layers)} took a damping of {solution.damping:g} "
                f"instead of {self.recipe.damping:g}; more Hessian text may help"
            )
        for name in shared.layers:
            if name in missing:
                self._write(name, solution.weights[name], shared.matrix_II)
        return solution.weights

    def _rtn(self, name: str) -> Levels:
        weight_OI = self._weight(name)
        return rtn(
            weight_OI,
            self.recipe.levels,
            group_size=self.recipe.group_width(weight_OI.shape[1]),
            symmetric=self.recipe.symmetric,
            scales=self.recipe.scales,
            scale_dtype=self.scale_dtype,
        )

    def _weight(self, name: str) -> Tensor:
        weight_OI = self.adapter.weight_OI(name).to(torch.float32)
        if not bool(weight_OI.isfinite().all()):
            raise EvorayError(f"layer {name} has weights that are not finite; the checkpoint can't be quantized")
        return weight_OI

    def _write(self, name: str, levels: Levels, hessian_II: Tensor | None) -> None:
        ref = self.adapter.layers[name]
        weight_OI = self._weight(name)
        dequantized = (weight.dequantize(torch.float32) for weight in levels.values())
        errors = relative_errors(weight_OI, dequantized, hessian_II)
        variants = [
            to_variant(name, str(bits), weight, error)
            for (bits, weight), error in zip(levels.items(), errors, strict=True)
        ]
        self.writer.write(layer_entry(name, ref.block, ref.out_features, ref.in_features, self.writer.header), variants)
        self._report(name)

    def _swap(self, name: str, made: Levels | None) -> None:
        """Gives a layer its weight in the model quantized so far: just made, or read back from the store."""
        bits = self.recipe.quantized_level
        base = self.adapter.layers[name].base
        if made is not None:
            weight_OI = made[bits].dequantize(base.dtype)
        else:
            weight_OI = dense_weight(self._finished.read(name, str(bits)), base.dtype, base.device)
        self.adapter.swap(name, self.adapter.ready(name, weight_OI))

    @functools.cached_property
    def _finished(self) -> VariantStore:
        """What an earlier run of this build has finished, as a store to read from."""
        location = self.writer.location
        state = read_document(BuildState, (location / BUILDING).read_bytes(), location / BUILDING)
        manifest = Manifest(**dict(state.header), layers=state.layers, files=state.files)
        return VariantStore(location, manifest, NodeCache(None))

    def _report(self, name: str) -> None:
        self.progress(len(self.writer.finished_layers()), len(self.adapter.layers), name)
