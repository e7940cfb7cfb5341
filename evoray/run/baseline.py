"""The verb baseline: what a search has to beat, found and judged for the same budget and in the same form.

Holds: `run_baseline`.
"""

import time
from dataclasses import asdict

from evoray.baselines import find_baseline, uniform
from evoray.errors import UserError
from evoray.run.best import SearchResult, best_record, judged_candidates
from evoray.run.directory import RunDirectory
from evoray.run.ground import plan_ground
from evoray.run.log import LOG, DriverLog
from evoray.run.named import read_best
from evoray.run.problem import choose_unmeasured, find_by_baseline
from evoray.run.progress import Progress
from evoray.run.shapes import settled_shapes
from evoray.run.workers import started_pool
from evoray.settings import BaselineSettings, command_of


def run_baseline(settings: BaselineSettings, progress: Progress | None = None) -> SearchResult:
    """Finds and judges a baseline; its run directory has the form of a search's.

    Args:
        settings: which baseline, for which budget, on which text, with whom.
        progress: told what happens.

    Raises:
        UserError: a mistake in the settings, or a baseline that does not apply.
        EvorayError: workers or storage fail.
    """
    progress = progress or Progress()
    find_baseline(settings.method)
    settings, ground = plan_ground(settings, progress.step)
    if settings.tokens > ground.text.tokens:
        raise UserError(
            f"--tokens {settings.tokens}: more tokens than the search text has ({ground.text.tokens} of "
            f"{settings.data}); lower it, raise --search-tokens, or give more text"
        )
    reason = f"the choice of the baseline {settings.method}"
    with RunDirectory(settings.run, progress.note, settings.take_over) as run:
        identity = ground.identity(settings, ("method", "tokens", "candidates"))
        run.settle(identity, settings.model_dump(mode="json"))
        best = read_best(run.location)
        if best is not None and "held_out" in best and best.get("digests") == ground.digests:
            return SearchResult(str(run.location), best, reason)
        choose_unmeasured(settings.method, ground, settings, candidates=settings.candidates)
        log = DriverLog(run / LOG, progress)
        with log, started_pool(settings, ground.spec, ground.memory, log) as pool:
            run.settle_device(asdict(pool.record), settings.allow_mixed)
            settings = settled_shapes(run, pool, ground, settings)
            began = time.monotonic()
            found = find_by_baseline(
                settings.method,
                ground,
                settings,
                pool,
                log,
                tokens=settings.tokens,
                candidates=settings.candidates,
            )
            best = best_record(
                ground,
                settings,
                pool,
                found.genotype,
                fitness=None,
                generation=0,
                candidate_tokens=found.candidate_tokens,
                seconds=time.monotonic() - began,
                command=command_of("baseline", settings, {}),
            ) | {"baseline": settings.method}
            named = {"found": found.genotype, "uniform": uniform(ground.space)}
            best["held_out"] = judged_candidates(ground, settings, pool, named, log)
            run.write_best(best)
            return SearchResult(str(run.location), best, reason)
