"""What measurements of whole searches share: rows, texts, stores and the flags of their command lines.

Holds: `STORES`, `ROWS`, `SCHEDULE`, `add_flags`, `folder_of`, `trial`, `built_store`, `path_of`, `kl_of`.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evoray
from benchmarks.accepted import losses
from evoray.cluster import open_pool
from evoray.run.ground import plan_ground
from evoray.run.journal import Journal
from evoray.run.progress import Progress
from evoray.settings import SearchSettings
from evoray.space import Genotype
from evoray.store import Location

STORES: dict[str, dict[str, Any]] = {
    "quantization": {"kind": "quantization", "levels": "2,3,4,5,6", "group_size": 64},
    "sparsity": {"kind": "sparsity", "levels": "0.3,0.4,0.5,0.6,0.7,0.8,0.9"},
}
ROWS: dict[str, dict[str, Any]] = {
    "bits-3": {"store": "quantization", "target_bits": 3.0, "tie": "fused"},
    "bits-2.5": {"store": "quantization", "target_bits": 2.5, "tie": "fused"},
    "sparsity-0.5": {"store": "sparsity", "target_sparsity": 0.5},
    "sparsity-0.7": {"store": "sparsity", "target_sparsity": 0.7},
}
SCHEDULE = {"offspring": 32, "survivors": "8,2,1", "tokens": "512,4096,16384"}


def add_flags(parser: argparse.ArgumentParser, *, judge_tokens: int) -> None:
    """Model, texts, their sizes, workers and folder."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="text for Hessians and for the search")
    parser.add_argument("--judge-data", required=True, help="held-out text")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--hessian-tokens", type=int, default=65536)
    parser.add_argument("--search-tokens", type=int, default=262144)
    parser.add_argument("--judge-tokens", type=int, default=judge_tokens)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", default=None, help="where stores, runs and figures go; kept when given")


def folder_of(given: argparse.Namespace) -> Path:
    """Where stores and runs go."""
    folder = Path(given.folder or tempfile.mkdtemp(prefix="evoray-trials-"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def trial(given: argparse.Namespace, row: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Settings that all searches of a row and seed share.

    Args:
        given: of the flags.
        row: of `ROWS`.
        seed: of the searches.
        folder: where the stores lie.
    """
    return {
        "model": given.model,
        "data": given.data,
        "judge_data": given.judge_data,
        "sequence_length": given.sequence_length,
        "search_tokens": given.search_tokens,
        "seed": seed,
        "workers": given.workers,
        **row,
        **({"store": str(folder / row["store"])} if "store" in row else {}),
    }


def built_store(given: argparse.Namespace, name: str, folder: Path, progress: Progress) -> None:
    """Builds one of `STORES` where it is not there yet."""
    evoray.build(
        model=given.model,
        data=given.data,
        store=str(folder / name),
        sequence_length=given.sequence_length,
        hessian_tokens=given.hessian_tokens,
        progress=progress,
        **STORES[name],
    )


def path_of(run: str) -> list[tuple[int, Genotype]]:
    """Candidate tokens after each generation, and the parent then."""
    found, used = [], 0
    for row in Journal(Location.parse(run)).rows:
        used += row.tokens
        found.append((used, row.winner))
    return found


def kl_of(genotypes: Sequence[Genotype], shared: dict[str, Any], judge_tokens: int) -> dict[Genotype, float]:
    """Held-out KL in nats per token of each genotype, all on the same tokens.

    Args:
        genotypes: of the space of these settings.
        shared: of `trial`, with the budget.
        judge_tokens: of the held-out text.
    """
    distinct = list(dict.fromkeys(genotypes))
    settings = SearchSettings(run=str(Path(shared["store"]).parent / "unused"), judge_tokens=judge_tokens, **shared)
    _, ground = plan_ground(settings)
    with open_pool(ground.spec, workers=settings.workers, memory=ground.memory) as pool:
        judged_NB = losses(pool, ground, distinct, ground.judge_text, judge_tokens)
    return dict(zip(distinct, (judged_NB.sum(1) / ground.judge_text.tokens).tolist(), strict=True))
