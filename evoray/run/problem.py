"""Baselines on real losses: what they ask for is measured by a pool.

Holds: `find_by_baseline`, `choose_unmeasured`, `least_errors`, `guesses`, `Found`.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evoray.baselines import Baseline, Problem, find_baseline
from evoray.baselines.owl import owl_choices
from evoray.baselines.problem import Influencer, Measurer
from evoray.cluster import Pool
from evoray.errors import UserError
from evoray.evaluator import Work
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.run.ground import Ground
from evoray.run.progress import Progress
from evoray.run.shapes import Shapes
from evoray.settings import ChoiceSettings
from evoray.space import Genotype
from evoray.store import Manifest
from evoray.tokens import draw_batches

CANDIDATES = {"random": 128, "brute-force": 20_000}
"""Of the methods that count them, where the user says nothing."""


@dataclass(frozen=True)
class Found:
    """What a baseline found.

    Attributes:
        genotype: its choice.
        candidate_tokens: that it measured.
    """

    genotype: Genotype
    candidate_tokens: int


class _Measuring:
    """The losses that a baseline asks for, all on the same tokens."""

    def __init__(self, ground: Ground, settings: ChoiceSettings, pool: Pool, tokens: int, progress: Progress) -> None:
        self.ground, self.settings, self.pool, self.progress = ground, settings, pool, progress
        draws = rng(settings.seed, 0, Purpose.BASELINE)
        shapes = Shapes.of(settings)
        batches = draw_batches(ground.text, tokens, draws, shapes.tokens_per_pass)
        self._plain = [
            Work(batch.ids(ground.text), batch.cuts, vocabulary_chunk=shapes.vocabulary_chunk) for batch in batches
        ]
        self._cuts = [cut for batch in batches for cut in batch.cuts]
        self._works: dict[Fitness, list[Work]] = {}
        self.tokens = 0

    def measure(self, genotypes: Sequence[Genotype], fitness: str | None = None) -> NDArray[np.float64]:
        """See `Problem.measure`."""
        kind = Fitness(fitness) if fitness is not None else self.ground.fitness
        works = self._taught(kind) if kind.needs_teacher else self._plain
        share = self.progress.step(f"measuring {len(genotypes)} candidates")
        losses_NB = self.pool.measure(self.ground.space.rows(genotypes), works, kind, share)
        share(1.0)
        self.tokens += len(genotypes) * sum(self._cuts)
        sign = -1.0 if self.settings.invert and fitness is None else 1.0
        losses_N: NDArray[np.float64] = sign * losses_NB.sum(1) / kind.counted(self._cuts).sum()
        return np.where(np.isfinite(losses_N), losses_N, np.inf)

    def influences(self, spans: tuple[tuple[str, ...], ...]) -> NDArray[np.float64]:
        """See `Problem.influences`."""
        parts = self.pool.each(self._plain, "influences", spans)
        # Every span costs about the blocks that it is long; one pass of the base model serves all of them.
        self.tokens += sum(self._cuts)
        sums_SM: NDArray[np.float64] = np.concatenate(parts, axis=2).sum(2)
        return sums_SM / sum(self._cuts)

    def _taught(self, fitness: Fitness) -> list[Work]:
        if fitness not in self._works:
            taught = self.pool.teach(self._plain, fitness)
            self._works[fitness] = [
                replace(work, teacher=tuple(blocks)) for work, blocks in zip(self._plain, taught, strict=True)
            ]
        return self._works[fitness]


def find_by_baseline(
    baseline: str | Baseline,
    ground: Ground,
    settings: ChoiceSettings,
    pool: Pool,
    progress: Progress,
    *,
    tokens: int,
    candidates: int | None = None,
) -> Found:
    """What a baseline chooses.

    Args:
        baseline: itself, or its name.
        ground: what it may choose, and the text.
        settings: seed, inversion, and the shapes of passes.
        pool: who measures.
        progress: told what happens.
        tokens: that candidates are measured on.
        candidates: for methods that count them.

    Raises:
        UserError: a baseline that does not apply to this space.
    """
    measuring = _Measuring(ground, settings, pool, tokens, progress)
    chooser = find_baseline(baseline) if isinstance(baseline, str) else baseline
    problem = _problem(chooser.name, ground, settings, candidates, measuring.measure, measuring.influences)
    return Found(chooser(problem), measuring.tokens)


class _MeasuresError(Exception):
    """A baseline came so far that it would measure."""


def _measures(*_: object) -> NDArray[np.float64]:
    raise _MeasuresError


def choose_unmeasured(
    name: str, ground: Ground, settings: ChoiceSettings, *, candidates: int | None = None
) -> Genotype | None:
    """What a baseline chooses without measuring, and by that whether it applies, before a worker starts.

    Args:
        name: of the baseline.
        ground: what it may choose.
        settings: seed.
        candidates: for methods that count them.

    Returns:
        None for one that came so far that it would measure.

    Raises:
        UserError: it does not apply to this space.
    """
    with contextlib.suppress(_MeasuresError):
        return find_baseline(name)(_problem(name, ground, settings, candidates, _measures, _measures))
    return None


def least_errors(ground: Ground, settings: ChoiceSettings) -> Genotype | None:
    """The choice of the baseline dp, which measures nothing; None where it does not apply."""
    with contextlib.suppress(UserError):
        return choose_unmeasured("dp", ground, settings)
    return None


def guesses(ground: Ground, settings: ChoiceSettings) -> tuple[Genotype, ...]:
    """What a search may begin with at no cost: what OWL may choose, and the least sum of layer errors.

    None where neither applies: something is dropped, or the store lacks outlier ratios and layer errors.
    """
    found = list[Genotype]()
    with contextlib.suppress(UserError):
        found += owl_choices(_problem("owl", ground, settings, None, _measures, _measures))
    least = least_errors(ground, settings)
    return tuple(found if least is None else [least, *found])


def _problem(
    name: str,
    ground: Ground,
    settings: ChoiceSettings,
    candidates: int | None,
    measure: Measurer,
    influences: Influencer,
) -> Problem:
    manifest = ground.manifest
    stored = manifest if isinstance(manifest, Manifest) else None
    return Problem(
        space=ground.space,
        errors={layer: file.errors for layer, file in stored.files.items()} if stored is not None else {},
        outliers={layer.name: layer.outliers for layer in stored.layers} if stored is not None else {},
        blocks={layer.name: layer.block for layer in manifest.layers},
        weights={layer.name: layer.out_features * layer.in_features for layer in manifest.layers},
        measure=measure,
        influences=influences,
        seed=settings.seed,
        candidates=candidates or CANDIDATES.get(name, CANDIDATES["random"]),
    )
