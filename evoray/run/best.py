"""What best.json says: a configuration, its exact costs, its fitness, where it comes from, and how it is judged.

Holds: `SearchResult`, `best_record`, `judged_candidates`, `doubts`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evoray.cluster import Pool
from evoray.cluster.worker import versions
from evoray.run.ground import Ground
from evoray.run.judge import judge, paired_interval
from evoray.run.progress import Progress
from evoray.run.shapes import Shapes
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
    command: str,
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
        command: that gives the result again.
    """
    return {
        "configuration": ground.space.configuration(genotype),
        **asdict(ground.space.summary(genotype)),
        "fitness": {"name": ground.fitness.value, "nats_per_token": fitness, "inverted": settings.invert},
        "generation": generation,
        "candidate_tokens": candidate_tokens,
        "seconds": seconds,
        "seed": settings.seed,
        "command": command,
        "model": settings.model,
        "revision": ground.facts.revision,
        "store": settings.store,
        "digests": ground.digests,
        "versions": versions(),
        "device": asdict(pool.record),
        "shapes": asdict(Shapes.of(settings)),
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
        shapes=Shapes.of(settings),
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
        "doubts": doubts(candidates, inverted=settings.invert),
    }


def doubts(candidates: Mapping[str, Mapping[str, Any]], *, inverted: bool = False) -> list[str]:
    """What a reader must not overlook: each candidate than which `found` is not better beyond the 95% interval.

    Args:
        candidates: name -> figures, as in best.json.
        inverted: the search was for the worst.
    """
    found, said = candidates["found"], []
    for name, figures in candidates.items():
        gain, width = -figures["found_minus_this_kl"], figures["interval_95"]
        if name == "found" or (-gain if inverted else gain) > width:
            continue
        if gain == width == 0:
            said.append(f"found is no other than {name}")
            continue
        worse = gain > width if inverted else -gain > width
        asked = "worse" if inverted else "better"
        judgement = f"is {'better' if inverted else 'worse'} than" if worse else f"is not {asked} than"
        said.append(
            f"found {judgement} {name}: KL {found['kl']:.5f} against {figures['kl']:.5f} nats/token, "
            f"difference {abs(gain):.5f} ± {width:.5f} (95%)"
        )
    return said
