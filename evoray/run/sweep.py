"""The verb sweep: searches for several budgets in one job. Model and teacher are loaded once; each budget seeds the
next.

Holds: `sweep`, `Sweep`, `planned`.

Under the sweep's folder lies a run directory for each budget, as a search of its own leaves it; `sweep.json` says which
budget seeded which, so that going on does the same, and a later call adds budgets.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evoray.baselines import Baseline, Problem
from evoray.cluster import Pool, WorkerSpec
from evoray.cluster.capacity import HostMemory
from evoray.errors import UserError
from evoray.evolve import Purpose, initial, rng
from evoray.run.best import SearchResult
from evoray.run.named import read_best
from evoray.run.plan import USUAL_GENERATIONS
from evoray.run.progress import Progress
from evoray.run.search import Shared, search
from evoray.run.workers import located, started_pool
from evoray.settings import ChoiceSettings, EvalSettings, SearchSettings, SweepSettings, command_of, flag
from evoray.space import Gene, Genotype, Space
from evoray.store import Location

SWEEP = "sweep.json"


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
        UserError: a mistake in the settings, or a folder of another sweep.
        EvorayError: workers or storage fail.
    """
    progress = progress or Progress()
    folder, budget = Location.parse(settings.run), settings.swept
    searches = planned(settings)
    _write(folder, budget, {value: seed for value, (_, seed) in searches.items()})
    found: dict[float, SearchResult] = {}
    with _Lending() as lending:
        for value, (search_settings, seed) in searches.items():
            if value not in getattr(settings, budget):
                # Of an earlier call; it is not gone on with, but seeds others.
                best = read_best(Location.parse(search_settings.run))
                if best is not None and "held_out" in best:
                    found[value] = SearchResult(search_settings.run, best, "as an earlier call left it")
                continue
            if seed is not None and seed not in found:
                raise UserError(
                    f"{folder} has {_name(budget, seed)} half done, which seeds {_name(budget, value)}; "
                    f"name {seed:g} in {flag(budget)}, too"
                )
            progress.note(f"{_name(budget, value)}" + (f", seeded by {seed:g}" if seed is not None else ""))
            adapting = _adapting(f"{seed:g}", found[seed].configuration) if seed is not None else None
            shared = Shared(lending.pool, folder / "teacher", adapting, command_of("sweep", located(settings), {}))
            found[value] = search(search_settings, progress, shared)
    results = {value: found[value] for value in sorted(found, reverse=_dearest_is_largest(budget))}
    return Sweep(str(folder), budget, results)


def planned(settings: SweepSettings) -> dict[float, tuple[SearchSettings, float | None]]:
    """The searches of a sweep, with those of earlier calls, each behind the one that seeds it.

    Returns:
        Value of the budget -> settings, and the value that seeds it.

    Raises:
        UserError: the folder is of a sweep over another kind of budget, or damaged.
    """
    folder, budget = Location.parse(settings.run), settings.swept
    seeds = _seeds(folder, budget, getattr(settings, budget))
    return {
        value: (
            _settings_of(settings, value, str(folder / _name(budget, value)), seeds[value] is not None),
            seeds[value],
        )
        for value in _in_order(seeds)
    }


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


@dataclass(frozen=True)
class _Record:
    """What sweep.json says."""

    budget: str
    seeds: dict[float, float | None] = field(default_factory=dict)


def _seeds(folder: Location, budget: str, values: Sequence[float]) -> dict[float, float | None]:
    """Each budget with the one that seeds it: the nearest of those before it. What was settled once stays.

    Raises:
        UserError: the folder is of a sweep over another kind of budget, or damaged.
    """
    record = _Record(budget)
    if (folder / SWEEP).exists():
        try:
            read = json.loads((folder / SWEEP).read_bytes())
            record = _Record(read["budget"], {float(pair[0]): pair[1] for pair in read["seeds"]})
        except (ValueError, KeyError, TypeError, IndexError):
            raise UserError(f"{folder / SWEEP} is damaged; give another --run") from None
    if record.budget != budget:
        raise UserError(f"{folder} holds a sweep over {flag(record.budget)}; give another --run")
    seeds = dict(record.seeds)
    for value in sorted(values, reverse=_dearest_is_largest(budget)):
        if value not in seeds:
            seeds[value] = min(seeds, key=lambda other: (abs(other - value), other), default=None)
    return seeds


def _write(folder: Location, budget: str, seeds: Mapping[float, float | None]) -> None:
    text = json.dumps({"budget": budget, "seeds": list(map(list, seeds.items()))}, indent=1)
    (folder / SWEEP).write_bytes(text.encode())


def _in_order(seeds: Mapping[float, float | None]) -> list[float]:
    """Each budget behind the one that seeds it."""
    ordered: list[float] = []
    while len(ordered) < len(seeds):
        ordered += [value for value in seeds if value not in ordered and seeds[value] in (None, *ordered)]
    return ordered


def _dearest_is_largest(budget: str) -> bool:
    return budget not in ("target_sparsity", "drop_blocks")


def _name(budget: str, value: float) -> str:
    return f"{budget.replace('_', '-')}-{value if isinstance(value, int) else format(value, 'g')}"


def _settings_of(settings: SweepSettings, value: float, run: str, seeded: bool) -> SearchSettings:
    values = {name: getattr(settings, name) for name in SearchSettings.model_fields}
    whole = settings.swept in ("target_size", "drop_blocks")
    values |= {settings.swept: int(value) if whole else value, "run": run}
    if seeded:
        most = settings.generations if settings.generations is not None else USUAL_GENERATIONS
        given = settings.seeded_generations
        values["generations"] = given if given is not None else -(-most // 2)
    return SearchSettings(**values)


def _adapting(other: str, configuration: Mapping[str, str]) -> Baseline:
    """The best of random ways to bring a configuration to another budget: genes go down, or up, until it is met."""

    def choose(problem: Problem) -> Genotype:
        near = _nearest(problem.space, configuration)
        draws = rng(problem.seed, 0, Purpose.START)
        candidates = initial(problem.space, problem.candidates, draws, near=near)
        return candidates[int(np.argmin(problem.losses(candidates)))]

    return Baseline(f"adapted from {other}", choose)


def _nearest(space: Space, configuration: Mapping[str, str]) -> Genotype:
    """The genotype of a configuration, within the limits or not; genes without such a level take their middle one."""

    def index(gene: Gene) -> int:
        level = configuration.get(gene.sites[0])
        return gene.levels.index(level) if level in gene.levels else len(gene.levels) // 2

    return tuple(map(index, space.genes))
