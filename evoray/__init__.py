"""evoray: EvoPress on Ray. Evolutionary search for non-uniform compression, a whole population evaluated at once.

    import evoray

    evoray.build(model="embedded", data="embedded", store="variants", group_size=64)
    found = evoray.search(model="embedded", store="variants", data="embedded", run="run", target_bits=3)
    print(found.configuration)

The parts, for drivers of your own: `Space`, `Race`, `Evaluator`, `Pool`, `VariantStore`, `Run`. Nothing heavy is
imported before it is used: `import evoray` alone loads neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evoray.errors import EvorayError, UserError

if TYPE_CHECKING:
    from evoray.api import baseline, build, evaluate, export_checkpoint, open_pool, search, search_text, sweep
    from evoray.applied import apply_configuration
    from evoray.cluster import Pool
    from evoray.evaluator import Evaluator
    from evoray.evolve import FixedRace, LevelSwitch, OnePlusLambda, Race
    from evoray.fitness import Fitness
    from evoray.model import ModelAdapter, load_model
    from evoray.run.record import Run
    from evoray.run.teacher import TaughtText
    from evoray.space import Budget, Measure, Space, quantization_space
    from evoray.store import VariantStore
    from evoray.tokens import TokenText, draw_batches

_WHERE = {
    "build": "evoray.api",
    "search": "evoray.api",
    "baseline": "evoray.api",
    "evaluate": "evoray.api",
    "export_checkpoint": "evoray.api",
    "search_text": "evoray.api",
    "sweep": "evoray.api",
    "apply_configuration": "evoray.applied",
    "Pool": "evoray.cluster",
    "open_pool": "evoray.api",
    "Evaluator": "evoray.evaluator",
    "FixedRace": "evoray.evolve",
    "LevelSwitch": "evoray.evolve",
    "OnePlusLambda": "evoray.evolve",
    "Race": "evoray.evolve",
    "Fitness": "evoray.fitness",
    "ModelAdapter": "evoray.model",
    "load_model": "evoray.model",
    "Run": "evoray.run.record",
    "TaughtText": "evoray.run.teacher",
    "Budget": "evoray.space",
    "Measure": "evoray.space",
    "Space": "evoray.space",
    "quantization_space": "evoray.space",
    "VariantStore": "evoray.store",
    "TokenText": "evoray.tokens",
    "draw_batches": "evoray.tokens",
}

__all__ = ["EvorayError", "UserError", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'evoray' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
