"""The verbs as Python functions, and the short ways to the parts.

Holds: `build`, `search`, `sweep`, `baseline`, `evaluate`, `export_checkpoint`, `search_text`, `open_pool`.
"""

from pathlib import Path
from typing import Any

from evoray.cluster import Pool, WorkerSpec
from evoray.cluster import open_pool as _open_pool
from evoray.model import checkpoint_facts, load_tokenizer
from evoray.run.baseline import run_baseline
from evoray.run.best import SearchResult
from evoray.run.build import run_build
from evoray.run.evaluate import Evaluation
from evoray.run.evaluate import evaluate as _evaluate
from evoray.run.export import run_export
from evoray.run.ground import USUAL_SEQUENCE, block_length
from evoray.run.progress import Progress
from evoray.run.search import search as _search
from evoray.run.shapes import Shapes
from evoray.run.sweep import Sweep
from evoray.run.sweep import sweep as _sweep
from evoray.run.teacher import TaughtText, teach_text
from evoray.settings import (
    BaselineSettings,
    BuildSettings,
    EvalSettings,
    ExportSettings,
    SearchSettings,
    SweepSettings,
    load_settings,
)
from evoray.store import Manifest
from evoray.tokens import BosPolicy, Role, read_text, resolve_bos


def build(*, config: str | Path | None = None, progress: Progress | None = None, **settings: Any) -> Manifest:
    """Makes variants; arguments are the flags of `evoray build` with underscores.

    Raises:
        UserError: a mistake in the settings.
    """
    return run_build(load_settings(BuildSettings, settings, config), progress)


def search(*, config: str | Path | None = None, progress: Progress | None = None, **settings: Any) -> SearchResult:
    """Searches; arguments are the flags of `evoray search` with underscores.

    Raises:
        UserError: a mistake in the settings.
    """
    return _search(load_settings(SearchSettings, settings, config), progress)


def baseline(*, config: str | Path | None = None, progress: Progress | None = None, **settings: Any) -> SearchResult:
    """Finds and judges a baseline; arguments are the flags of `evoray baseline` with underscores.

    Raises:
        UserError: a mistake in the settings.
    """
    return run_baseline(load_settings(BaselineSettings, settings, config), progress)


def sweep(*, config: str | Path | None = None, progress: Progress | None = None, **settings: Any) -> Sweep:
    """Searches for several budgets; arguments are the flags of `evoray sweep` with underscores.

    Raises:
        UserError: a mistake in the settings.
    """
    return _sweep(load_settings(SweepSettings, settings, config), progress)


def evaluate(*, config: str | Path | None = None, progress: Progress | None = None, **settings: Any) -> Evaluation:
    """Judges; arguments are the flags of `evoray eval` with underscores.

    Raises:
        UserError: a mistake in the settings.
    """
    return _evaluate(load_settings(EvalSettings, settings, config), progress)


def export_checkpoint(*, config: str | Path | None = None, **settings: Any) -> Path:
    """Writes a checkpoint; arguments are the flags of `evoray export` with underscores.

    Raises:
        UserError: a mistake in the settings.
    """
    return run_export(load_settings(ExportSettings, settings, config))


def open_pool(
    model: str,
    store: str | None = None,
    *,
    workers: int | str | None = None,
    address: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 1,
    revision: str | None = None,
    gpus_per_worker: int = 1,
) -> Pool:
    """Workers for a driver of your own.

    Args:
        model: a folder, a model id, or `embedded`.
        store: of its variants.
        workers: 0 for this process, without Ray; None for one per GPU, or one per core; or "MIN..MAX".
        address: of a running Ray cluster.
        device: auto, cpu or cuda.
        dtype: what the model runs in; auto: the checkpoint's own on CUDA, float32 on CPUs.
        threads: of torch, per worker.
        revision: branch, tag or commit of the model on the hub.
        gpus_per_worker: GPUs of one node that each worker spreads the model's blocks over.

    Raises:
        UserError: a model or store that can't be read, or several GPUs per worker where there are none.
    """
    spec = WorkerSpec(
        model=model,
        store=store,
        device=device,
        dtype=dtype,
        threads=threads,
        revision=revision,
        gpus=gpus_per_worker,
    )
    return _open_pool(spec, workers=workers, address=address)


def search_text(
    pool: Pool,
    model: str,
    data: str,
    *,
    tokens: int = 65536,
    role: str = "search",
    sequence_length: int = USUAL_SEQUENCE,
    tokens_per_pass: int = 2048,
) -> TaughtText:
    """A text cut into token blocks, with the base model's part of the KL divergence.

    Args:
        pool: computes the teacher's part.
        model: whose tokenizer cuts the text.
        data: a file, a folder, `embedded`, or NAME[:config][:split][:column] of the hub.
        tokens: most tokens of it.
        role: which share of the documents: hessian, search, judge or all.
        sequence_length: most tokens of a block.
        tokens_per_pass: most tokens of a forward pass.

    Raises:
        UserError: the text can't be read or is empty.
    """
    facts = checkpoint_facts(model)
    tokenizer = load_tokenizer(model)
    text = read_text(
        data,
        Role(role),
        tokenizer,
        sequence_length=block_length(sequence_length, facts, USUAL_SEQUENCE),
        max_tokens=tokens,
        bos=resolve_bos(BosPolicy.auto, tokenizer),
    )
    return teach_text(pool, text, shapes=Shapes(tokens_per_pass))
