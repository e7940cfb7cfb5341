"""Held-out losses of whole configurations.

Holds: `Judgement`, `judge`, `paired_interval`, `mean_differences`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from evoray.cluster import Pool
from evoray.evaluator import Work
from evoray.fitness import Fitness
from evoray.run.shapes import Shapes
from evoray.tokens import TokenText, all_batches

PASSES_TOGETHER = 32
"""Batches judged in one call: enough to keep all workers busy, and few enough that their teacher fits in memory."""


@dataclass(frozen=True)
class Judgement:
    """How one configuration does on a text that no decision saw.

    Attributes:
        kl: KL divergence to the base model, nats per token.
        perplexity: exp of the mean cross entropy per predicted token.
        kl_B: sum of KL per block in nats, float64 [blocks].
        tokens_B: tokens per block.
    """

    kl: float
    perplexity: float
    kl_B: np.ndarray
    tokens_B: np.ndarray


def judge(
    pool: Pool,
    rows_NL: np.ndarray,
    text: TokenText,
    *,
    shapes: Shapes,
    progress: Callable[[float], None] | None = None,
) -> list[Judgement]:
    """Judges candidates on every block of a text.

    Args:
        pool: who measures.
        rows_NL: int8, as `Space.rows` or `judging_rows` give them.
        text: the held-out text.
        shapes: of passes.
        progress: told the share that is done, 0 to 1.
    """
    batches = all_batches(text, shapes.tokens_per_pass)
    kl_parts, entropy_parts, counted, predicted = [], [], [], []
    for first in range(0, len(batches), PASSES_TOGETHER):
        chunk = batches[first : first + PASSES_TOGETHER]
        plain = [Work(batch.ids(text), batch.cuts, vocabulary_chunk=shapes.vocabulary_chunk) for batch in chunk]
        taught = [replace(work, teacher=tuple(blocks)) for work, blocks in zip(plain, pool.teach(plain), strict=True)]
        kl_parts.append(pool.measure(rows_NL, taught, Fitness.kl))
        entropy_parts.append(pool.measure(rows_NL, plain, Fitness.perplexity))
        cuts = [cut for batch in chunk for cut in batch.cuts]
        counted.append(Fitness.kl.counted(cuts))
        predicted.append(Fitness.perplexity.counted(cuts))
        if progress:
            progress(min(1.0, (first + len(chunk)) / len(batches)))
    kl_NB, entropy_NB = np.concatenate(kl_parts, axis=1), np.concatenate(entropy_parts, axis=1)
    tokens_B, predicted_B = np.concatenate(counted), np.concatenate(predicted)
    return [
        Judgement(
            kl=float(kl_B.sum() / tokens_B.sum()),
            perplexity=_exp(float(entropy_B.sum() / predicted_B.sum())),
            kl_B=kl_B,
            tokens_B=tokens_B,
        )
        for kl_B, entropy_B in zip(kl_NB, entropy_NB, strict=True)
    ]


def paired_interval(found: Judgement, other: Judgement) -> tuple[float, float]:
    """The mean paired difference in KL, found minus other, and the half width of its 95% interval, nats per token.

    The interval is infinite for a single block, and where a loss is.
    """
    if not (math.isfinite(found.kl) and math.isfinite(other.kl)):
        return (0.0 if found.kl == other.kl else found.kl - other.kl), math.inf
    mean_N, width_N = mean_differences((found.kl_B - other.kl_B)[None], found.tokens_B)
    return float(mean_N[0]), float(width_N[0])


def mean_differences(difference_NB: np.ndarray, tokens_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean differences per token over blocks, and the half widths of their 95% intervals.

    The blocks are the sample: a ratio estimate, since they differ in length (Cochran, Sampling Techniques, ch. 6).

    Args:
        difference_NB: float64 [N, B], sums per block.
        tokens_B: tokens per block.

    Returns:
        float64 [N] each; the intervals are infinite for a single block.
    """
    total, blocks = tokens_B.sum(), len(tokens_B)
    mean_N = difference_NB.sum(1) / total
    if blocks < 2:
        return mean_N, np.full(len(difference_NB), np.inf)
    residual_NB = difference_NB - mean_N[:, None] * tokens_B
    return mean_N, 1.96 * (np.sqrt((residual_NB**2).sum(1) * blocks / (blocks - 1)) / total)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
