"""The tokens of a batch as one run, and back to blocks.

Holds: `PlacedTeacher`, `place`, `flat`, `block_sums`, `by_block`.

Legend: B blocks of the batch, T padded length, N tokens that count, D hidden, K ids per token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evoray.errors import EvorayError
from evoray.fitness.teacher import TeacherBlock


class PlacedTeacher(NamedTuple):
    """The teacher's part of a batch on the evaluator's device, brought there once for all candidates.

    Attributes:
        vectors_ND: of all tokens that count, block after block, in the dtype they are kept in.
        scalars_N: float64.
        ids_NK: int64 in the form `topk`, None in the others.
    """

    vectors_ND: Tensor
    scalars_N: Tensor
    ids_NK: Tensor | None = None


def place(teacher: Sequence[TeacherBlock], cuts_B: Sequence[int], device: torch.device) -> PlacedTeacher:
    """Brings the teacher's part of a batch to the device.

    Raises:
        EvorayError: it does not belong to these blocks.
    """
    held = [len(block.scalars) for block in teacher]
    if held != list(cuts_B):
        raise EvorayError(f"a teacher of {held} tokens per block was given for a batch cut to {list(cuts_B)}")
    ids = [block.ids for block in teacher if block.ids is not None]
    return PlacedTeacher(
        torch.from_numpy(np.concatenate([block.vectors for block in teacher])).to(device),
        torch.from_numpy(np.concatenate([block.scalars for block in teacher])).to(device),
        torch.from_numpy(np.concatenate(ids)).to(device, torch.int64) if ids else None,
    )


def flat(hidden_BTD: Tensor, cuts_B: Sequence[int]) -> Tensor:
    """The tokens that count, block after block: [N, D]. Padding never reaches the head."""
    return torch.cat([hidden_BTD[row, :cut] for row, cut in enumerate(cuts_B)])


def block_sums(loss_N: Tensor, cuts_B: Sequence[int]) -> np.ndarray:
    """Sums of consecutive runs of `cuts_B` tokens. numpy sums on the host, so their order is the same everywhere."""
    return np.array([loss.sum() for loss in by_block(loss_N.double(), cuts_B)])


def by_block(values: Tensor, cuts_B: Sequence[int]) -> list[np.ndarray]:
    """Consecutive runs of `cuts_B` rows of a tensor, on the host."""
    ends = np.cumsum(cuts_B)
    held = values.cpu().numpy()
    return [held[end - cut : end] for cut, end in zip(cuts_B, ends, strict=True)]
