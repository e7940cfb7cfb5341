"""A build against one column loop per layer and level.

Holds: `build_rows`, `crew_row`.

GPTQ treats rows independently under one Hessian, so the rows of all levels, and of all layers with the same input, go
through one column loop. The other side factors the Hessian and runs the loop for each layer and each level by itself,
with the same code. Both include Hessians, encoding and writing; the codes must be the same.

On all cores, ours is a worker of one thread per core, started and loaded before the time begins, and the other side one
process with a thread per core.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.clock import Clock, Timed, interleaved
from evoray.cluster import open_crew
from evoray.cluster.build_worker import BuildSpec
from evoray.compress import build, store_header
from evoray.compress.builder import build_by
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
    sides = _Sides(model, text, group_size, clock)
    torch.set_num_threads(1)
    with sides:
        whole = interleaved(pairs, lambda: sides.alone(_Loops), lambda: sides.alone(_OneByOne), _check)
    loops = Timed(tuple(sides.loops[_Loops]), tuple(sides.loops[_OneByOne]))
    return [[*each.cells(text.tokens), "", ""] for each in (whole, loops)]


def crew_row(model: str, text: TokenText, group_size: int, cores: int, clock: Clock, pairs: int) -> list[str]:
    """Cells of one row: a build by a worker per core, against one process with a thread per core and a loop for each
    layer and level.

    Args:
        model, text, group_size: as for `build_rows`.
        cores: on both sides.
        clock, pairs: by which time, how many times.
    """
    sides = _Sides(model, text, group_size, clock)
    torch.set_num_threads(cores)
    with sides:
        timed = interleaved(pairs, lambda: sides.by_crew(cores), lambda: sides.alone(_OneByOne), _check)
    return [*timed.cells(text.tokens), "", ""]


class _Sides:
    """Builds of one model, one way or another. A context manager: the stores lie in a folder of its own.

    Args:
        model, text, group_size, clock: as for `build_rows`.

    Attributes:
        loops: by what made them, seconds of the column loops of each build.
    """

    def __init__(self, model: str, text: TokenText, group_size: int, clock: Clock) -> None:
        self.model, self.text, self.group_size, self.clock = model, text, group_size, clock
        self.facts = checkpoint_facts(model)
        self.adapter = ModelAdapter(load_model(model, device="cpu"))
        self.loops: dict[type[_Loops], list[float]] = {_Loops: [], _OneByOne: []}

    def __enter__(self) -> "_Sides":
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def alone(self, made_by: type[_Loops]) -> tuple[float, VariantStore]:
        """Seconds of a build by this process, and its store."""
        recipe = _Timed(made_by=made_by, clock=self.clock, group_size=self.group_size)
        place = self._place()

        def call() -> VariantStore:
            build(self.adapter, StoreWriter(place, self._header(recipe)), recipe, self.text)
            return VariantStore.open(place)

        found = self.clock.time(call)
        self.loops[made_by].append(sum(recipe.seconds))
        return found

    def by_crew(self, workers: int) -> tuple[float, VariantStore]:
        """Seconds of a build by workers of one thread that are ready, and its store."""
        recipe = Quantization(group_size=self.group_size)
        place = self._place()
        writer = StoreWriter(place, self._header(recipe))
        spec = BuildSpec(
            model=self.model,
            dtype="float32",
            device="cpu",
            weights_digest=self.facts.weights_digest,
            header=writer.header,
            recipe=recipe,
            text=self.text,
            layers=tuple(self.adapter.layers),
        )
        blocks = {name: ref.block for name, ref in self.adapter.layers.items()}

        def call() -> VariantStore:
            build_by(crew, writer, recipe, blocks)
            return VariantStore.open(place)

        with open_crew(spec, workers=workers) as crew:
            return self.clock.time(call, [actor.pid for actor in crew._actors if actor.pid])

    def _header(self, recipe: Quantization) -> StoreHeader:
        return store_header(self.facts, recipe, self.text, compute_dtype="float32", device="cpu")

    def _place(self) -> str:
        return tempfile.mkdtemp(dir=self._folder.name)


def _check(ours: VariantStore, theirs: VariantStore) -> None:
    for layer in ours.manifest.layers:
        for level in layer.levels:
            mine, other = (store.read(layer.name, level).columns for store in (ours, theirs))
            same = mine.keys() == other.keys() and all(bytes(mine[key]) == bytes(other[key]) for key in mine)
            assert same, f"{layer.name} at {level} bits has other codes"
