"""A search, checked before a worker starts: the ground it stands on, its rungs, its start, its strategy.

Holds: `SearchPlan`, `plan_search`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from evoray.baselines import BASELINES
from evoray.configuration import DROPPED
from evoray.errors import UserError
from evoray.evolve import (
    MERGED,
    AdditiveModel,
    FixedRace,
    HalvingRace,
    Learned,
    Lessons,
    LevelSwitch,
    Mutants,
    Mutation,
    OnePlusLambda,
    Proposals,
    RaceFactory,
    Rung,
    Screened,
    SequentialRace,
    merged,
    rungs,
)
from evoray.run.ground import Ground, plan_ground
from evoray.run.loggers import check_loggers
from evoray.run.named import as_blocks, configuration_of, resolve_sites
from evoray.run.problem import choose_unmeasured, guesses
from evoray.settings import MutationRule, Preset, ProposalRule, RacePolicy, SearchSettings
from evoray.space import Genotype, Space
from evoray.store import Location

USUAL_GENERATIONS = 150

MOST_STEPS = 4096
"""Of which the usual search learns: a generation's matrices of steps by steps then take about a second and 128 MiB
each."""

SURVEYED = 0.5
"""Candidates per step that the usual search measures before any may replace the parent."""

_DECIDING = (
    "offspring",
    "survivors",
    "tokens",
    "population",
    "initial_candidates",
    "initial_tokens",
    "guesses",
    "mutation",
    "switches",
    "race",
    "proposals",
    "survey",
    "merge",
)
"""Settings that decide a search beside those that decide any result."""


@dataclass(frozen=True)
class SearchPlan:
    """A search, ready to be run.

    Attributes:
        settings: as given, with what was left open resolved.
        ground: what it stands on.
        rungs: of each generation.
        start: where it begins; None for the usual start, and while a baseline has to find it.
        init: name of the baseline that finds the start, or None.
        guesses: that race in the first generation.
    """

    settings: SearchSettings
    ground: Ground
    rungs: tuple[Rung, ...]
    start: Genotype | None
    init: str | None
    guesses: tuple[Genotype, ...]

    def strategy(self, start: Genotype | None, lessons: Lessons | None = None) -> OnePlusLambda:
        """The search, before its first generation.

        Args:
            start: `self.start`, or what the baseline found.
            lessons: of another search over the same genes, which proposals begin with if they learn.
        """
        settings, space = self.settings, self.ground.space
        assert settings.generations is not None
        mutation = LevelSwitch(equal_steps=settings.mutation is MutationRule.equal_steps, maximum=settings.switches)
        return OnePlusLambda(
            space,
            offspring=settings.offspring,
            rungs=self.rungs,
            mutation=mutation,
            race=_race(settings, space),
            proposals=_proposals(settings, space, mutation, lessons),
            patience=settings.patience,
            seed=settings.seed,
            generations=settings.generations,
            initial_candidates=settings.initial_candidates,
            start=start,
            population=settings.population,
            initial_tokens=settings.initial_tokens,
            guesses=self.guesses,
        )

    @property
    def sign(self) -> float:
        """Of losses in races, which take the smallest: who looks for the worst tells them the negative."""
        return -1.0 if self.settings.invert else 1.0

    @property
    def remembers(self) -> bool:
        """Whether the search goes on from what was measured, not from outcomes alone."""
        settings = self.settings
        return settings.proposals is not ProposalRule.mutation or settings.race is RacePolicy.sequential

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result. Not in it: workers, addresses, paths, limits, and how many generations: a run
        goes on when that is raised."""
        start = list(self.start) if self.start is not None else self.init
        return {**self.ground.identity(self.settings, _DECIDING), "start": start}

    @property
    def generation_tokens(self) -> int:
        """Candidate tokens of a generation at most."""
        settings, parents = self.settings, self.settings.population
        entering = [settings.offspring, *(rung.survivors for rung in self.rungs[:-1])]
        tokens = [rung.tokens for rung in self.rungs]
        if settings.race is RacePolicy.fixed:
            entering[-1] += parents  # they join the last rung
            return sum(count * each for count, each in zip(entering, tokens, strict=True))
        more = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
        entering = [count + parents for count in entering]
        if settings.race is RacePolicy.sequential:
            # The last rung is on text of its own, and the parents were measured there when they won.
            more[-1] = tokens[-1]
            entering[0] += MERGED if settings.merge else 0
        return sum(count * each for count, each in zip(entering, more, strict=True))


