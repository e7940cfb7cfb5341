"""What best.json says: a configuration, its exact costs, its fitness, where it comes from, and how it is judged.

Holds: `SearchResult`, `best_record`, `judged_candidates`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evoray.cluster import Pool
from evoray.cluster.worker import versions
from evoray.run.ground import Ground
from evoray.run.judge import judge, paired_interval
from evoray.run.progress import Progress
from evoray.settings import ChoiceSettings
from evoray.space import Genotype


@dataclass(frozen=True)
class SearchResult:
    """What a search or a baseline found.

    Attributes:
        run: the run directory.
        best: what best.json holds.
        reason: why it ended.
    """

    run: str
    best: dict[str, Any]
    reason: str

    @property
    def configuration(self) -> dict[str, str]:
        """Site -> level."""
        return dict(self.best["configuration"])


def best_record(
    ground: Ground,
    settings: ChoiceSettings,
    pool: Pool,
    genotype: Genotype,
    *,
    fitness: float | None,
    generation: int,
    candidate_tokens: int,
    seconds: float,
) -> dict[str, Any]:
    """best.json without what judging adds.

    Args:
        ground: of the search or baseline.
        settings: as resolved.
        pool: who measured.
        genotype: the best.
        fitness: its loss in nats per token where the search measured it last, or None.
        generation: that found it; 0 for a baseline.
        candidate_tokens: that it took.
        seconds: that it took.
    """
    return {
        "configuration": ground.space.configuration(genotype),
        **asdict(ground.space.summary(genotype)),
        "fitness": {"name": ground.fitness.value, "nats_per_token": fitness, "inverted": settings.invert},
        "generation": generation,
        "candidate_tokens": candidate_tokens,
        "seconds": seconds,
        "seed": settings.seed,
        "model": settings.model,
        "revision": ground.facts.revision,
        "store": settings.store,
        "digests": ground.digests,
        "versions": versions(),
        "device": asdict(pool.record),
    }


def judged_candidates(
    ground: Ground, settings: ChoiceSettings, pool: Pool, named: Mapping[str, Genotype], progress: Progress
) -> dict[str, Any]:
    """Judges candidates beside the one called `found`, on the held-out text.

    Args:
        ground: of the search or baseline.
        settings: as resolved.
        pool: who measures.
        named: name -> genotype, `found` among them; equal ones are measured once.
        progress: told what happens.
    """
    space = ground.space
    distinct = list(dict.fromkeys(named.values()))
    judgements = judge(
        pool,
        space.rows(distinct),
        ground.judge_text,
        tokens_per_pass=settings.tokens_per_pass,
        progress=progress.stage("judging"),
    )
    judged = dict(zip(distinct, judgements, strict=True))
    candidates = {}
    for name, genotype in named.items():
        difference, half_width = paired_interval(judged[named["found"]], judged[genotype])
        candidates[name] = {
            **asdict(space.summary(genotype)),
            "kl": judged[genotype].kl,
            "perplexity": judged[genotype].perplexity,
            "found_minus_this_kl": difference,
            "interval_95": half_width,
        }
    return {
        "data": settings.judge_data or settings.data,
        "tokens": ground.judge_text.tokens,
        "candidates": candidates,
    }
