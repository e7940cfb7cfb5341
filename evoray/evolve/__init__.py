"""Evolution as pure ask and tell: it never measures, holds no generator, and knows only spaces. numpy only.

Holds:
    draws: `rng`, `Purpose`: where every random draw comes from
    mutation: `Mutation`, `LevelSwitch`: children of a parent
    seeding: `random_legal`, `initial`: genotypes to start from
    race: `Race`, `FixedRace`, `Measurement`, `RaceResult`, `Rung`, `rungs`: who is measured further, and who wins
    strategy: `OnePlusLambda`, `Outcome`: the search

A new race policy is one more file here, with a class that has what `Race` has.
"""

from evoray.evolve.draws import Purpose, rng
from evoray.evolve.mutation import LevelSwitch, Mutation
from evoray.evolve.race import FixedRace, Measurement, Race, RaceFactory, RaceResult, Rung, rungs
from evoray.evolve.seeding import initial, random_legal
from evoray.evolve.strategy import OnePlusLambda, Outcome

__all__ = [
    "FixedRace",
    "LevelSwitch",
    "Measurement",
    "Mutation",
    "OnePlusLambda",
    "Outcome",
    "Purpose",
    "Race",
    "RaceFactory",
    "RaceResult",
    "Rung",
    "initial",
    "random_legal",
    "rng",
    "rungs",
]
