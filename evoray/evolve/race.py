"""Who of a generation is measured how far, and who wins.

Holds: `Measurement`, `Race`, `RaceResult`, `RaceFactory`, `Rung`, `rungs`, `FixedRace`.

A race never measures. It says what it wants measured, is told the losses, and in the end has a result:

    while (measurement := race.ask()) is not None:
        race.tell(*measure(measurement))
    race.result

Legend: N genotypes, B token blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evoray.errors import UserError
from evoray.space import Genotype

Measured = tuple[tuple[Genotype, float], ...]
"""Genotypes in the order they were measured, each with its loss in nats per token; infinite where it has none."""


@dataclass(frozen=True)
class Measurement:
    """What a race wants to know next.

    Attributes:
        rung: names the draw of batches. All genotypes of a measurement, and of a later one of the same race with
            the same rung, are measured on the same batches; another rung means a fresh draw.
        genotypes: distinct, N of them.
        tokens: how many tokens each is measured on.
    """

    rung: int
    genotypes: tuple[Genotype, ...]
    tokens: int


@dataclass(frozen=True)
class RaceResult:
    """How a race ended.

    Attributes:
        winner: the best genotype to go on from.
        fitness: its loss in nats per token on the last rung; infinite when nothing could be measured.
        parent_fitness: the best parent's on the same rung; None in a race without a parent.
        measured: for each rung, who was measured and with which loss; empty for a rung that was passed over.
        kept: all who go on, the winner first and then by loss; the winner alone where nothing is given.
    """

    winner: Genotype
    fitness: float
    parent_fitness: float | None
    measured: tuple[Measured, ...]
    kept: tuple[Genotype, ...] = ()

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


@dataclass(frozen=True)
class Rung:
    """One stage of a race: all who are left are measured on `tokens` tokens, and the best `survivors` go on."""

    survivors: int
    tokens: int


class RaceFactory(Protocol):
    """Makes a generation's race; `FixedRace` itself is one."""

    def __call__(
        self, offspring: Sequence[Genotype], parents: Sequence[Genotype], rungs: Sequence[Rung], /
    ) -> Race: ...


def rungs(survivors: Sequence[int], tokens: Sequence[int], population: int = 1) -> tuple[Rung, ...]:
    """Pairs survivors with tokens, as settings give them: `rungs([16, 4, 1], [2048, 16384, 131072])`.

    Args:
        survivors: of each rung; the last are the next population.
        tokens: that each genotype is measured on.
        population: how many go on from a generation.

    Raises:
        UserError: lists of unequal length or empty, survivors that don't fall to the population, tokens below 1 or
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
    if min(tokens) < 1:
        raise UserError(f"{named}: every rung needs at least 1 token")
    if any(left > right for left, right in pairwise(tokens)):
        raise UserError(f"{named}: tokens must not fall from rung to rung; fewer candidates deserve more of them")
    return tuple(Rung(left, count) for left, count in zip(survivors, tokens, strict=True))


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers)) or "(none)"


class FixedRace:
    """The race of EvoPress (arXiv 2410.14649, algorithm 1): a given number of survivors and tokens on each rung.

    Losses are means per token, on a fresh draw of batches per rung; earlier rungs are forgotten. The parents join
    the last rung, by its position, and its survivors are the next population. What the paper leaves open is settled so:

    - Ties go to the earlier in order, and parents stand first: a child must be strictly better to replace one.
    - A loss that is NaN or infinite ranks last, and never goes on to another rung. When no child is left, the
      parents alone are measured on the last rung and stay. Places that nobody with a loss fills are left to parents
      without one, in their order; so fewer than the last rung's survivors go on only where there were fewer parents.
    - A rung before the last that would drop nobody is passed over; it decides nothing.
    - A parent that is among the offspring races with them, and is on the last rung in any case.

    Args:
        offspring: distinct genotypes; may be empty where there are parents.
        parents: distinct genotypes, the best first; none for a race that only picks the best of its candidates. When
            none of these can be measured, the first of them wins with infinite fitness.
        rungs: at least one. The last names as many survivors as there are parents, or more.

    Raises:
        ValueError: nobody to race, the same genotype twice, or rungs that would lose places of the parents.
    """

    def __init__(self, offspring: Sequence[Genotype], parents: Sequence[Genotype], rungs: Sequence[Rung]) -> None:
        if not offspring and not parents:
            raise ValueError("a race needs offspring or a parent")
        if len(set(offspring)) != len(offspring) or len(set(parents)) != len(parents):
            raise ValueError("a genotype is twice among the offspring or the parents")
        if not rungs or any(rung.survivors < 1 or rung.tokens < 1 for rung in rungs):
            raise ValueError(f"rungs {list(rungs)} must each have survivors and tokens")
        if rungs[-1].survivors < len(parents):
            raise ValueError(f"the last of rungs {list(rungs)} must have as many survivors as there are parents")
        self._parents = tuple(parents)
        self._rungs = tuple(rungs)
        self._first = (*self._parents, *offspring)[0]
        self._left = list(offspring)
        self._measured: list[Measured] = []
        self._result: RaceResult | None = None
        self._enter_rung()

    def ask(self) -> Measurement | None:
        """See `Race`."""
        if self._result is not None:
            return None
        rung = len(self._measured)
        return Measurement(rung, tuple(self._left), self._rungs[rung].tokens)

    def tell(self, losses_NB: NDArray[np.float64], tokens_B: NDArray[np.int64]) -> None:
        """See `Race`.

        Raises:
            RuntimeError: nothing was asked for any more.
            ValueError: losses or tokens of another shape, or no token.
        """
        if self._result is not None:
            raise RuntimeError("the race is decided; it asked for no more losses")
        losses = loss_per_token(losses_NB, tokens_B)
        if len(losses) != len(self._left):
            raise ValueError(f"losses of {len(losses)} genotypes were told, of {len(self._left)} asked for")
        rung = self._rungs[len(self._measured)]
        measured = tuple(zip(self._left, losses, strict=True))
        self._measured.append(measured)
        # sorted() is stable, so ties keep their order.
        best = sorted((entry for entry in measured if math.isfinite(entry[1])), key=lambda entry: entry[1])
        self._left = [genotype for genotype, _ in best[: rung.survivors]]
        if len(self._measured) == len(self._rungs):
            self._finish(dict(measured))
        else:
            self._enter_rung()

    @property
    def result(self) -> RaceResult:
        """See `Race`."""
        if self._result is None:
            raise RuntimeError(f"the race waits for losses of rung {len(self._measured)}")
        return self._result

    def _enter_rung(self) -> None:
        last = len(self._rungs) - 1
        while len(self._measured) < last and len(self._left) <= self._rungs[len(self._measured)].survivors:
            self._measured.append(())
        if len(self._measured) < last:
            return
        if self._parents:
            self._left = [*self._parents, *(genotype for genotype in self._left if genotype not in self._parents)]
        elif not self._left:
            self._finish({})

    def _finish(self, losses: dict[Genotype, float]) -> None:
        unmeasured = [parent for parent in self._parents if parent not in self._left and math.isinf(losses[parent])]
        kept = tuple([*self._left, *unmeasured][: self._rungs[-1].survivors]) or (self._first,)
        winner = kept[0]
        parent_fitness = min(losses[parent] for parent in self._parents) if self._parents else None
        measured = tuple(self._measured) + ((),) * (len(self._rungs) - len(self._measured))
        self._result = RaceResult(winner, losses.get(winner, math.inf), parent_fitness, measured, kept)


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
