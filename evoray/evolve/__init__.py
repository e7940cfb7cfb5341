"""Evolution as pure ask and tell: it never measures, holds no generator, and knows only spaces. numpy only.

Holds:
    draws: `rng`, `Purpose`: where every random draw comes from
    mutation: `Mutation`, `LevelSwitch`: children of a parent
    seeding: `random_legal`, `initial`: genotypes to start from
    race: `Race`, `Measurement`, `Ahead`, `Draw`, `Told`, `RaceResult`, `Rung`, `rungs`: what a race is
    fixed, halving, sequential: `FixedRace`, `HalvingRace`, `SequentialRace`: who is measured further, and who wins
    paired: `Difference`, `difference`, `Tally`: losses on the same blocks
    additive: `AdditiveModel`, `Lessons`, `of_genes`: what all measurements say of each step
    proposals: `Proposals`, `Mutants`, `Screened`, `Learned`, `merged`: who races next
    survey: `Survey`: a generation that only measures
    strategy: `OnePlusLambda`, `Outcome`: the search

A new race policy is one more file here, with a class that has what `Race` has; so is a new way to propose.
"""

from evoray.evolve.additive import AdditiveModel, Lessons, of_genes
from evoray.evolve.draws import Purpose, rng
from evoray.evolve.fixed import FixedRace
from evoray.evolve.halving import HalvingRace
from evoray.evolve.mutation import LevelSwitch, Mutation
from evoray.evolve.paired import Difference, Tally, difference
from evoray.evolve.proposals import MERGED, Learned, Mutants, Proposals, Screened, merged
from evoray.evolve.race import Ahead, Blocks, Draw, Known, Measurement, Race, RaceFactory, RaceResult, Rung, Told, rungs
from evoray.evolve.seeding import initial, random_legal
from evoray.evolve.sequential import Doubts, SequentialRace
from evoray.evolve.strategy import OnePlusLambda, Outcome
from evoray.evolve.survey import Survey

__all__ = [
    "MERGED",
    "AdditiveModel",
    "Ahead",
    "Blocks",
    "Difference",
    "Doubts",
    "Draw",
    "FixedRace",
    "HalvingRace",
    "Known",
    "Learned",
    "Lessons",
    "LevelSwitch",
    "Measurement",
    "Mutants",
    "Mutation",
    "OnePlusLambda",
    "Outcome",
    "Proposals",
    "Purpose",
    "Race",
    "RaceFactory",
    "RaceResult",
    "Rung",
    "Screened",
    "SequentialRace",
    "Survey",
    "Tally",
    "Told",
    "difference",
    "initial",
    "merged",
    "of_genes",
    "random_legal",
    "rng",
    "rungs",
]
