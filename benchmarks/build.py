"""A build against one column loop per layer and level.

Holds: `build_rows`.

GPTQ treats rows independently under one Hessian, so the rows of all levels, and of all layers with the same input, go
through one column loop. The other side factors the Hessian and runs the loop for each layer and each level by itself,
with the same code. Both include Hessians, encoding and writing; the codes must be the same.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.clock import Clock, Timed, interleaved
from evoray.compress import build, store_header
from evoray.compress.quantization import Quantization, Quantizer
from evoray.compress.recipe import Levels, Made
from evoray.model import ModelAdapter, checkpoint_facts, load_model
from evoray.store import StoreHeader, StoreWriter, VariantStore
from evoray.tokens import TokenText


class _Loops(Quantizer):
    """Counts the seconds that it takes, without Hessians, encoding and writing."""

    def __init__(self, recipe: "_Timed", header: StoreHeader) -> None:
        super().__init__(recipe, header)
        self.header, self.clock, self.seconds = header, recipe.clock, recipe.seconds

    def with_hessian(self, weights: Mapping[str, Tensor], hessian_II: Tensor) -> Made:
        took, made = self.clock.time(lambda: self.make(weights, hessian_II))
        self.seconds.append(took)
        return made

    def make(self, weights: Mapping[str, Tensor], hessian_II: Tensor) -> Made:
        """All layers and levels in one loop."""
        return super().with_hessian(weights, hessian_II)


class _OneByOne(_Loops):
    def make(self, weights: Mapping[str, Tensor], hessian_II: Tensor) -> Made:
        """A loop for each layer and level."""
        layers: dict[str, Levels] = {}
        for name, weight_OI in weights.items():
            made: dict[str, Levels] = {}
            for bits in self._recipe.levels:
                alone = Quantizer(replace(self._recipe, levels=(bits,)), self.header)
                made |= alone.with_hessian({name: weight_OI}, hessian_II).layers[name]
            layers[name] = made
        return Made(layers)


@dataclass(frozen=True, kw_only=True)
class _Timed(Quantization):
    """The usual recipe, whose loops are timed."""

    made_by: type[_Loops]
    clock: Clock
    seconds: list[float] = field(default_factory=list)

    def compressor(self, header: StoreHeader) -> Quantizer:
        return self.made_by(self, header)


def build_rows(model: str, text: TokenText, group_size: int, clock: Clock, pairs: int) -> list[list[str]]:
    """Cells of two rows: the whole build, and its column loops alone.

    Args:
        model: id or folder.
        text: for the Hessians.
        group_size: of the variants.
        clock, pairs: by which time, how many times.
    """
    facts = checkpoint_facts(model)
    adapter = ModelAdapter(load_model(model, device="cpu"))
    loops: dict[type[_Loops], list[float]] = {_Loops: [], _OneByOne: []}

    def timed(made_by: type[_Loops]) -> tuple[float, VariantStore]:
        recipe = _Timed(made_by=made_by, clock=clock, group_size=group_size)
        place = tempfile.mkdtemp(dir=folder)

        def call() -> VariantStore:
            header = store_header(facts, recipe, text, compute_dtype="float32", device="cpu")
            build(adapter, StoreWriter(place, header), recipe, text)
            return VariantStore.open(place)

        found = clock.time(call)
        loops[made_by].append(sum(recipe.seconds))
        return found

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        whole = interleaved(pairs, lambda: timed(_Loops), lambda: timed(_OneByOne), _check)
    alone = Timed(tuple(loops[_Loops]), tuple(loops[_OneByOne]))
    return [[*each.cells(text.tokens), "", ""] for each in (whole, alone)]


def _check(ours: VariantStore, theirs: VariantStore) -> None:
    for layer in ours.manifest.layers:
        for level in layer.levels:
            mine, other = (store.read(layer.name, level).columns for store in (ours, theirs))
            same = mine.keys() == other.keys() and all(bytes(mine[key]) == bytes(other[key]) for key in mine)
            assert same, f"{layer.name} at {level} bits has other codes"
