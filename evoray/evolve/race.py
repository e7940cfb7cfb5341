"""Who of a generation is measured how far, and who wins.

Holds: `Draw`, `Measurement`, `Ahead`, `Blocks`, `Told`, `Race`, `RaceResult`, `Known`, `RaceFactory`, `Rung`,
`rungs`, `check_racers`, `loss_per_token`. The policies stand beside: `fixed`, `halving`, `sequential`.

A race never measures. It says what it wants measured, is told the losses, and in the end has a result:

    while (measurement := race.ask()) is not None:
        race.tell(*measure(measurement))
    race.result

Legend: N genotypes, B token blocks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evoray.errors import UserError
from evoray.space import Genotype

LEAST = 2
"""Tokens of a measurement at least: one alone predicts nothing."""

Measured = tuple[tuple[Genotype, float], ...]
"""Genotypes in the order they were measured, each with its loss in nats per token; infinite where it has none."""


@dataclass(frozen=True)
class Draw:
    """Which blocks of the text a measurement is on.

    Attributes:
        index: tells the draws of a generation apart: each is a random order of all blocks.
        skip: blocks of that order that are passed over, because they were measured before. At its end the order begins
            anew.
        lasting: the draw is the same in every generation.
    """

    index: int
    skip: int = 0
    lasting: bool = False


@dataclass(frozen=True)
class Measurement:
    """What a race wants to know next.

    Attributes:
        rung: numbers the measurements of a race; one that was passed over is left out.
        genotypes: distinct, N of them.
        tokens: how many tokens each is measured on.
        draw: all genotypes of a measurement, and of a later one with the same draw, are measured on the same blocks.
            By default a fresh one for each rung.
    """

    rung: int
    genotypes: tuple[Genotype, ...]
    tokens: int
    draw: Draw | None = None

    @property
    def drawn(self) -> Draw:
        """The draw, also where it is the rung's own."""
        return Draw(self.rung) if self.draw is None else self.draw


Blocks = Callable[[Measurement], int]


@dataclass(frozen=True)
class Ahead:
    """A measurement that may be asked for later, for whoever has nothing else to do. Nothing is decided by it.

    Attributes:
        measurement: as it would be asked for, maybe with fewer genotypes.
        later: it would be in the next generation's race.
    """

    measurement: Measurement
    later: bool = False


@dataclass(frozen=True)
class Told:
    """A measurement with what came of it.

    Attributes:
        measurement: that was asked for.
        losses_NB: float64 [N, B], sums per block in nats; infinite where a candidate has none.
        tokens_B: int64 [B], tokens each sum is over.
    """

    measurement: Measurement
    losses_NB: NDArray[np.float64]
    tokens_B: NDArray[np.int64]


@dataclass(frozen=True)
class RaceResult:
    """How a race ended.

    Attributes:
        winner: the best genotype to go on from.
        fitness: its loss in nats per token on the last rung; infinite when nothing could be measured.
        parent_fitness: the best parent's on the same rung; None in a race without a parent.
        measured: for each rung, who was measured and with which loss; empty for a rung that was passed over.
        kept: all who go on, the winner first and then by loss; the winner alone where nothing is given.
        doubt: the probability, at most, that a child as good as its parent would have won like this; None where a
            parent won, or the policy does not ask.
        risk: the probability, at most, with which this race let any child in that is no better than the parent it
            replaced, whatever came of it; None where the policy does not bound it.
    """

    winner: Genotype
    fitness: float
    parent_fitness: float | None
    measured: tuple[Measured, ...]
    kept: tuple[Genotype, ...] = ()
    doubt: float | None = None
    risk: float | None = None

    def __post_init__(self) -> None:
        if not self.kept:
            object.__setattr__(self, "kept", (self.winner,))


class Race(Protocol):
    """One generation's decision, from the first measurement to the winner."""

    def ask(self) -> Measurement | None:
        """The next measurement, the same again until it is told; None once the race is decided."""
        ...

    def tell(self, losses_NB: NDArray[np.float64], tokens_B: NDArray[np.int64]) -> None:
        """Takes the losses of the measurement asked for.

        Args:
            losses_NB: float64 [N, B], sum of the losses of a block's tokens, in nats; genotypes as asked.
            tokens_B: int [B], how many tokens each sum is over.
        """
        ...

    @property
    def result(self) -> RaceResult:
        """How it ended.

        Raises:
            RuntimeError: it has not.
        """
        ...

    def ahead(self, blocks: Blocks) -> tuple[Ahead, ...]:
        """What may be asked for after the present measurement, as far as that is known: first what is likeliest.

        Args:
            blocks: tells of a measurement on how many blocks it is, which later ones of its draw pass over.
        """
        ...


