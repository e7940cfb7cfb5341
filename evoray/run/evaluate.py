"""The verb eval: how a configuration, or the base model, does on a text and on tasks.

Holds: `evaluate`, `Evaluation`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from evoray.configuration import DROPPED, KEPT, Configuration
from evoray.model import Droppable, Facts, checkpoint_facts, load_tokenizer
from evoray.run.bare import bare_manifest
from evoray.run.ground import USUAL_SEQUENCE, block_length
from evoray.run.judge import Judgement, judge
from evoray.run.named import configuration_of, resolve_sites, with_sources
from evoray.run.progress import Progress
from evoray.run.shapes import probed_shapes
from evoray.run.tasks import TaskScore, find_tasks, run_tasks
from evoray.run.workers import located, started_pool, worker_memory, worker_spec
from evoray.settings import EvalSettings
from evoray.space import Costs, configuration_costs, judging_rows
from evoray.space.costs import check_configuration
from evoray.store import VariantStore
from evoray.tokens import BosPolicy, Role, TextSource, TokenText, read_text, resolve_bos


@dataclass(frozen=True)
class Evaluation:
    """What eval found.

    Attributes:
        perplexity: of the configuration; None where no text was judged on.
        kl: to the base model, nats per token; likewise.
        base_perplexity: of the base model on the same text; likewise.
        tokens: of the text.
        documents: of the text.
        costs: of the configuration; None for the base model alone.
        tasks: scores of tasks, of the configuration or the base model.
    """

    perplexity: float | None
    kl: float | None
    base_perplexity: float | None
    tokens: int
    documents: int
    costs: Costs | None
    tasks: tuple[TaskScore, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate(settings: EvalSettings, progress: Progress | None = None) -> Evaluation:
    """Judges a configuration, or the base model, on any text and any tasks.

    Args:
        settings: what to judge, on which text, with whom. Model, revision and store are those of the run where they
            are not given.
        progress: told what happens.

    Raises:
        UserError: a mistake in the settings.
        EvorayError: workers or storage fail.
    """
    progress = progress or Progress()
    configuration: Configuration | None = None
    if settings.configuration is not None:
        configuration = configuration_of(settings.configuration)
    settings = located(with_sources(settings))
    assert settings.model is not None
    store = VariantStore.open(settings.store) if settings.store is not None else None
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    costs = None
    if store is not None:
        store.manifest.check_made_from(settings.model, facts.weights_digest)
    if configuration is not None:
        configuration = resolve_sites(configuration, facts.droppable)
        priced = store.manifest if store is not None else bare_manifest(facts)
        costs = configuration_costs(priced, configuration, facts.droppable)
    dropped = _dropped(facts, configuration or {})
    rows_NL = _rows(store, facts, configuration or {}, dropped)
    tasks = find_tasks(settings, progress) if settings.tasks else None
    text, judged = None, None
    if settings.data is not None:
        text = _text(settings, settings.data, facts)
        judged = _judged(settings, text, rows_NL, facts, store, dropped, progress)
    # Last: they have the device to themselves when the workers are gone.
    scores = run_tasks(settings, tasks, facts, store, configuration, progress) if tasks is not None else ()
    return Evaluation(
        perplexity=judged[-1].perplexity if judged else None,
        kl=judged[-1].kl if judged else None,
        base_perplexity=judged[0].perplexity if judged else None,
        tokens=text.tokens if text else 0,
        documents=len(text.document_digests) if text else 0,
        costs=costs,
        tasks=scores,
    )


def _dropped(facts: Facts, configuration: Configuration) -> tuple[Droppable, ...]:
    """What a configuration drops of a model: the columns that workers need behind the layers."""
    return tuple(site for site in facts.droppable if configuration.get(site.name) == DROPPED)


def _rows(
    store: VariantStore | None, facts: Facts, configuration: Configuration, dropped: Sequence[Droppable]
) -> np.ndarray:
    """The base model's row first, the configuration's last.

    Raises:
        UserError: sites or levels that there are not.
    """
    priced = store.manifest if store is not None else bare_manifest(facts)
    check_configuration(priced, configuration, facts.droppable)
    chosen = {site: level for site, level in configuration.items() if level != KEPT}
    return np.stack([judging_rows(priced, {}, dropped), judging_rows(priced, chosen, dropped)])


def _text(settings: EvalSettings, data: str, facts: Facts) -> TokenText:
    assert settings.model is not None
    role = Role(settings.role)
    usual = TextSource.parse(data).judged_tokens if role is Role.all else None
    tokenizer = load_tokenizer(settings.model, facts.revision or settings.revision, settings.trust_remote_code)
    return read_text(
        data,
        role,
        tokenizer,
        sequence_length=block_length(settings.sequence_length, facts, USUAL_SEQUENCE),
        max_tokens=settings.eval_tokens or usual,
        bos=resolve_bos(BosPolicy(settings.bos), tokenizer),
        separator=settings.separator,
        seed=settings.seed,
    )


def _judged(
    settings: EvalSettings,
    text: TokenText,
    rows_NL: np.ndarray,
    facts: Facts,
    store: VariantStore | None,
    dropped: Sequence[Droppable],
    progress: Progress,
) -> list[Judgement]:
    """The base model's judgement first, the configuration's last."""
    manifest = store.manifest if store is not None else None
    spec = replace(worker_spec(settings, facts, settings.store), droppable=tuple(site.name for site in dropped))
    with started_pool(settings, spec, worker_memory(settings, facts, manifest), progress) as pool:
        shapes = probed_shapes(pool, text, settings)
        return judge(pool, rows_NL, text, shapes=shapes, progress=progress.stage("judging"))
