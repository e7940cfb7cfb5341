"""Losses of token blocks from last hidden states: KL divergence to the base model, and cross entropy.

Holds: `Fitness`, `LossHead` (what the evaluator calls), built by `loss_head`.

Legend: B blocks of the batch, T padded length, N tokens that count, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evoray.errors import EvorayError
from evoray.fitness.batch import PlacedTeacher, block_sums, by_block, flat
from evoray.fitness.head import OWN_PATH_TOKENS, LinearHead, OwnPathHead
from evoray.fitness.teacher import TeacherBlock, TeacherForm
from evoray.fitness.topk import TopLosses
from evoray.model import ModelAdapter
from evoray.settings import TOP_K


class Fitness(StrEnum):
    """What is minimised, in nats per token.

    `kl`: KL(base || candidate) over the whole vocabulary. `kl_topk`: over k + 1 outcomes, the base model's top k tokens
    and all others as one, which is never more than `kl`. `kl_topk_renormalised`: over the k tokens alone, both
    models renormalised within them, as EvoPress has it; it does not see mass that leaves them.
    """

    kl = "kl"
    perplexity = "perplexity"
    kl_topk = "kl-topk"
    kl_topk_renormalised = "kl-topk-renormalised"

    @property
    def needs_teacher(self) -> bool:
        """Whether the base model's part is needed to measure it."""
        return self is not Fitness.perplexity

    @property
    def of_top_tokens(self) -> bool:
        """Whether it looks at the base model's top k tokens: its teacher is of the form `topk`."""
        return self in (Fitness.kl_topk, Fitness.kl_topk_renormalised)

    def counted(self, cuts_B: Sequence[int]) -> np.ndarray:
        """How many tokens of each block count, int64 [B]: all for KL; the last one predicts nothing measurable."""
        return np.asarray(cuts_B, dtype=np.int64) - (self is Fitness.perplexity)


# Rows of [tokens, hidden size] that are held in float64 at once: the product must not cost memory for a whole batch.
_DOUBLE_ROWS = 1024


class LossHead(Protocol):
    """Turns last hidden states into losses. All sums are float64, in nats, one per block.

    Attributes:
        form: how the teacher of `kl` is kept.
        top: the same over the base model's top k tokens.
    """

    form: TeacherForm
    top: TopLosses

    def teach(self, hidden_BTD: Tensor, cuts_B: Sequence[int]) -> list[TeacherBlock]:
        """The teacher's part of each block, from the base model's last hidden states."""
        ...

    def kl(self, hidden_BTD: Tensor, cuts_B: Sequence[int], teacher: PlacedTeacher) -> np.ndarray:
        """Sum over each block's tokens of KL(teacher || student), float64 [B]."""
        ...

    def cross_entropy(self, hidden_BTD: Tensor, cuts_B: Sequence[int], ids_BT: Tensor) -> np.ndarray:
        """Sum over each block's tokens but the last of -log p(next token), float64 [B]."""
        ...


def loss_head(adapter: ModelAdapter, chunk: int, top_k: int = TOP_K) -> LossHead:
    """The exact short cut where the model's head is linear, else its own output path.

    Args:
        adapter: the model.
        chunk: rows of a linear head per matrix product.
        top_k: tokens that the measures over top tokens look at.
    """
    if adapter.head_is_linear and adapter.head is not None:
        return _LinearLosses(LinearHead(adapter.head.weight, adapter.head.bias, chunk), top_k)
    return _OwnPathLosses(adapter, top_k)


def _inner(vectors_ND: Tensor, hidden_ND: Tensor) -> Tensor:
    """Inner products row by row, float64 [N]: they are of the size of the logits, a KL may be a 100,000th of them."""
    inner = [
        (vectors.double() * hidden.double()).sum(1)
        for vectors, hidden in zip(vectors_ND.split(_DOUBLE_ROWS), hidden_ND.split(_DOUBLE_ROWS), strict=True)
    ]
    return torch.cat(inner)


