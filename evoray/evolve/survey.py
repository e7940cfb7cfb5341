"""A race that decides nothing: it measures a generation for what is to be learned of it.

Holds: `Survey`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evoray.evolve.race import Ahead, Blocks, Measurement, RaceResult, Rung, check_racers, loss_per_token
from evoray.space import Genotype


class Survey:
    """Everyone is measured on the tokens of one rung, and the parents stay.

    Args:
        offspring: distinct genotypes.
        parents: distinct genotypes, the best first; at least one.
        rung: on how many tokens.

    Raises:
        ValueError: see `check_racers`; or no parent.
    """

    def __init__(self, offspring: Sequence[Genotype], parents: Sequence[Genotype], rung: Rung) -> None:
        if not parents:
            raise ValueError("a survey chooses no parent, so it needs one")
        self._parents = tuple(parents)
        check_racers(offspring, parents, [Rung(max(rung.survivors, len(self._parents)), rung.tokens)])
        children = [genotype for genotype in offspring if genotype not in self._parents]
        self._pending: Measurement | None = Measurement(0, (*self._parents, *children), rung.tokens)
        self._result: RaceResult | None = None

    def ask(self) -> Measurement | None:
        """See `Race`."""
        return self._pending

    def tell(self, losses_NB: NDArray[np.float64], tokens_B: NDArray[np.int64]) -> None:
        """See `Race`.

        Raises:
            RuntimeError: nothing was asked for any more.
            ValueError: losses or tokens of another shape.
        """
        if self._pending is None:
            raise RuntimeError("the survey is over; it asked for no more losses")
        asked = self._pending.genotypes
        if np.shape(losses_NB) != (len(asked), len(tokens_B)):
            raise ValueError(f"losses {np.shape(losses_NB)} must be [genotypes, blocks]: {len(asked)}, {len(tokens_B)}")
        loss_N = loss_per_token(losses_NB, tokens_B)
        self._pending = None
        self._result = RaceResult(
            self._parents[0],
            loss_N[0],
            min(loss_N[: len(self._parents)]),
            (tuple(zip(asked, loss_N, strict=True)),),
            self._parents,
        )

    @property
    def result(self) -> RaceResult:
        """See `Race`."""
        if self._result is None:
            raise RuntimeError("the survey waits for losses")
        return self._result

    def ahead(self, blocks: Blocks) -> tuple[Ahead, ...]:
        """Nothing: what comes next follows from what this one finds."""
        return ()
