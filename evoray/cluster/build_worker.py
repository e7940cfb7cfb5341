"""A worker of a build: what it is made from, and its work in a form that travels.

Holds: `BuildSpec`, `BuildWorker`, `BuildActor`, `portable`, `arrived`.

Tensors and mapped memory don't travel between processes without copies of copies; plain arrays do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evoray.cluster.actor import ModelActor, or_die
from evoray.cluster.worker import ModelWorker, WorkerSpec
from evoray.errors import EvorayError

if TYPE_CHECKING:
    from evoray.compress import Recipe
    from evoray.compress.work import Finished
    from evoray.store import StoreHeader, Variant
    from evoray.tokens import TokenText


@dataclass(frozen=True, kw_only=True)
class BuildSpec(WorkerSpec):
    """All that a worker needs to take part in a build.

    Attributes:
        header: of the store.
        recipe: how variants are made.
        text: the Hessian text; None where the method needs none.
        layers: names of all layers, as the driver found them.
    """

    header: StoreHeader
    recipe: Recipe
    text: TokenText | None
    layers: tuple[str, ...]


class BuildWorker(ModelWorker):
    """`BuildWork` on a loaded model, given and giving arrays.

    Raises:
        EvorayError: the model has other layers here than the driver found.
    """

    def __init__(self, spec: BuildSpec) -> None:
        super().__init__(spec)
        from evoray.compress.work import BuildWork

        if tuple(self.adapter.layers) != spec.layers:
            raise EvorayError(
                f"{spec.model} has {len(self.adapter.layers)} layers once it is loaded, and {len(spec.layers)} by its "
                "configuration, or others; --workers 0 goes by the former"
            )
        self._work = BuildWork(self.adapter, spec.header, spec.recipe, spec.text)

    def observe(self, shard: int, block: int, moves: bool) -> dict[tuple[str, ...], np.ndarray]:
        """As `BuildWork.observe`."""
        sums = self._work.observe(shard, block, moves=moves)
        return {group: sum_II.cpu().numpy() for group, sum_II in sums.items()}

    def advance(self, shard: int, block: int, given: Mapping[str, Variant] | None) -> None:
        """As `BuildWork.advance`, of portable variants."""
        back = None if given is None else {name: arrived(variant) for name, variant in given.items()}
        self._work.advance(shard, block, back)

    def make(self, layers: tuple[str, ...], wanted: Collection[str], lower_II: np.ndarray | None) -> Finished:
        """As `BuildWork.make`; the variants are portable."""
        import torch

        from evoray.compress.work import Task

        # Ray's own memory is not to be written to, and torch knows no such tensors.
        sums_II = None if lower_II is None else torch.from_numpy(np.array(lower_II))
        finished = self._work.make(Task(layers, wanted, sums_II))
        made = tuple((entry, tuple(portable(each) for each in variants)) for entry, variants in finished.layers)
        return replace(finished, layers=made)


class BuildActor(ModelActor):
    """The process of a worker of a build."""

    def _make(self, spec: BuildSpec) -> BuildWorker:
        return BuildWorker(spec)

    def observe(self, shard: int, block: int, moves: bool) -> dict[tuple[str, ...], np.ndarray]:
        """See `BuildWork.observe`."""
        worker: BuildWorker = self._ready()
        return or_die(lambda: worker.observe(shard, block, moves))

    def advance(self, shard: int, block: int, given: Mapping[str, Variant] | None) -> None:
        """See `BuildWork.advance`."""
        worker: BuildWorker = self._ready()
        or_die(lambda: worker.advance(shard, block, given))

    def make(self, layers: tuple[str, ...], wanted: Collection[str], lower_II: np.ndarray | None) -> Finished:
        """See `BuildWork.make`."""
        worker: BuildWorker = self._ready()
        return or_die(lambda: worker.make(layers, wanted, lower_II))


def portable(variant: Variant) -> Variant:
    """The same with columns that can be sent to other processes."""
    columns: dict[str, Any] = {name: np.frombuffer(column, np.uint8) for name, column in variant.columns.items()}
    return replace(variant, columns=columns)


def arrived(variant: Variant) -> Variant:
    """A portable variant with columns as all others have them, over the same memory."""
    return replace(variant, columns={name: memoryview(column) for name, column in variant.columns.items()})
