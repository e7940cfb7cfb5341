"""What tests of Ray's workers measure, wait for, and let happen once."""

import os
import sys
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from searches import Material

from evoray.cluster.actor import WorkerActor
from evoray.cluster.ray_pool import RayPool
from evoray.evaluator import Work
from evoray.store import VariantStore

# Workers can't import tests, so that classes defined here travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def works(count: int = 3) -> list[Work]:
    """Batches of two blocks of random tokens, the second one shorter."""
    draws = np.random.default_rng(7)
    return [Work(draws.integers(0, 255, (2, 24)).astype(np.int32), (24, 17)) for _ in range(count)]


def candidates(material: Material, count: int = 12) -> np.ndarray:
    """Distinct random ones, [count, layers]."""
    layers = len(VariantStore.open(material.store).manifest.layers)
    found = np.unique(np.random.default_rng(3).integers(-1, 3, (count, layers)).astype(np.int8), axis=0)
    assert len(found) == count
    return found


def all_ready(pool: RayPool, count: int) -> None:
    """Waits until that many workers are ready."""
    while sum(actor.ready for actor in pool._actors) < count:
        pool._ask_to_start()
        pool._await()


class Marks(WorkerActor):
    """Tells processes apart by files, which outlive them."""

    marks = ""

    def first(self, name: str) -> bool:
        """Whether this is the first process to come here."""
        try:
            os.close(os.open(f"{self.marks}/{name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


_A = TypeVar("_A", bound=WorkerActor)


def marked(base: type[_A], folder: Path, **more: Any) -> type[_A]:
    """The class with its marks in a folder."""
    folder.mkdir(exist_ok=True)
    return type(base.__name__, (base,), {"marks": str(folder), **more})