@dataclass(frozen=True)
class Rung:
    """One stage of a race: all who are left are measured on `tokens` tokens, and the best `survivors` go on."""

    survivors: int
    tokens: int


@dataclass(frozen=True)
class Known:
    """What was measured of a parent on blocks of the lasting draw that had no part in choosing it.

    Attributes:
        losses_B: float64 [B], sums per block in nats.
        tokens_B: int64 [B], tokens each sum is over.
        asked: on how many tokens it was measured; a measure may count fewer, such as those that are predicted.
        skip: blocks of the draw before these, which chose parents. Equal for all parents of a race.
    """

    losses_B: NDArray[np.float64]
    tokens_B: NDArray[np.int64]
    asked: int
    skip: int = 0


class RaceFactory(Protocol):
    """Makes a generation's race; each policy itself is one."""

    def __call__(
        self,
        offspring: Sequence[Genotype],
        parents: Sequence[Genotype],
        rungs: Sequence[Rung],
        known: Mapping[Genotype, Known],
        /,
    ) -> Race: ...


def rungs(survivors: Sequence[int], tokens: Sequence[int], population: int = 1) -> tuple[Rung, ...]:
    """Pairs survivors with tokens, as settings give them: `rungs([16, 4, 1], [2048, 16384, 131072])`.

    Args:
        survivors: of each rung; the last are the next population.
        tokens: that each genotype is measured on.
        population: how many go on from a generation.

    Raises:
        UserError: lists of unequal length or empty, survivors that don't fall to the population, tokens below 2 or
            falling.
    """
    named = f"survivors {_listed(survivors)} and tokens {_listed(tokens)}"
    if len(survivors) != len(tokens) or not survivors:
        raise UserError(f"{named} have {len(survivors)} and {len(tokens)} entries; give one of each for every rung")
    if population < 1:
        raise UserError(f"a population of {population} leaves nobody to go on from; give 1 or more")
    if any(left <= right for left, right in pairwise(survivors)) or survivors[-1] != population:
        like = f"{16 * population} {4 * population} {population}"
        whole = "" if population == 1 else ", the population"
        raise UserError(f"{named}: survivors must fall from rung to rung and end with {population}{whole}, like {like}")
    if min(tokens) < LEAST:
        raise UserError(f"{named}: every rung needs at least {LEAST} tokens, since the first predicts nothing")
    if any(left > right for left, right in pairwise(tokens)):
        raise UserError(f"{named}: tokens must not fall from rung to rung; fewer candidates deserve more of them")
    return tuple(Rung(left, count) for left, count in zip(survivors, tokens, strict=True))


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers)) or "(none)"


def check_racers(offspring: Sequence[Genotype], parents: Sequence[Genotype], rungs: Sequence[Rung]) -> None:
    """Sees that a race can be run.

    Raises:
        ValueError: nobody to race, the same genotype twice, or rungs that would lose places of the parents.
    """
    if not offspring and not parents:
        raise ValueError("a race needs offspring or a parent")
    if len(set(offspring)) != len(offspring) or len(set(parents)) != len(parents):
        raise ValueError("a genotype is twice among the offspring or the parents")
    if not rungs or any(rung.survivors < 1 or rung.tokens < 1 for rung in rungs):
        raise ValueError(f"rungs {list(rungs)} must each have survivors and tokens")
    if rungs[-1].survivors < len(parents):
        raise ValueError(f"the last of rungs {list(rungs)} must have as many survivors as there are parents")


def loss_per_token(losses_NB: NDArray[np.float64], tokens_B: NDArray[Any]) -> list[float]:
    """Mean loss per token of each genotype, in nats; infinite where any block's is NaN or infinite.

    Raises:
        ValueError: shapes that don't fit, or no token.
    """
    # Contiguous rows, so that a row's sum doesn't depend on the layout it came in.
    losses = np.ascontiguousarray(losses_NB, dtype=np.float64)
    tokens = np.asarray(tokens_B)
    if losses.ndim != 2 or tokens.shape != losses.shape[1:]:
        raise ValueError(f"losses {losses.shape} must be [genotypes, blocks], tokens {tokens.shape} one for each block")
    total = int(tokens.sum())
    if total < 1:
        raise ValueError("losses over no token can't be ranked")
    finite: NDArray[np.bool_] = np.isfinite(losses)
    sums = np.where(finite, losses, 0.0).sum(axis=1)
    return [float(loss) / total if all(known) else math.inf for loss, known in zip(sums, finite, strict=True)]
