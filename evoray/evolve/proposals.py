"""Who races next: offspring of the parents, drawn blindly, screened by what was learned, or taken from it.

Holds: `Proposals`, `Mutants`, `Screened`, `Learned`, `merged`, `MERGED`.

Legend: G genes, S draws.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evoray.evolve.additive import AdditiveModel, Lessons
from evoray.evolve.mutation import Mutation
from evoray.evolve.race import Told
from evoray.space import Genotype, Space, cheapest

REPEATS = 200
"""Draws in a row that may give nothing new before a generation is left with the offspring it has."""

MERGED = 4
"""New candidates that are merged from a generation's improving offspring, at most."""


class Proposals(Protocol):
    """Makes a generation's offspring. It never measures."""

    def learn(self, told: Sequence[Told]) -> None:
        """Takes what a generation measured."""
        ...

    @property
    def lessons(self) -> Lessons | None:
        """What another search over the same genes can begin with; None where nothing is learned."""
        ...

    @property
    def surveys(self) -> bool:
        """Whether so little is known that the next generation is better measured than raced."""
        ...

    def offspring(self, parents: Sequence[Genotype], count: int, rng: np.random.Generator) -> tuple[Genotype, ...]:
        """Distinct legal genotypes that are none of the parents; fewer than asked for where hardly more are found."""
        ...


class Mutants:
    """Mutations of a parent drawn uniformly, as in the paper.

    Args:
        space: what may be chosen.
        mutation: makes a child.
    """

    def __init__(self, space: Space, mutation: Mutation) -> None:
        self._space, self._mutation = space, mutation

    def learn(self, told: Sequence[Told]) -> None:
        """Nothing is learned."""

    @property
    def lessons(self) -> None:
        """There are none."""
        return None

    @property
    def surveys(self) -> bool:
        """Never."""
        return False

    def offspring(self, parents: Sequence[Genotype], count: int, rng: np.random.Generator) -> tuple[Genotype, ...]:
        """See `Proposals`."""

        def child() -> Genotype | None:
            # A single parent takes no draw.
            number = int(rng.integers(len(parents))) if len(parents) > 1 else 0
            return self._mutation(self._space, parents[number], rng)

        return distinct(child, parents, count)


class Screened:
    """Of several mutants per place the one that a draw of the additive model likes best (Thompson sampling).

    Args:
        space: what may be chosen.
        mutation: makes a child.
        mutants: that are drawn for each place.
        model: that is learned elsewhere; by default one of its own.
    """

    def __init__(self, space: Space, mutation: Mutation, mutants: int = 8, model: AdditiveModel | None = None) -> None:
        self._space, self._model, self._mutants = space, model or AdditiveModel(space), mutants
        self._blind = Mutants(space, mutation)

    def learn(self, told: Sequence[Told]) -> None:
        """See `Proposals`."""
        _learn(self._model, told)

    @property
    def lessons(self) -> Lessons:
        """See `Proposals`."""
        return self._model.lessons

    @property
    def surveys(self) -> bool:
        """Never."""
        return False

    def offspring(self, parents: Sequence[Genotype], count: int, rng: np.random.Generator) -> tuple[Genotype, ...]:
        """See `Proposals`."""
        pool = self._blind.offspring(parents, count * self._mutants, rng)
        if not self._model.candidates or len(pool) <= count:
            return pool[:count]
        losses_SGK = self._model.losses(self._model.draws(count, rng))
        left = list(pool)
        return tuple(left.pop(int(np.argmin(self._model.sums(losses_GK, left)))) for losses_GK in losses_SGK)


