"""The paper's race: fresh draws and fixed numbers of survivors.

Holds: `FixedRace`.

Legend: N genotypes, B token blocks.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evoray.evolve.race import (
    Ahead,
    Blocks,
    Known,
    Measured,
    Measurement,
    RaceResult,
    Rung,
    check_racers,
    loss_per_token,
)
from evoray.space import Genotype


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
        known: not used; every draw is a fresh one.

    Raises:
        ValueError: nobody to race, the same genotype twice, or rungs that would lose places of the parents.
    """

    def __init__(
        self,
        offspring: Sequence[Genotype],
        parents: Sequence[Genotype],
        rungs: Sequence[Rung],
        known: Mapping[Genotype, Known] | None = None,
    ) -> None:
        check_racers(offspring, parents, rungs)
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

    def ahead(self, blocks: Blocks) -> tuple[Ahead, ...]:
        """See `Race`. Nothing: the parents are on the last rung for certain, but there they share most of their way
        through the model with others, and alone they would not."""
        return ()

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
