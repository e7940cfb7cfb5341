"""The driver of a search: asks the strategy, has the race measured by the pool, journals, and judges the result.

Holds: `search`, `Shared`, `PoolOpener`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from evoray.baselines import Baseline, uniform
from evoray.cluster import Pool, WorkerSpec
from evoray.cluster.capacity import HostMemory
from evoray.errors import DeviceFullError, UserError
from evoray.evolve import Lessons, Measurement, OnePlusLambda, Purpose, Race, RaceResult, Told, of_genes, rng
from evoray.run.best import SearchResult, best_record, judged_candidates
from evoray.run.directory import IDENTITY, LEARNED, RunDirectory, differences, read_object, write_lessons
from evoray.run.journal import GenerationRecord, GenerationRow, Journal
from evoray.run.log import LOG, DriverLog
from evoray.run.logged import LoggedProgress, lacking
from evoray.run.named import read_best
from evoray.run.plan import SearchPlan, plan_search
from evoray.run.problem import find_by_baseline, least_errors
from evoray.run.progress import Progress
from evoray.run.shapes import Shapes, ShapesRecord, settled_shapes
from evoray.run.teacher import TaughtText, teach_text
from evoray.run.workers import started_pool
from evoray.settings import SearchSettings, command_of
from evoray.space import Genotype
from evoray.store import Location
from evoray.tokens import Batch, draw_batches


class PoolOpener(Protocol):
    """Opens workers, or lends those that there are; `started_pool` is one."""

    def __call__(
        self, settings: SearchSettings, spec: WorkerSpec, memory: HostMemory, progress: Progress, /
    ) -> AbstractContextManager[Pool]: ...


@dataclass(frozen=True)
class Shared:
    """What the searches of a sweep have in common.

    Attributes:
        run: the run directory, in the sweep's folder and with its guard.
        pool: lends the workers.
        teacher: where the teacher's part of the text lies.
        seed: finds the start; None for the usual one.
        lessons: that proposals begin with, where they are of the same genes; None for nothing.
        command: that gives the result again.
        earlier: run directories of other budgets, which must have been searched with the same settings.
        own: keys of an identity that are a budget's own.
    """

    run: Location
    pool: PoolOpener
    teacher: Location
    seed: Baseline | None
    lessons: Lessons | None
    command: str
    earlier: tuple[Location, ...]
    own: tuple[str, ...]

    def check(self, identity: Mapping[str, Any]) -> None:
        """Sees that searches of earlier calls may stand beside this one.

        Raises:
            UserError: one was searched with other settings.
        """
        mine = json.loads(json.dumps(identity))
        for run in self.earlier:
            theirs = read_object(run / IDENTITY)
            if theirs is not None and (differing := differences(theirs, mine, self.own)):
                raise UserError(
                    f"{run} was searched with other settings ({'; '.join(differing)}), and searches of a sweep differ "
                    "in their budget alone; give the same settings, or another --run"
                )


def search(settings: SearchSettings, progress: Progress | None = None, shared: Shared | None = None) -> SearchResult:
    """Runs a search, or goes on with the one that its run directory holds.

    Args:
        settings: what to search, for which budget, on which text, with whom.
        progress: told what happens.
        shared: by a sweep; None for a search of its own.

    Raises:
        UserError: a mistake in the settings, or a run directory of another run or in use.
        EvorayError: workers or storage fail.
    """
    progress = progress or Progress()
    plan = plan_search(settings, progress.step)
    seed = shared.seed if shared is not None else None
    if seed is not None:
        plan = replace(plan, init=seed.name)
    if shared is not None:
        shared.check(plan.identity)
    place = settings.run if shared is None else shared.run
    with RunDirectory(place, progress.note, settings.take_over) as run:
        run.settle(plan.identity, plan.settings.model_dump(mode="json"))
        journal, start = Journal(run.location), plan.start if plan.init is None else run.start()
        strategy = None
        if plan.init is None or start is not None:
            strategy = _replayed(plan, run, journal, start)
            reason = _why_stop(plan, run, journal, strategy)
            if reason is not None and (best := _concluded(run, plan, journal)) is not None:
                if names := lacking(settings.log_to, run.location, best):
                    with _logged(names, run, plan, journal, progress) as told:
                        told.concluded(best)
                return SearchResult(str(run.location), best, reason)
        log = DriverLog(run / LOG, progress)
        if journal.rows:
            log.note(f"going on with {run.location} after generation {journal.rows[-1].generation}")
        with (
            log,
            _logged(settings.log_to, run, plan, journal, log) as told,
            (started_pool if shared is None else shared.pool)(
                settings, plan.ground.spec, plan.ground.memory, told
            ) as pool,
        ):
            pool.at(str(run.location))  # a sweep's was opened for another run
            run.settle_device(asdict(pool.record), settings.allow_mixed)
            plan = replace(plan, settings=settled_shapes(run, pool, plan.ground, plan.settings))
            if plan.init is not None and start is None:
                lessons = _fitting(shared.lessons, plan, told) if shared is not None else None
                start = _start_of_baseline(plan, seed or plan.init, lessons, run, pool, told)
            teacher = run / "teacher" if shared is None else shared.teacher.guarded(run.check)
            command = shared.command if shared is not None else None
            strategy = strategy or _replayed(plan, run, journal, start)
            driver = _Driver(plan, run, journal, strategy, start, teacher, command, pool, told)
            reason = driver.evolve()
            return SearchResult(str(run.location), driver.conclude(), reason)


def _logged(
    names: Sequence[str], run: RunDirectory, plan: SearchPlan, journal: Journal, progress: Progress
) -> LoggedProgress:
    """Tells the loggers of these names as well."""
    return LoggedProgress(names, run.location, plan.settings.model_dump(mode="json"), journal.rows, progress)


def _replayed(plan: SearchPlan, run: RunDirectory, journal: Journal, start: Genotype | None) -> OnePlusLambda:
    """The strategy where the journal ends."""
    strategy = plan.strategy(start, run.taught() if plan.init is not None else None)
    try:
        for row in journal.rows:
            strategy.tell(row.outcome, _told(plan, journal, row) if plan.remembers else ())
    except ValueError as error:
        raise journal.damaged(str(error)) from None
    return strategy


def _told(plan: SearchPlan, journal: Journal, row: GenerationRow) -> list[Told]:
    """What a generation measured, as its race was told."""
    return [
        Told(each.measurement, _ranked(plan, each.losses_NB), plan.ground.fitness.counted(each.cuts))
        for each in journal.measurements(row)
    ]


def _ranked(plan: SearchPlan, losses_NB: np.ndarray) -> np.ndarray:
    """Losses as a race takes them: the smallest is best, and what is no number counts as infinitely bad."""
    return np.where(np.isfinite(losses_NB), plan.sign * losses_NB, np.inf)


def _fitting(lessons: Lessons | None, plan: SearchPlan, log: Progress) -> Lessons | None:
    """Lessons of another budget, where that has the same genes and levels."""
    if lessons is None or of_genes(lessons, plan.ground.space):
        return lessons
    log.note("what was learned for the other budget is of other levels, and not taken over")
    return None


def _start_of_baseline(
    plan: SearchPlan,
    baseline: str | Baseline,
    lessons: Lessons | None,
    run: RunDirectory,
    pool: Pool,
    log: Progress,
) -> Genotype:
    """Lets a baseline find the start, once; resuming reads it, and the lessons that proposals begin with."""
    assert plan.init is not None
    tokens = plan.settings.initial_tokens or plan.rungs[0].tokens
    # A baseline of ours counts as it does by itself; a sweep's draws as many as race for other starts.
    candidates = None if isinstance(baseline, str) else plan.settings.initial_candidates
    found = find_by_baseline(baseline, plan.ground, plan.settings, pool, log, tokens=tokens, candidates=candidates)
    run.write_start(found.genotype, plan.init, found.candidate_tokens, lessons)
    log.note(f"start: the choice of {plan.init}, with {found.candidate_tokens:,} candidate tokens")
    return found.genotype


def _used(plan: SearchPlan, run: RunDirectory, journal: Journal) -> int:
    """Candidate tokens so far, with those of the baseline that found the start."""
    # A try with a baseline that ended before its first generation may have left a start in this folder.
    return journal.tokens + (run.start_tokens() if plan.init is not None else 0)


def _why_stop(plan: SearchPlan, run: RunDirectory, journal: Journal, strategy: OnePlusLambda) -> str | None:
    limit = plan.settings.max_tokens
    if limit is not None and (used := _used(plan, run, journal)) >= limit:
        return f"--max-tokens {limit} reached with {used}"
    return strategy.reason


def _concluded(run: RunDirectory, plan: SearchPlan, journal: Journal) -> dict[str, Any] | None:
    """What best.json holds, where it is the judged result of the journal's last generation on the same texts."""
    try:
        best = read_best(run.location)
    except UserError:
        return None  # damaged: judged and written again
    last = journal.rows[-1].generation if journal.rows else 0
    same = best is not None and best.get("generation") == last and best.get("digests") == plan.ground.digests
    return best if same and best is not None and "held_out" in best else None


