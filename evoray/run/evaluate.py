"""The verb eval: how a configuration, or the base model, does on a text.

Holds: `evaluate`, `Evaluation`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evoray.cluster import open_pool
from evoray.configuration import Configuration
from evoray.model import checkpoint_facts, load_tokenizer
from evoray.run.judge import judge
from evoray.run.named import configuration_of, with_sources
from evoray.run.plan import (
    USUAL_SEQUENCE,
    block_length,
    located,
    quantized_store,
    worker_memory,
    worker_spec,
)
from evoray.run.progress import Progress
from evoray.settings import EvalSettings
from evoray.space import Costs, configuration_costs, judging_rows
from evoray.tokens import BosPolicy, Role, read_text, resolve_bos


@dataclass(frozen=True)
class Evaluation:
    """What eval found.

    Attributes:
        perplexity: of the configuration.
        kl: to the base model, nats per token.
        base_perplexity: of the base model on the same text.
        tokens: of the text.
        documents: of the text.
        costs: of the configuration; None for the base model alone.
    """

    perplexity: float
    kl: float
    base_perplexity: float
    tokens: int
    documents: int
    costs: Costs | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate(settings: EvalSettings, progress: Progress | None = None) -> Evaluation:
    """Judges a configuration, or the base model, on any text.

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
    manifest = None
    if settings.configuration is not None:
        configuration = configuration_of(settings.configuration)
    settings = located(with_sources(settings))
    assert settings.model is not None
    if settings.store is not None:
        manifest = quantized_store(settings.store).manifest
    rows_NL = np.zeros((1, 0), dtype=np.int8)
    if manifest is not None:
        rows_NL = np.stack([judging_rows(manifest, {}), judging_rows(manifest, configuration or {})])
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    if manifest is not None:
        manifest.check_made_from(settings.model, facts.weights_digest)
    tokenizer = load_tokenizer(settings.model, facts.revision or settings.revision, settings.trust_remote_code)
    text = read_text(
        settings.data,
        Role(settings.role),
        tokenizer,
        sequence_length=block_length(settings.sequence_length, facts, USUAL_SEQUENCE),
        max_tokens=settings.eval_tokens,
        bos=resolve_bos(BosPolicy(settings.bos), tokenizer),
        separator=settings.separator,
        seed=settings.seed,
    )
    started = progress.starting(settings.workers)
    with open_pool(
        worker_spec(settings, facts, settings.store),
        workers=settings.workers,
        address=settings.address,
        allow_mixed=settings.allow_mixed,
        wait=settings.wait,
        memory=worker_memory(settings, facts, manifest),
        note=progress.note,
    ) as pool:
        started(1.0)
        for note in pool.notes:
            progress.note(f"note: {note}")
        judged = judge(
            pool, rows_NL, text, tokens_per_pass=settings.tokens_per_pass, progress=progress.stage("judging")
        )
    return Evaluation(
        perplexity=judged[-1].perplexity,
        kl=judged[-1].kl,
        base_perplexity=judged[0].perplexity,
        tokens=text.tokens,
        documents=len(text.document_digests),
        costs=configuration_costs(manifest, configuration)
        if manifest is not None and configuration is not None
        else None,
    )
