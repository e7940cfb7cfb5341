"""How much a part of a model changes the hidden state that goes through it: the scores of the drop baselines.

Holds: `INFLUENCES`, `influence`.

The four measures are those that EvoPress compares with (arXiv 2410.14649, appendix on depth pruning).

Legend: N tokens, D hidden.
"""

import torch
from torch import Tensor

INFLUENCES = ("cosine", "norm-ratio", "l2", "l2-normalised")
"""The measures, in the order in which `influence` returns them. Of each, less means that the part matters less."""


def influence(before_ND: Tensor, behind_ND: Tensor) -> Tensor:
    """Measures, per token, what a part does to the state x before it, y being the one behind it.

    "cosine" is 1 - cos(x, y), "norm-ratio" |y - x| / |y|, "l2" |y - x|, "l2-normalised" |y/|y| - x/|x||. A state of
    length zero has no direction: it is taken as zero itself, and the ratio to it as infinite unless nothing changed.

    Args:
        before_ND: the states before the part, any floating dtype.
        behind_ND: the states behind it.

    Returns:
        float64 [4, N], in the order of `INFLUENCES`.
    """
    # In float64: the states of a deep model differ little, and 1 - cos of them would drown in float32.
    before_ND, behind_ND = before_ND.double(), behind_ND.double()
    tiny = torch.finfo(torch.float64).tiny
    behind_N1 = behind_ND.norm(dim=1, keepdim=True)
    before_unit_ND = before_ND / before_ND.norm(dim=1, keepdim=True).clamp(min=tiny)
    behind_unit_ND = behind_ND / behind_N1.clamp(min=tiny)
    change_N = (behind_ND - before_ND).norm(dim=1)
    return torch.stack(
        [
            1 - (before_unit_ND * behind_unit_ND).sum(1),
            torch.where(change_N > 0, change_N / behind_N1[:, 0], 0.0),
            change_N,
            (behind_unit_ND - before_unit_ND).norm(dim=1),
        ]
    )