class _Driver:
    def __init__(
        self,
        plan: SearchPlan,
        run: RunDirectory,
        journal: Journal,
        strategy: OnePlusLambda,
        start: Genotype | None,
        teacher: Location,
        command: str | None,
        pool: Pool,
        progress: Progress,
    ) -> None:
        self.plan, self.ground, self.run, self.journal, self.start = plan, plan.ground, run, journal, start
        self.teacher, self.command = teacher, command
        self.strategy, self.pool, self.progress = strategy, pool, progress
        self.began = time.monotonic()

    def evolve(self) -> str:
        """Runs generations until the strategy or a limit ends it; returns why."""
        if (reason := self._why_stop()) is not None:
            return reason
        text = self._text()
        while (reason := self._why_stop()) is None:
            began = time.monotonic()
            self.pool.at(str(self.run.location), self.strategy.generation)
            self.pool.busy.take()  # what the teacher or the start took is of no generation
            record, lost = GenerationRecord(self.strategy.generation), self.pool.lost
            race, told = self.strategy.ask(), []
            try:
                while (wanted := race.ask()) is not None:
                    told.append(self._measure(text, race, wanted, record))
                    race.tell(told[-1].losses_NB, told[-1].tokens_B)
            except DeviceFullError as error:
                # Losses of one generation must be of the same shapes, so it is done again from its beginning.
                self._shrink_passes(error)
                text = self._text()
                continue
            row = self._row(race.result, record, time.monotonic() - began, self.pool.lost - lost)
            self.journal.commit(record, row)
            self.strategy.tell(row.outcome, told)
            self.run.write_best(self._best(row))
            self.progress.generation(row, self.strategy.generations)
            self._publish(row)
        return reason

    def _publish(self, row: GenerationRow) -> None:
        figures = {
            "generation": row.generation,
            "fitness": row.fitness,
            "bits": row.bits,
            "candidate_tokens_per_second": row.tokens / row.seconds if row.seconds else 0.0,
            "lost_workers": self.pool.lost,
        }
        busy = [seconds / row.seconds for seconds in row.busy_seconds] if row.seconds else []
        self.pool.publish(str(self.run.location), figures, busy)

    def _why_stop(self) -> str | None:
        if self.strategy.parent is None:
            return None  # without a start there is nothing to judge or to keep
        hours = self.plan.settings.max_hours
        reason = _why_stop(self.plan, self.run, self.journal, self.strategy)
        if reason is None and hours is not None and time.monotonic() - self.began >= hours * 3600:
            return f"--max-hours {hours} reached"
        return reason

    def _text(self) -> TaughtText:
        if not self.ground.fitness.needs_teacher:
            return TaughtText(self.ground.text, Shapes.of(self.plan.settings))
        return teach_text(
            self.pool,
            self.ground.text,
            shapes=Shapes.of(self.plan.settings),
            fitness=self.ground.fitness,
            weights_digest=self.ground.facts.weights_digest,
            folder=self.teacher,
            progress=self.progress.stage("teacher"),
        )

    def _shrink_passes(self, error: DeviceFullError) -> None:
        """Settles smaller passes for all workers; where there are none, the error stands."""
        longest = max(len(block) for block in self.ground.text.blocks)
        shapes = Shapes.of(self.plan.settings).smaller(longest)
        if shapes is None:
            raise error
        self.plan = replace(self.plan, settings=self.plan.settings.model_copy(update=asdict(shapes)))
        generation = self.strategy.generation
        ShapesRecord(self.run.location).add(shapes, generation, str(error))
        self.progress.note(
            f"generation {generation} is done again with passes of {shapes.tokens_per_pass} tokens and "
            f"{shapes.vocabulary_chunk} rows of the head at once: {error}"
        )

    def _measure(self, text: TaughtText, race: Race, wanted: Measurement, record: GenerationRecord) -> Told:
        self.run.check()  # what nobody may write any more need not be measured
        generation, space = record.generation, self.ground.space
        batches = self._batches(text, wanted, generation)

        def blocks(measurement: Measurement) -> int:
            return sum(len(batch.blocks) for batch in self._batches(text, measurement, generation))

        ahead = [
            (
                space.rows(each.measurement.genotypes),
                text.works(self._batches(text, each.measurement, generation + each.later)),
            )
            for each in (race.ahead(blocks) if self.pool.workers > 1 else ())
        ]
        share = self.progress.step(f"generation {generation}, rung {wanted.rung + 1}")
        losses_NB = self.pool.measure(
            space.rows(wanted.genotypes), text.works(batches), self.ground.fitness, share, ahead
        )
        share(1.0)
        record.add(wanted, batches, losses_NB)
        counted_B = self.ground.fitness.counted([cut for batch in batches for cut in batch.cuts])
        return Told(wanted, _ranked(self.plan, losses_NB), counted_B)

    def _batches(self, text: TaughtText, wanted: Measurement, generation: int) -> list[Batch]:
        """What a measurement of a generation is on."""
        draw = wanted.drawn
        purpose, number = (Purpose.LASTING, 0) if draw.lasting else (Purpose.BATCHES, generation)
        draws = rng(self.plan.settings.seed, number, purpose, draw.index)
        return draw_batches(text.text, wanted.tokens, draws, text.shapes.tokens_per_pass, skip=draw.skip)

    def _row(self, result: RaceResult, record: GenerationRecord, seconds: float, lost: int) -> GenerationRow:
        costs = self.ground.space.summary(result.winner)
        aside = {tuple(row): genotype for genotype, row in self._rows_of(sorted(record.candidates))}
        return GenerationRow(
            generation=record.generation,
            winner=result.winner,
            population=result.kept,
            fitness=self.plan.sign * result.fitness,
            parent_fitness=None if result.parent_fitness is None else self.plan.sign * result.parent_fitness,
            accepted=result.winner not in self.strategy.population,
            doubt=result.doubt,
            risk=result.risk,
            bits=costs.bits,
            bpw=costs.bpw,
            size=costs.size,
            sparsity=costs.sparsity,
            candidates=len(record.candidates),
            tokens=record.tokens,
            seconds=seconds,
            lost_workers=lost,
            busy_seconds=self.pool.busy.take(),
            set_aside=tuple(str(aside[row]) for row in sorted(self.pool.named_aside & aside.keys())),
            evaluations="",
            sha256="",
        )

    def _rows_of(self, genotypes: Sequence[Genotype]) -> list[tuple[Genotype, list[int]]]:
        return list(zip(genotypes, self.ground.space.rows(genotypes).tolist(), strict=True)) if genotypes else []

    def _best(self, row: GenerationRow | None) -> dict[str, Any]:
        """best.json without what judging adds."""
        parent = self.strategy.parent
        assert parent is not None
        return best_record(
            self.ground,
            self.plan.settings,
            self.pool,
            parent,
            fitness=row.fitness if row else None,
            generation=row.generation if row else 0,
            candidate_tokens=_used(self.plan, self.run, self.journal),
            seconds=self.journal.seconds,
            command=self.command
            or command_of("search", self.plan.settings, {"generations": row.generation if row else 0}),
        )

    def conclude(self) -> dict[str, Any]:
        """Judges found beside start, uniform and dp on the held-out text, and writes best.json."""
        parent = self.strategy.parent
        assert parent is not None
        best = self._best(self.journal.rows[-1] if self.journal.rows else None)
        named = {"found": parent, "start": self._start(), "uniform": uniform(self.ground.space)}
        if (by_errors := least_errors(self.ground, self.plan.settings)) is not None:
            named["dp"] = by_errors
        if (errors := self._expected_errors()) is not None:
            best["accepted"], said = errors
            self.progress.note(said)
        if self.strategy.generation > 1 and not self.strategy.raced:
            self.progress.note(
                f"all generations were surveys (--survey {self.plan.settings.survey}), in which nobody can win: raise "
                "--generations, with which the run goes on, or give another --run a smaller --survey"
            )
        best["held_out"] = judged_candidates(self.ground, self.plan.settings, self.pool, named, self.progress)
        if (lessons := self.strategy.lessons) is not None:
            write_lessons(self.run / LEARNED, lessons)
        self.run.write_best(best)
        self.progress.concluded(best)
        return best

    def _expected_errors(self) -> tuple[dict[str, Any], str] | None:
        """How many children replaced a parent, and how many of them, at most, are expected to be no better than it was;
        as figures and in words. None where the race does not say."""
        count = sum(row.doubt is not None for row in self.journal.rows)
        if not count:
            return None
        # Each race holds its bound whoever wins, so what is expected of all is the sum over all, in vain or not.
        false = min(sum(row.risk or 0.0 for row in self.journal.rows), count)
        children = "child" if count == 1 else "children"
        said = f"{count} {children} replaced the parent; {false:.2g} would have by chance alone, at most"
        return {"children": count, "false_at_most": false}, said

    def _start(self) -> Genotype:
        if self.start is not None:
            return self.start
        if self.journal.rows and self.journal.rows[0].generation == 0:
            return self.journal.rows[0].winner
        start = self.ground.space.uniform()
        assert start is not None
        return start
