"""The point of the EvoPress paper, seen in a run: less error in the layers can be more loss in the model.

Holds: `Group`, `Pair`, `Counts`, `Monotonicity`, `monotonicity`, `compare`.

Legend: N candidates of a group, B blocks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evoray.configuration import DROPPED
from evoray.errors import UserError
from evoray.fitness import Fitness
from evoray.run.budgets import refuse_sweep
from evoray.run.directory import IDENTITY
from evoray.run.ground import settings_of_run, space_of_run
from evoray.run.journal import GenerationRow, Journal
from evoray.run.judge import mean_differences
from evoray.space import Genotype, Space
from evoray.store import Location, VariantStore


@dataclass(frozen=True)
class Group:
    """Candidates that were measured on the same batches, so that their losses compare pair by pair.

    Attributes:
        generation: of the search.
        rung: of that generation's race.
        genotypes: N of them.
        errors_N: sum of layer errors of each, float64.
        losses_NB: sums in nats per block, float64.
        counted_B: tokens of each block that count, int64.
    """

    generation: int
    rung: int
    genotypes: tuple[Genotype, ...]
    errors_N: NDArray[np.float64]
    losses_NB: NDArray[np.float64]
    counted_B: NDArray[np.int64]

    @property
    def loss_N(self) -> NDArray[np.float64]:
        """Loss of each candidate, nats per token."""
        found: NDArray[np.float64] = self.losses_NB.sum(1) / self.counted_B.sum()
        return found


@dataclass(frozen=True)
class Pair:
    """Two candidates of a group, of which the first has the smaller sum of layer errors and the larger loss.

    Attributes:
        group: they are of.
        less: position of the one with less error in the layers.
        more: position of the other one.
        difference: by how much the first one's loss is larger, nats per token.
        interval: half width of the 95% interval of that, paired over blocks; infinite for a single block.
    """

    group: Group
    less: int
    more: int
    difference: float
    interval: float

    @property
    def beyond_doubt(self) -> bool:
        """Whether the difference is more than its interval."""
        return self.difference > self.interval


@dataclass(frozen=True)
class Counts:
    """Pairs of candidates in which one has strictly less error in its layers.

    Attributes:
        pairs: all of them.
        turned: those where that one has strictly more loss.
        clear: pairs whose losses differ by more than the 95% interval of the difference.
        clear_turned: those of them that are turned.
    """

    pairs: int = 0
    turned: int = 0
    clear: int = 0
    clear_turned: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.pairs + other.pairs,
            self.turned + other.turned,
            self.clear + other.clear,
            self.clear_turned + other.clear_turned,
        )


@dataclass(frozen=True)
class Monotonicity:
    """What a run shows.

    Attributes:
        fitness: what the losses are.
        groups: all that was compared.
        counts: over all groups.
        worst: the turned pair with the largest difference, of those beyond doubt where there are any; or None.
        left_out: measured candidates that drop something, for which layers have no error, or whose loss is no number.
        space: that the genotypes are of.
    """

    fitness: str
    groups: tuple[Group, ...]
    counts: Counts
    worst: Pair | None
    left_out: int
    space: Space

    @property
    def shown(self) -> Group:
        """The group to look at: that of the worst pair, or the largest."""
        return self.worst.group if self.worst else max(self.groups, key=lambda group: len(group.genotypes))


def monotonicity(run: str) -> Monotonicity:
    """Compares all candidates that a search measured, with those measured on the same batches.

    Args:
        run: the run directory of a search, finished or not.

    Raises:
        UserError: no such run, nothing measured in it, a damaged journal, or a store without layer errors or other
            than the one that was searched.
    """
    location = Location.parse(run)
    refuse_sweep(location)
    if not (location / IDENTITY).exists():
        raise UserError(f"{run} is no run directory (no {IDENTITY}); give one of evoray search")
    journal = Journal(location)
    if not journal.rows:
        raise UserError(f"{run} holds no generation yet; give the run directory of a search that measured one")
    # Of the settings, not of best.json: a driver that died between the two has measured, and has no best.json.
    settings = settings_of_run(location)
    if settings.store is None:
        raise UserError(f"{run} is of a search without a store, so there are no layer errors; give another run")
    files = VariantStore.open(settings.store).manifest.files
    errors = {layer: file.errors for layer, file in files.items()}
    if not any(errors.values()):
        raise UserError(f"the store {settings.store} has no layer errors; build it with evoray build")
    space = space_of_run(location)
    fitness, kinds = Fitness(settings.fitness), _Errors(space, errors)
    found = [group for row in journal.rows for group in _groups(journal, row, fitness, kinds)]
    groups = tuple(group for group, _ in found if len(group.genotypes) > 1)
    if not groups:
        raise UserError(f"{run} has no two candidates with layer errors on the same batches; give another run")
    counts, worst = Counts(), None
    for group in groups:
        here, pair = compare(group)
        counts += here
        if pair is not None and (worst is None or _rank(pair) > _rank(worst)):
            worst = pair
    return Monotonicity(fitness.value, groups, counts, worst, sum(left for _, left in found), space)


def compare(group: Group) -> tuple[Counts, Pair | None]:
    """Compares each candidate of a group with each other.

    Returns:
        The counts, and the worst pair: see `Monotonicity`.
    """
    order = np.argsort(group.errors_N, kind="stable")
    counts, worst = Counts(), None
    for place, less in enumerate(order):
        # Those behind it in the order have as much error or more.
        others = order[place + 1 :]
        others = others[group.errors_N[others] > group.errors_N[less]]
        if not len(others):
            continue
        mean_N, width_N = mean_differences(group.losses_NB[less] - group.losses_NB[others], group.counted_B)
        turned_N, clear_N = mean_N > 0, np.abs(mean_N) > width_N
        counts += Counts(len(others), int(turned_N.sum()), int(clear_N.sum()), int((turned_N & clear_N).sum()))
        for among_N in (turned_N & clear_N, turned_N):
            if among_N.any():
                at = int(np.argmax(np.where(among_N, mean_N, -np.inf)))
                pair = Pair(group, int(less), int(others[at]), float(mean_N[at]), float(width_N[at]))
                worst = pair if worst is None or _rank(pair) > _rank(worst) else worst
                break
    return counts, worst


def _rank(pair: Pair) -> tuple[bool, float]:
    return pair.beyond_doubt, pair.difference


class _Errors:
    """Sums of layer errors of genotypes."""

    def __init__(self, space: Space, errors: Mapping[str, Mapping[str, float]]) -> None:
        self._space, self._errors = space, errors

    def fit(self, genotype: Genotype) -> bool:
        """Whether it is a genotype of the space."""
        genes = self._space.genes
        return len(genotype) == len(genes) and all(
            0 <= index < len(gene.levels) for gene, index in zip(genes, genotype, strict=True)
        )

    def of(self, genotype: Genotype) -> float | None:
        """The sum over layers; None where something is dropped, or a level has no error."""
        configuration = self._space.configuration(genotype)
        if DROPPED in configuration.values():
            return None
        found = [self._errors[layer].get(level) for layer, level in configuration.items() if layer in self._errors]
        return None if None in found else math.fsum(each for each in found if each is not None)


def _groups(journal: Journal, row: GenerationRow, fitness: Fitness, errors: _Errors) -> list[tuple[Group, int]]:
    """The groups of a generation, each with the number of candidates that were left out of it."""
    cuts: dict[int, dict[int, list[int]]] = {}
    for batch in journal.batches(row.generation).to_pylist():
        cuts.setdefault(batch["rung"], {})[batch["batch"]] = batch["cuts"]
    losses: dict[int, dict[Genotype, dict[int, list[float]]]] = {}
    for entry in journal.evaluations(row).to_pylist():
        candidates = losses.setdefault(entry["rung"], {})
        candidates.setdefault(tuple(entry["genotype"]), {})[entry["batch"]] = entry["losses"]
    found = []
    for rung, candidates in sorted(losses.items()):
        numbers = sorted(cuts[rung])
        kept: list[tuple[Genotype, float, NDArray[np.float64]]] = []
        for genotype, parts in candidates.items():
            if not errors.fit(genotype):
                raise journal.damaged(f"{genotype} of generation {row.generation} is none of this search")
            error = errors.of(genotype)
            losses_B = np.concatenate([parts[number] for number in numbers if number in parts])
            if error is not None and len(parts) == len(numbers) and np.isfinite(losses_B).all():
                kept.append((genotype, error, losses_B))
        counted_B = fitness.counted([cut for number in numbers for cut in cuts[rung][number]])
        group = Group(
            generation=row.generation,
            rung=rung,
            genotypes=tuple(genotype for genotype, _, _ in kept),
            errors_N=np.array([error for _, error, _ in kept]),
            losses_NB=np.array([losses_B for _, _, losses_B in kept]).reshape(len(kept), len(counted_B)),
            counted_B=counted_B,
        )
        found.append((group, len(candidates) - len(kept)))
    return found