class Learned:
    """The best choices by draws of the additive model (Thompson sampling) and by its mean, and screened mutants.

    A draw is a guess at what every step of every gene does to the loss, as wide as the measurements leave open; the
    best choice by it is found by dynamic programming, or where a space has more rules than budgets, by the best of
    mutants, again and again. These take half of the places, or fewer where draws agree. The others are mutants of the
    parents, screened by the same model: what genes do together no sum tells, and near the parent it matters least.
    Before anything is known, offspring are several mutations away from the parents, for each then tells of many genes;
    and as long as little is, all places are for draws, and generations are surveys.

    Args:
        space: what may be chosen.
        mutation: makes a child.
        model: of what is known before; by default nothing.
        survey: how many candidates are measured before children race for the place of a parent.
    """

    def __init__(self, space: Space, mutation: Mutation, model: AdditiveModel | None = None, survey: int = 0) -> None:
        self._space, self._mutation, self._model = space, mutation, model or AdditiveModel(space)
        self._survey = survey
        self._blind, self._near = Mutants(space, mutation), Screened(space, mutation, model=self._model)

    def learn(self, told: Sequence[Told]) -> None:
        """See `Proposals`."""
        _learn(self._model, told)

    @property
    def lessons(self) -> Lessons:
        """See `Proposals`."""
        return self._model.lessons

    @property
    def surveys(self) -> bool:
        """See `Proposals`."""
        return self._model.candidates < self._survey

    def offspring(self, parents: Sequence[Genotype], count: int, rng: np.random.Generator) -> tuple[Genotype, ...]:
        """See `Proposals`."""
        if not self._model.candidates:
            return distinct(lambda: self._far(parents[0], rng), parents, count)
        found: dict[Genotype, None] = {}
        places = count if self.surveys else count - count // 2
        # Half as many draws again as places: where they still agree, there is little to learn from more.
        effects_SP = np.concatenate([self._model.mean(), self._model.draws(places + places // 2, rng)])
        for genotype in self._best(self._model.losses(effects_SP), parents, rng):
            if genotype not in parents:
                found.setdefault(genotype)
        chosen = tuple(found)[:places]
        near = self._near.offspring(parents, count, rng)
        return (*chosen, *(genotype for genotype in near if genotype not in chosen))[:count]

    def _far(self, parent: Genotype, rng: np.random.Generator) -> Genotype | None:
        """Several mutations away."""
        child: Genotype | None = None
        for _ in range(int(rng.integers(1, max(3, len(parent) // 8 + 1)))):
            child = self._mutation(self._space, child or parent, rng) or child
        return child

    def _best(
        self, losses_SGK: NDArray[np.float64], parents: Sequence[Genotype], rng: np.random.Generator
    ) -> list[Genotype]:
        """For each table the genotype of the least sum, or one that is hard to better."""
        if not self._space.switches_G.any():
            # Budgets are used up, whatever the model says: so many are dropped as asked for, and never more.
            levels_SG = cheapest(self._space, losses_SGK, whole=True)
            found = [tuple(levels_G.tolist()) for levels_G in levels_SG]
            if all(map(self._space.is_legal, found)):
                return found
        return [self._climbed(losses_GK, parents[0], rng) for losses_GK in losses_SGK]

    def _climbed(self, losses_GK: NDArray[np.float64], parent: Genotype, rng: np.random.Generator) -> Genotype:
        best, least = parent, float(self._model.sums(losses_GK, [parent])[0])
        for _ in range(8):
            pool = self._blind.offspring((best,), 24, rng)
            sums_N = self._model.sums(losses_GK, pool) if pool else np.array([np.inf])
            if sums_N.min() >= least:
                break
            least, best = float(sums_N.min()), pool[int(np.argmin(sums_N))]
        return best


def _learn(model: AdditiveModel, told: Sequence[Told]) -> None:
    for each in told:
        model.learn(each.measurement.genotypes, each.losses_NB, each.tokens_B)


def distinct(draw: Callable[[], Genotype | None], parents: Sequence[Genotype], count: int) -> tuple[Genotype, ...]:
    """Draws until there are so many that differ from each other and from the parents, or nothing new comes."""
    found: dict[Genotype, None] = {}
    repeats = 0
    while len(found) < count and repeats < REPEATS:
        child = draw()
        if child is None or child in parents or child in found:
            repeats += 1
        else:
            found[child] = None
            repeats = 0
    return tuple(found)


def merged(space: Space, parent: Genotype, better: Sequence[Genotype], most: int = MERGED) -> tuple[Genotype, ...]:
    """New candidates that make the changes of several children at once.

    Beginning with each of the first children, the others are taken in order as long as they change other genes and the
    whole stays legal.

    Args:
        space: what may be chosen.
        parent: of the children, or the one they are compared with.
        better: children that beat it, the best first.
        most: of the new candidates.
    """
    found: dict[Genotype, None] = {}
    for first in range(min(len(better), most)):
        whole = better[first]
        for other in (*better[:first], *better[first + 1 :]):
            free = all(now == old or then == old for now, then, old in zip(whole, other, parent, strict=True))
            both = tuple(then if then != old else now for now, then, old in zip(whole, other, parent, strict=True))
            if free and space.is_legal(both):
                whole = both
        if whole not in better and whole != parent:
            found.setdefault(whole)
    return tuple(found)
