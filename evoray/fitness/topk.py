"""KL divergence to the base model over the base model's top k tokens.

Holds: `BucketHead`, `TopLosses`.

Legend: B blocks of the batch, T padded length, N tokens that count, D hidden, K top tokens, M = K + 1 buckets.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evoray.errors import EvorayError
from evoray.fitness.batch import PlacedTeacher, block_sums, by_block, flat
from evoray.fitness.teacher import TeacherBlock, TeacherForm


class BucketHead(Protocol):
    """A head that tells some logits and what all others come to. See `LinearHead`."""

    def top(self, hidden_ND: Tensor, k: int) -> Tensor: ...

    def buckets(self, hidden_ND: Tensor, ids_NK: Tensor) -> Tensor: ...


class TopLosses:
    """KL over k + 1 outcomes, or over k.

    Teacher and student logits are taken from the same products in the same order, and each distribution is normalised
    in float64 over its own buckets. What float32 does to a logit so moves a distribution a little, and costs in the
    square of a small difference, where an error of a log-probability would cost as it is.

    Args:
        head: of the model.
        k: top tokens; the whole vocabulary where it is smaller.
    """

    form = TeacherForm.topk

    def __init__(self, head: BucketHead, k: int) -> None:
        self.head = head
        self.k = k

    def teach(self, hidden_BTD: Tensor, cuts_B: Sequence[int]) -> list[TeacherBlock]:
        """The teacher's part of each block, from the base model's last hidden states."""
        hidden_ND = flat(hidden_BTD, cuts_B)
        ids_NK = self.head.top(hidden_ND, self.k)
        # float64: 12 bytes per top token are few, and float32 would round log-probabilities by up to 1e-6.
        log_p_NM = self.head.buckets(hidden_ND, ids_NK).log_softmax(1)
        parts = (log_p_NM[:, :-1], log_p_NM[:, -1], ids_NK.int())
        return [
            TeacherBlock(vectors, scalars, ids)
            for vectors, scalars, ids in zip(*(by_block(part, cuts_B) for part in parts), strict=True)
        ]

    def kl(self, hidden_BTD: Tensor, cuts_B: Sequence[int], teacher: PlacedTeacher) -> np.ndarray:
        """KL over the teacher's top tokens and the rest as one outcome: no more than that over the vocabulary.

        Returns:
            float64 [B]: sums over each block's tokens, nats.

        Raises:
            EvorayError: a teacher of another form.
        """
        log_q_NM = self._buckets(hidden_BTD, cuts_B, teacher).log_softmax(1)
        log_p_NM = torch.cat([teacher.vectors_ND, teacher.scalars_N[:, None]], 1)
        return block_sums(_kl(log_p_NM, log_q_NM), cuts_B)

    def kl_renormalised(self, hidden_BTD: Tensor, cuts_B: Sequence[int], teacher: PlacedTeacher) -> np.ndarray:
        """KL within the teacher's top tokens, both models renormalised there; EvoPress's sparse KL. As `kl` else."""
        log_q_NK = self._buckets(hidden_BTD, cuts_B, teacher)[:, :-1].log_softmax(1)
        return block_sums(_kl(teacher.vectors_ND.log_softmax(1), log_q_NK), cuts_B)

    def _buckets(self, hidden_BTD: Tensor, cuts_B: Sequence[int], teacher: PlacedTeacher) -> Tensor:
        if teacher.ids_NK is None:
            raise EvorayError("a teacher without top tokens was given for a KL over top tokens")
        return self.head.buckets(flat(hidden_BTD, cuts_B), teacher.ids_NK)


def _kl(log_p_NM: Tensor, log_q_NM: Tensor) -> Tensor:
    """sum p (log p - log q) of each row; an outcome that can't happen adds nothing, whatever q says of it."""
    p_NM = log_p_NM.exp()
    return torch.where(p_NM > 0, p_NM * (log_p_NM - log_q_NM), 0.0).sum(1)
