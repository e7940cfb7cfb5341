"""Successive halving on paired losses, with everything kept that was measured.

Holds: `HalvingRace`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evoray.evolve.paired import Tally
from evoray.evolve.race import LEAST, Ahead, Blocks, Draw, Known, Measured, Measurement, RaceResult, Rung, check_racers
from evoray.space import Genotype


class HalvingRace:
    """Correlated sequential halving (Baharav and Tse, arXiv 1906.04356): all see the same blocks; none is forgotten.

    A rung's tokens count from the beginning of the race: who is on the second rung is measured only on what the first
    one lacks. The parents race from the first rung and are never out, so the last rung compares them with what is left
    on all of its tokens. Ties go to the earlier, parents first; who has no loss is out.

    Args:
        offspring: distinct genotypes; may be empty where there are parents.
        parents: distinct genotypes, the best first; none for a race that only picks the best of its candidates.
        rungs: at least one. The last names as many survivors as there are parents, or more.
        known: not used; every race has blocks of its own.

    Raises:
        ValueError: see `check_racers`.
    """

    def __init__(
        self,
        offspring: Sequence[Genotype],
        parents: Sequence[Genotype],
        rungs: Sequence[Rung],
        known: Mapping[Genotype, Known] | None = None,
    ) -> None:
        check_racers(offspring, parents, rungs)
        self._parents, self._rungs = tuple(parents), tuple(rungs)
        self._left = list(dict.fromkeys((*parents, *offspring)))
        self._first = self._left[0]
        self._tally, self._rung = Tally(), 0
        self._measured: list[Measured] = []
        self._result: RaceResult | None = None

    def ask(self) -> Measurement | None:
        """See `Race`."""
        if self._result is not None:
            return None
        tokens = self._rungs[self._rung].tokens - self._tally.asked(self._left[0])
        draw = Draw(0, self._tally.blocks(self._left[0]))
        return Measurement(self._rung, tuple(self._left), tokens, draw)

    def tell(self, losses_NB: NDArray[np.float64], tokens_B: NDArray[np.int64]) -> None:
        """See `Race`.

        Raises:
            RuntimeError: nothing was asked for any more.
            ValueError: losses or tokens of another shape.
        """
        if self._result is not None:
            raise RuntimeError("the race is decided; it asked for no more losses")
        asked = self._rungs[self._rung].tokens - self._tally.asked(self._left[0])
        self._tally.add(self._left, losses_NB, np.asarray(tokens_B), asked)
        mean = {genotype: self._tally.mean(genotype) for genotype in self._left}
        self._measured.append(tuple(mean.items()))
        ranked = sorted((genotype for genotype in self._left if math.isfinite(mean[genotype])), key=mean.__getitem__)
        while True:
            survivors = self._rungs[self._rung].survivors
            ranked = [genotype for genotype in ranked if genotype in self._left]
            if self._rung == len(self._rungs) - 1:
                self._finish(ranked, mean)
                return
            children = [genotype for genotype in ranked if genotype not in self._parents]
            # A parent among the best takes a place, as it would on a rung of the paper's.
            inside = sum(genotype in self._parents for genotype in ranked[:survivors])
            self._left = [*self._parents, *children[: survivors - inside]]
            self._rung += 1
            if not children[: survivors - inside] and self._parents:
                self._finish([genotype for genotype in ranked if genotype in self._parents], mean)
                return
            if not self._left:
                self._finish([], mean)
                return
            if self._rungs[self._rung].tokens - self._tally.asked(self._left[0]) >= LEAST:
                return
            self._measured.append(())

    @property
    def result(self) -> RaceResult:
        """See `Race`."""
        if self._result is None:
            raise RuntimeError(f"the race waits for losses of rung {self._rung}")
        return self._result

    def ahead(self, blocks: Blocks) -> tuple[Ahead, ...]:
        """See `Race`. The parents are on all rungs to come; on the last one, one of all there is the next parent."""
        asked = self.ask()
        if asked is None or not self._parents:
            return ()
        found, done, skip = list[Ahead](), self._rungs[self._rung].tokens, asked.drawn.skip + blocks(asked)
        for number in range(self._rung + 1, len(self._rungs)):
            if (more := self._rungs[number].tokens - done) >= LEAST:
                found.append(Ahead(Measurement(number, self._parents, more, Draw(0, skip))))
                done, skip = self._rungs[number].tokens, skip + blocks(found[-1].measurement)
        if not found:
            found.append(Ahead(Measurement(0, tuple(self._left), self._rungs[0].tokens, Draw(0)), later=True))
        return tuple(found)

    def _finish(self, ranked: Sequence[Genotype], mean: Mapping[Genotype, float]) -> None:
        unmeasured = [parent for parent in self._parents if parent not in ranked]
        kept = tuple([*ranked, *unmeasured][: self._rungs[-1].survivors]) or (self._first,)
        parent_fitness = min(mean[parent] for parent in self._parents) if self._parents else None
        measured = tuple(self._measured) + ((),) * (len(self._rungs) - len(self._measured))
        self._result = RaceResult(kept[0], mean.get(kept[0], math.inf), parent_fitness, measured, kept)
