"""Makes the variants of every layer of a model, block by block: `build`, in this process, and `build_by`, by any crew.

What is finished is never made again: a build that was cut off takes the states of the Hessian text through the
finished blocks, with the weights that the first time had, and goes on. So it ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

from evoray.compress.crew import Crew, LocalCrew
from evoray.compress.hessian import shared_inputs
from evoray.compress.plan import check_text
from evoray.compress.recipe import HessianInputs, Recipe
from evoray.compress.work import BuildWork, Finished, Task
from evoray.errors import EvorayError
from evoray.model import ModelAdapter
from evoray.store import Manifest, StoreWriter, Variant, VariantStore
from evoray.store.cache import NodeCache
from evoray.store.manifest import BUILDING, BuildState, read_document
from evoray.store.writer import NAMING
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
    check_build(writer, recipe, text, {name: (r.out_features, r.in_features) for name, r in adapter.layers.items()})
    work = BuildWork(adapter, writer.header, recipe, text if recipe.needs_text else None)
    blocks = {name: ref.block for name, ref in adapter.layers.items()}
    try:
        return build_by(LocalCrew(work), writer, recipe, blocks, progress=progress, note=note)
    finally:
        work.restore()


def check_build(
    writer: StoreWriter, recipe: Recipe, text: TokenText | None, shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Sees that writer, recipe, text and layers belong together.

    Args:
        writer: of the store.
        recipe: how variants are made.
        text: the Hessian text.
        shapes: layer -> output rows, input columns.

    Raises:
        UserError: the recipe does not fit the layers, or the text is missing.
        ValueError: the header is another.
    """
    recipe.check(shapes)
    check_text(recipe, text)
    _check_header(writer, recipe, text if recipe.needs_text else None)


def build_by(
    crew: Crew,
    writer: StoreWriter,
    recipe: Recipe,
    blocks: Mapping[str, int],
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] = _logger.warning,
) -> Manifest:
    """`build` by whatever crew, which has model and text. The store has the same bytes whoever makes it.

    Args:
        crew: does the work.
        writer: of the store; see `check_build`.
        recipe: how variants are made.
        blocks: layer -> index of its block, in the order of the model.
        progress: told at the start and after each layer.
        note: told what a user should know.
    """
    led = _Build(crew, writer, recipe, blocks, progress or (lambda done, total, name: None), note)
    try:
        if recipe.needs_text:
            led.with_hessians()
        else:
            led.without_hessians()
    except BaseException:
        # Nothing that is finished shall be made again; but what ended the build is to be told, not that this fails too.
        with contextlib.suppress(EvorayError):
            writer.name_finished()
        raise
    return writer.finish(list(blocks))


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
        crew: Crew,
        writer: StoreWriter,
        recipe: Recipe,
        blocks: Mapping[str, int],
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        self.crew = crew
        self.writer = writer
        self.recipe = recipe
        self.blocks = blocks
        self.progress = progress
        self.note = note
        self.todo = [name for name in blocks if name not in writer.finished_layers()]
        # Of the block that is being made: its layers in the model compressed so far.
        self.made: dict[str, Variant] = {}
        self._report("start")

    def without_hessians(self) -> None:
        """Layer by layer, by weights alone."""
        self.crew.make([Task((name,), (name,)) for name in self.todo], self._take)
        self.crew.finish()

    def with_hessians(self) -> None:
        """Block by block, by the inputs of its layers."""
        missing = set(self.todo)
        if not missing:
            return
        names_of: dict[int, list[str]] = {}
        for name, block in self.blocks.items():
            names_of.setdefault(block, []).append(name)
        last = max(self.blocks[name] for name in missing)
        following = self.recipe.hessian_inputs is HessianInputs.QUANTIZED
        blind: list[str] = []
        for block in range(last + 1):
            names = names_of.get(block, [])
            if missing & set(names):
                # With base weights the pass that looks moves the states on, too.
                shared = shared_inputs(names, self.crew.observe(block, moves=not following))
                groups = [Task(layers, missing, lower_II) for layers, lower_II in shared if missing & set(layers)]
                seen = {name for layers, _ in shared for name in layers}
                unseen = [name for name in names if name in missing - seen]
                blind += unseen
                self.made = {}
                self.crew.make([*groups, *(Task((name,), (name,)) for name in unseen)], self._take)
            elif not following:
                self.crew.advance(block, None)
            if following and block < last:
                self.crew.finish()
                self.crew.advance(block, {name: self._compressed(name) for name in names})
        self.crew.finish()
        if blind:
            listed = ", ".join(blind[:3]) + (f" and {len(blind) - 3} more" if len(blind) > 3 else "")
            done = self.recipe.textless[1]
            self.note(f"the Hessian text gave no input to {len(blind)} layers, which are {done}: {listed}")

    def _take(self, finished: Finished) -> None:
        """Writes the layers of a task. They were made together, and are named together."""
        for note in finished.notes:
            self.note(note)
        for entry, variants in finished.layers:
            self.writer.write(entry, variants, name=False)
            if self.recipe.needs_text and self.recipe.hessian_inputs is HessianInputs.QUANTIZED:
                self.made[entry.name] = next(each for each in variants if each.level == self.recipe.inputs_level)
            self._report(entry.name)
        self.writer.name_finished(after=NAMING)

    def _compressed(self, name: str) -> Variant:
        """A layer in the model compressed so far: just made, or read back from the store."""
        return self.made[name] if name in self.made else self._finished.read(name, self.recipe.inputs_level)

    @functools.cached_property
    def _finished(self) -> VariantStore:
        """What an earlier run of this build has finished, as a store to read from."""
        location = self.writer.location
        state = read_document(BuildState, (location / BUILDING).read_bytes(), location / BUILDING)
        manifest = Manifest(**dict(state.header), layers=state.layers, files=state.files)
        return VariantStore(location, manifest, NodeCache(None))

    def _report(self, name: str) -> None:
        self.progress(len(self.writer.finished_layers()), len(self.blocks), name)