class _LinearLosses:
    """KL from (c, scalar) per token: no teacher logits, no [N x V] tensor, exact.

    With logits W h + b: KL(t || s) = LSE(s) - LSE(t) - <c, h_s - h_t>, c = W^T softmax(W h_t + b); the bias cancels
    but for its part inside the LSE. The scalar LSE(t) - <c, h_t> is taken from the *rounded* c, so that what rounding
    c costs cancels where h_s = h_t. Nothing is clamped: a small negative value is rounding, and clamping it is bias.
    """

    form = TeacherForm.linear

    def __init__(self, head: LinearHead, top_k: int = TOP_K) -> None:
        self.head = head
        self.top = TopLosses(head, top_k)

    def teach(self, hidden_BTD: Tensor, cuts_B: Sequence[int]) -> list[TeacherBlock]:
        hidden_ND = flat(hidden_BTD, cuts_B)
        lse_N = self.head.summary(hidden_ND).lse_N
        # float16 keeps 11 bits; bfloat16's 8 would cost about 1% at small KL.
        kept = torch.float32 if hidden_ND.dtype == torch.float32 else torch.float16
        c_ND = self.head.expected_weight(hidden_ND, lse_N).to(kept)
        scalar_N = lse_N - _inner(c_ND, hidden_ND)
        return [TeacherBlock(*part) for part in zip(by_block(c_ND, cuts_B), by_block(scalar_N, cuts_B), strict=True)]

    def kl(self, hidden_BTD: Tensor, cuts_B: Sequence[int], teacher: PlacedTeacher) -> np.ndarray:
        _refuse_top(teacher)
        hidden_ND = flat(hidden_BTD, cuts_B)
        lse_N = self.head.summary(hidden_ND).lse_N
        return block_sums(lse_N - _inner(teacher.vectors_ND, hidden_ND) - teacher.scalars_N, cuts_B)

    def cross_entropy(self, hidden_BTD: Tensor, cuts_B: Sequence[int], ids_BT: Tensor) -> np.ndarray:
        predicting = [cut - 1 for cut in cuts_B]
        targets_N = torch.cat([ids_BT[row, 1:cut] for row, cut in enumerate(cuts_B)])
        lse_N, target_N = self.head.summary(flat(hidden_BTD, predicting), targets_N)
        assert target_N is not None
        return block_sums(lse_N - target_N, predicting)


class _OwnPathLosses:
    """For models whose logits are more than a matrix product (soft caps, scales): full logits, a piece at a time.

    The teacher is its last hidden state, from which the model's own output path makes the logits again.
    """

    form = TeacherForm.hidden

    def __init__(self, adapter: ModelAdapter, top_k: int = TOP_K) -> None:
        self.head = OwnPathHead(adapter)
        self.top = TopLosses(self.head, top_k)

    def teach(self, hidden_BTD: Tensor, cuts_B: Sequence[int]) -> list[TeacherBlock]:
        # numpy has no bfloat16; float32 holds its values exactly.
        kept = torch.float16 if hidden_BTD.dtype == torch.float16 else torch.float32
        return [
            TeacherBlock(hidden_BTD[row, :cut].to(kept).cpu().numpy(), np.zeros(cut)) for row, cut in enumerate(cuts_B)
        ]

    def _log_p(self, hidden_TD: Tensor) -> Tensor:
        # float64: log-softmax of the whole vocabulary, as the reference would do it.
        return self.head.logits(hidden_TD).log_softmax(-1)

    def kl(self, hidden_BTD: Tensor, cuts_B: Sequence[int], teacher: PlacedTeacher) -> np.ndarray:
        _refuse_top(teacher)
        losses = []
        for row, (cut, vectors_TD) in enumerate(zip(cuts_B, teacher.vectors_ND.split(list(cuts_B)), strict=True)):
            for piece in _pieces(cut):
                teacher_TV = self._log_p(vectors_TD[piece].to(hidden_BTD))
                student_TV = self._log_p(hidden_BTD[row, piece])
                losses.append((teacher_TV.exp() * (teacher_TV - student_TV)).sum(-1))
        return block_sums(torch.cat(losses), cuts_B)

    def cross_entropy(self, hidden_BTD: Tensor, cuts_B: Sequence[int], ids_BT: Tensor) -> np.ndarray:
        losses = []
        predicting = [cut - 1 for cut in cuts_B]
        for row, count in enumerate(predicting):
            for piece in _pieces(count):
                target_T = ids_BT[row, piece.start + 1 : piece.stop + 1]
                losses.append(-self._log_p(hidden_BTD[row, piece]).gather(-1, target_T[:, None])[:, 0])
        return block_sums(torch.cat(losses), predicting)


def _refuse_top(teacher: PlacedTeacher) -> None:
    if teacher.ids_NK is not None:
        raise EvorayError("a teacher of top tokens was given for a KL over the whole vocabulary")


def _pieces(tokens: int) -> list[slice]:
    """Runs of at most `OWN_PATH_TOKENS` tokens; a block's own cut decides them, so they are the same everywhere."""
    return [slice(first, min(first + OWN_PATH_TOKENS, tokens)) for first in range(0, tokens, OWN_PATH_TOKENS)]
