"""Makes the variants of every layer of a model, block by block: `build`.

What is finished is never made again: a build that was cut off takes the states of the Hessian text through the
finished blocks, with the weights that the first time had, and goes on. So it ends with the same bytes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from evoray.compress.hessian import HessianWalk, SharedHessian, relative_errors
from evoray.compress.outliers import outlier_ratios
from evoray.compress.plan import check_text, layer_entry
from evoray.compress.recipe import HessianInputs, Levels, Recipe
from evoray.errors import EvorayError
from evoray.formats import dense_weight
from evoray.model import ModelAdapter
from evoray.store import Manifest, StoreWriter, VariantStore
from evoray.store.cache import NodeCache
from evoray.store.manifest import BUILDING, BuildState, read_document
from evoray.tokens import TokenText

Progress: TypeAlias = Callable[[int, int, str], None]
"""Takes (finished layers, all layers, name of the layer just finished or of what goes on)."""

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
    a variant is that of `relative_errors`: of the layer's output where there is a Hessian, else of the weight.

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
        UserError: the recipe does not fit the layers, the text is missing, or a finished layer's file is corrupt.
        EvorayError: weights or Hessians that can't be used, or files that can't be written.
        ValueError: writer, recipe and text don't belong together.

    Example:
        >>> facts = checkpoint_facts("gpt2")                                             # doctest: +SKIP
        >>> header = store_header(facts, recipe, text, compute_dtype="float32", device="cpu")  # doctest: +SKIP
        >>> writer = StoreWriter("my-store", header)      # refuses a store made otherwise  # doctest: +SKIP
        >>> manifest = build(ModelAdapter(load_model("gpt2")), writer, recipe, text)       # doctest: +SKIP
    """
    recipe.check({name: (ref.out_features, ref.in_features) for name, ref in adapter.layers.items()})
    check_text(recipe, text)
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
        "kind": recipe.kind,
        "method": str(recipe.method),
        "levels": recipe.labels,
        "group_size": recipe.group_size,
        "symmetric": recipe.symmetric,
        "cost_format": str(recipe.cost_format),
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
        self.compressor = recipe.compressor(writer.header)
        self.todo = [name for name in adapter.layers if name not in writer.finished_layers()]
        self._report("start")

    def without_hessians(self) -> None:
        """Layer by layer, by weights alone."""
        for name in self.todo:
            self._write(name, self.compressor.alone(self._weight(name)), None)

    def with_hessians(self, text: TokenText) -> None:
        """Block by block, by the inputs of its layers."""
        missing = set(self.todo)
        if not missing:
            return
        blocks: list[list[str]] = [[] for _ in range(self.adapter.n_blocks)]
        for name, ref in self.adapter.layers.items():
            blocks[ref.block].append(name)
        last = max(block for block, names in enumerate(blocks) if missing & set(names))
        following = self.recipe.hessian_inputs is HessianInputs.QUANTIZED
        walk = HessianWalk(self.adapter, text, self.recipe.tokens_per_pass)
        blind: list[str] = []
        for block, names in enumerate(blocks[: last + 1]):
            made: dict[str, Levels] = {}
            if missing & set(names):
                # With base weights the pass that looks moves the states on, too.
                for shared in walk.observe(block, names, advance=not following):
                    if missing & set(shared.layers):
                        made |= self._group(shared, missing)
                for name in [name for name in names if name in missing - set(made)]:
                    made[name] = self.compressor.alone(self._weight(name))
                    self._write(name, made[name], None)
                    blind.append(name)
            elif not following:
                walk.advance(block)
            if following and block < last:
                for name in names:
                    self._swap(name, made.get(name))
                walk.advance(block)
                for name, ref in self.adapter.layers.items():
                    if ref.block < walk.boundary:
                        self.adapter.restore(name)
        if blind:
            listed = ", ".join(blind[:3]) + (f" and {len(blind) - 3} more" if len(blind) > 3 else "")
            done = self.recipe.textless[1]
            self.note(f"the Hessian text gave no input to {len(blind)} layers, which are {done}: {listed}")

    def _group(self, shared: SharedHessian, missing: set[str]) -> Mapping[str, Levels]:
        """Makes all layers of a group, and writes those that are missing.

        A group is always made as a whole, so that its matrix products have the shapes, and the bits, of the first time.
        """
        made = self.compressor.with_hessian({name: self._weight(name) for name in shared.layers}, shared.matrix_II)
        for note in made.notes:
            self.note(note)
        for name in shared.layers:
            if name in missing:
                self._write(name, made.layers[name], shared.matrix_II)
        return made.layers

    def _weight(self, name: str) -> Tensor:
        weight_OI = self.adapter.weight_OI(name).to(torch.float32)
        if not bool(weight_OI.isfinite().all()):
            raise EvorayError(f"layer {name} has weights that are not finite; the checkpoint can't be compressed")
        return weight_OI

    def _write(self, name: str, levels: Levels, hessian_II: Tensor | None) -> None:
        ref = self.adapter.layers[name]
        weight_OI = self._weight(name)
        dense = (weight.dequantize(torch.float32) for weight in levels.values())
        errors = relative_errors(weight_OI, dense, hessian_II)
        variants = [
            weight.to_variant(name, level, error) for (level, weight), error in zip(levels.items(), errors, strict=True)
        ]
        entry = layer_entry(name, ref.block, ref.out_features, ref.in_features, self.writer.header)
        outliers = outlier_ratios(weight_OI, hessian_II)
        self.writer.write(entry.model_copy(update={"outliers": outliers}), variants)
        self._report(name)

    def _swap(self, name: str, made: Levels | None) -> None:
        """Gives a layer its weight in the model compressed so far: just made, or read back from the store."""
        level = self.recipe.inputs_level
        base = self.adapter.layers[name].base
        if made is not None:
            weight_OI = made[level].dequantize(base.dtype)
        else:
            weight_OI = dense_weight(self._finished.read(name, level), base.dtype, base.device)
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
