"""Outlier ratios of OWL (arXiv 2310.05175, section 3): `outlier_ratios`.

Shape letters: O out, I in.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLES = (3, 5, 7, 10)
"""The paper's M: a weight is an outlier if its score is above M times the layer's mean score."""


def outlier_ratios(weight_OI: Tensor, hessian_II: Tensor | None) -> dict[str, float]:
    """The share of a layer's weights that are outliers, by the score |w| * ||x||.

    Args:
        weight_OI: float32 [O, I].
        hessian_II: X^T X of the layer's input, up to a factor; None for the score |w|.

    Returns:
        M, as text -> share, for each M of `MULTIPLES`.
    """
    score_OI = weight_OI.abs()
    if hessian_II is not None:
        score_OI *= hessian_II.diagonal().clamp(min=0).sqrt().to(score_OI.dtype)
    mean = float(score_OI.sum(dtype=torch.float64)) / score_OI.numel()
    return {str(many): int((score_OI > many * mean).sum()) / score_OI.numel() for many in MULTIPLES}