def _proposals(settings: SearchSettings, space: Space, mutation: Mutation, lessons: Lessons | None) -> Proposals:
    if settings.proposals is ProposalRule.mutation:
        return Mutants(space, mutation)
    model = AdditiveModel(space, lessons)
    if settings.proposals is ProposalRule.screened:
        return Screened(space, mutation, model=model)
    return Learned(space, mutation, model, settings.survey or 0)


def _race(settings: SearchSettings, space: Space) -> RaceFactory:
    if settings.race is RacePolicy.fixed:
        return FixedRace
    if settings.race is RacePolicy.halving:
        return HalvingRace
    merge = partial(merged, space) if settings.merge else None
    return partial(SequentialRace, merge=merge)


def plan_search(settings: SearchSettings, stage: Callable[[str], object] = lambda text: None) -> SearchPlan:
    """Reads store, facts and texts, and checks that they fit.

    Args:
        settings: of the search.
        stage: told what is done next.

    Raises:
        UserError: anything that can't work, before a worker starts or a weight is read.
    """
    steps = rungs(settings.survivors, settings.tokens, settings.population)
    if settings.survivors[0] > settings.offspring:
        raise UserError(
            f"--survivors {settings.survivors[0]}: more than the {settings.offspring} offspring of a generation; "
            "lower it, or raise --offspring"
        )
    init = _baseline(settings)
    check_loggers(settings.log_to)
    settings, ground = plan_ground(settings, stage)
    most = max(*settings.tokens, settings.initial_tokens or 0)
    if most > ground.text.tokens:
        raise UserError(
            f"--tokens {most}: more tokens than the search text has ({ground.text.tokens} of {settings.data}); "
            "lower it, raise --search-tokens, or give more text"
        )
    if settings.generations is None:
        settings = settings.model_copy(update={"generations": _generations(settings, ground)})
    if settings.proposals is None:
        rule = ProposalRule.learned if _steps(ground.space) <= MOST_STEPS else ProposalRule.mutation
        settings = settings.model_copy(update={"proposals": rule})
    start = _start(settings, ground) if settings.init is not None and init is None else None
    if init is not None:
        choose_unmeasured(init, ground, settings)
    learns = settings.proposals is ProposalRule.learned
    if settings.survey and not learns:
        raise UserError(
            f"--survey {settings.survey}: --proposals {settings.proposals} learns nothing; leave it out, or give "
            "--proposals learned"
        )
    if settings.survey is None:
        settings = settings.model_copy(update={"survey": int(SURVEYED * _steps(ground.space)) if learns else 0})
    if settings.guesses is None:
        settings = settings.model_copy(update={"guesses": learns})
    return SearchPlan(settings, ground, steps, start, init, guesses(ground, settings) if settings.guesses else ())


def _generations(settings: SearchSettings, ground: Ground) -> int:
    """The usual number; for the paper's preset k(n-k)/1.5 where k of n sublayers of a kind, or blocks, are dropped."""
    drop = settings.drop_blocks
    if settings.preset is not Preset.evopress or settings.target is not None or drop is None:
        return USUAL_GENERATIONS
    genes = [gene for gene in ground.space.genes if DROPPED in gene.levels]
    count = max(sum(gene.budget == budget for gene in genes) for budget in range(len(ground.space.limits)))
    return max(1, math.ceil(drop * (count - drop) / 1.5))


def _steps(space: Space) -> int:
    """Of a gene from a level to the next, as the additive model counts them."""
    genes, levels = space.costs_GK.shape
    return int(genes * (levels - 1))


def _baseline(settings: SearchSettings) -> str | None:
    """The baseline that `--init` names; a file of that name comes first."""
    if settings.init is None or settings.init not in BASELINES or Location.parse(settings.init).exists():
        return None
    return settings.init


def _start(settings: SearchSettings, ground: Ground) -> Genotype:
    assert settings.init is not None
    configuration = resolve_sites(configuration_of(settings.init), ground.facts.droppable)
    if settings.drop_entire_block or settings.drop_two_consecutive:
        configuration = as_blocks(configuration, ground.facts.droppable)
    genotype = ground.space.genotype(configuration)
    if not ground.space.is_legal(genotype):
        costs = ground.space.summary(genotype)
        raise UserError(
            f"--init {settings.init} is above the budget ({costs.bits:.4f} bits, {costs.bpw:.4f} bpw, "
            f"{costs.size} bytes, {costs.sparsity:.4f} of the weights gone); give one within it, or raise the target"
        )
    return genotype
