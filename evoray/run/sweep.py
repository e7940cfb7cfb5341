"""The verb sweep: searches for several budgets in one job. Model and teacher are loaded once; each budget seeds the
next.

Holds: `sweep`, `Sweep`, `planned`.

Under the sweep's folder lies a run directory for each budget, as a search of its own leaves it; `sweep.json` says which
budget seeded which, so that going on does the same, and a later call adds budgets. The folder has one driver, as a run
directory has, and whoever loses it writes to none of its run directories any more.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from evoray.baselines import Baseline, Problem
from evoray.cluster import Pool, WorkerSpec
from evoray.cluster.capacity import HostMemory
from evoray.errors import UserError
from evoray.evolve import Purpose, initial, rng
from evoray.model import checkpoint_facts
from evoray.run.best import SearchResult
from evoray.run.budgets import SweepRecord, spelled
from evoray.run.directory import LEARNED, check_folder, read_lessons
from evoray.run.ground import make_ground_space
from evoray.run.held import HeldFolder
from evoray.run.named import read_best
from evoray.run.plan import USUAL_GENERATIONS
from evoray.run.progress import Progress
from evoray.run.search import Shared, search
from evoray.run.workers import located, started_pool
from evoray.settings import ChoiceSettings, EvalSettings, SearchSettings, SweepSettings, command_of, flag
from evoray.space import Gene, Genotype, Space
from evoray.store import Location, VariantStore

SEEDED = 5
"""A budget that another one seeds takes one of so many generations, by default: most was learned before."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        run: its folder.
        budget: name of the budget that is swept, such as target_bits.
        results: value of the budget -> result, dearest first; with those of earlier calls.
    """

    run: str
    budget: str
    results: Mapping[float, SearchResult]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = [
            {self.budget: value, "run": result.run, "reason": result.reason, **result.best}
            for value, result in self.results.items()
        ]
        return {"run": self.run, "budget": self.budget, "searches": found}


def sweep(settings: SweepSettings, progress: Progress | None = None) -> Sweep:
    """Searches for several budgets, or goes on with them.

    Args:
        settings: of each search, and the budgets.
        progress: told what happens.

    Raises:
        UserError: a mistake in the settings, or a folder of another sweep or in use.
        EvorayError: workers or storage fail.
    """
    progress = progress or Progress()
    folder = Location.parse(settings.run)
    check_folder(folder, "a sweep", "--run")
    searches = planned(settings)
    _check_budgets([searches[value][0] for value in getattr(settings, settings.swept)])
    with HeldFolder(folder, "sweep's folder", progress.note, settings.take_over, parts=("teacher",)) as held:
        # Read again: who had the folder before may have added budgets meanwhile.
        return _sweep(settings, _record(settings, held.location), progress)


def _sweep(settings: SweepSettings, record: SweepRecord, progress: Progress) -> Sweep:
    """The searches, one after the other, in a folder that is held."""
    folder, budget, searches = record.folder, record.budget, _searches(settings, record)
    asked = getattr(settings, budget)
    earlier = tuple(record.run(value) for value in searches if value not in asked and record.begun(value))
    # What is left open may come out differently for each budget.
    own = ("start", budget, *(name for name in ("survey", "proposals", "guesses") if getattr(settings, name) is None))
    record.write()
    found: dict[float, SearchResult] = {}
    with _Lending() as lending:
        for value, (search_settings, seed) in searches.items():
            if value not in asked:
                # Of an earlier call; it is not gone on with, but seeds others.
                best = read_best(Location.parse(search_settings.run))
                if best is not None and "held_out" in best:
                    found[value] = SearchResult(search_settings.run, best, "as an earlier call left it")
                continue
            if seed is not None and seed not in found:
                raise UserError(
                    f"{folder} has {record.name(seed)} half done, which seeds {record.name(value)}; "
                    f"name {spelled(seed)} in {flag(budget)}, too"
                )
            progress.note(record.name(value) + (f", seeded by {spelled(seed)}" if seed is not None else ""))
            adapting = lessons = None
            if seed is not None:
                adapting = _adapting(spelled(seed), found[seed].configuration)
                lessons = read_lessons(record.run(seed) / LEARNED)
            command = command_of("sweep", located(settings), {})
            shared = Shared(
                record.run(value), lending.pool, folder / "teacher", adapting, lessons, command, earlier, own
            )
            found[value] = search(search_settings, progress, shared)
    results = {value: found[value] for value in record.ordered() if value in found}
    return Sweep(str(folder), budget, results)


def planned(settings: SweepSettings) -> dict[float, tuple[SearchSettings, float | None]]:
    """The searches of a sweep, with those of earlier calls, each behind the one that seeds it.

    Returns:
        Value of the budget -> settings, and the value that seeds it.

    Raises:
        UserError: the folder is of a sweep over another kind of budget, or damaged.
    """
    return _searches(settings, _record(settings, Location.parse(settings.run)))


def _searches(settings: SweepSettings, record: SweepRecord) -> dict[float, tuple[SearchSettings, float | None]]:
    return {
        value: (_settings_of(settings, value, str(record.run(value)), seed is not None), seed)
        for value, seed in record.seeds.items()
    }


def _record(settings: SweepSettings, folder: Location) -> SweepRecord:
    """What the folder says, with the budgets that are asked for."""
    budget = settings.swept
    record = SweepRecord.read(folder) or SweepRecord(folder, budget)
    record.check_kind(budget)
    return record.with_values(getattr(settings, budget))


def _check_budgets(searches: Sequence[SearchSettings]) -> None:
    """Sees that each can be met before the first search takes a worker, and anything is written.

    Raises:
        UserError: one can't.
    """
    settings = located(searches[0])
    stored = VariantStore.open(settings.store).manifest if settings.store is not None else None
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    for search_settings in searches:
        make_ground_space(search_settings, facts, stored)


class _Lending:
    """One pool for all searches: opened when the first needs it, closed at the end. A context manager."""

    def __init__(self) -> None:
        self._stack, self._pool, self._spec = ExitStack(), None, None

    def __enter__(self) -> "_Lending":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @contextmanager
    def pool(
        self, settings: ChoiceSettings | EvalSettings, spec: WorkerSpec, memory: HostMemory, progress: Progress
    ) -> Iterator[Pool]:
        """As `started_pool`."""
        if self._pool is None:
            self._pool = self._stack.enter_context(started_pool(settings, spec, memory, progress))
            self._spec = spec
        assert self._spec == spec, "searches of a sweep differ in their budget alone"
        yield self._pool


def _settings_of(settings: SweepSettings, value: float, run: str, seeded: bool) -> SearchSettings:
    values = {name: getattr(settings, name) for name in SearchSettings.model_fields}
    whole = settings.swept in ("target_size", "drop_blocks")
    values |= {settings.swept: int(value) if whole else value, "run": run}
    if seeded:
        most = settings.generations if settings.generations is not None else USUAL_GENERATIONS
        given = settings.seeded_generations
        values["generations"] = given if given is not None else -(-most // SEEDED)
    return SearchSettings(**values)


def _adapting(other: str, configuration: Mapping[str, str]) -> Baseline:
    """The best of random ways to bring a configuration to another budget, where genes go down, or up, until it is met;
    and of the level that meets it in every gene, if there is one."""

    def choose(problem: Problem) -> Genotype:
        near = _nearest(problem.space, configuration)
        draws = rng(problem.seed, 0, Purpose.START)
        uniform = problem.space.uniform()
        candidates = [*initial(problem.space, problem.candidates, draws, near=near), *([uniform] if uniform else [])]
        return candidates[int(np.argmin(problem.losses(candidates)))]

    return Baseline(f"adapted from {other}", choose)


def _nearest(space: Space, configuration: Mapping[str, str]) -> Genotype:
    """The genotype of a configuration, within the limits or not; genes without such a level take their middle one."""

    def index(gene: Gene) -> int:
        level = configuration.get(gene.sites[0])
        return gene.levels.index(level) if level in gene.levels else len(gene.levels) // 2

    return tuple(map(index, space.genes))
