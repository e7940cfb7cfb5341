"""From last hidden states to what losses need, without a [tokens x vocabulary] tensor.

Holds: `LinearHead`, `Summary`; `OwnPathHead`, which has full logits, a few tokens at a time.

Legend: N tokens, D hidden, V vocabulary, C a chunk of the vocabulary, K ids per token, M = K + 1 buckets: those ids and
all the rest as one, P a piece of the tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from evoray.model import ModelAdapter
from evoray.model.products import product


class Summary(NamedTuple):
    """What one pass over the vocabulary yields.

    Attributes:
        lse_N: log of the sum of exponentials of the logits, float64.
        target_N: logit of each token's target, float64; None where no targets were given.
    """

    lse_N: Tensor
    target_N: Tensor | None


class LinearHead:
    """An output layer whose logits are `W h + b` and nothing else, read in chunks of the vocabulary.

    Args:
        weight_VD: the output matrix, any floating dtype.
        bias_V: its bias, or None.
        chunk: rows of `weight_VD` per matrix product. It fixes the shapes of the products, and so their
            rounding: one value per run.
    """

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None, chunk: int) -> None:
        self.weight_VD = weight_VD
        self.bias_V = bias_V
        self.chunk = chunk

    def _logits(self, hidden_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yields (first row, logits_NC in float32), chunk by chunk.

        Logits leave the product in float32 even when the operands are half precision: rounding them to bfloat16
        would bias every loss by more than the differences that a search looks for.
        """
        half = self.weight_VD.dtype in (torch.bfloat16, torch.float16)
        for first in range(0, self.weight_VD.shape[0], self.chunk):
            weight_CD = self.weight_VD[first : first + self.chunk]
            if half and hidden_ND.is_cuda:
                logits_NC = torch.mm(hidden_ND, weight_CD.T, out_dtype=torch.float32)
            else:
                logits_NC = product(hidden_ND.float(), weight_CD.float())
            if self.bias_V is not None:
                logits_NC += self.bias_V[first : first + self.chunk].float()
            yield first, logits_NC

    def summary(self, hidden_ND: Tensor, targets_N: Tensor | None = None) -> Summary:
        """The log-sum-exp of each token's logits, and the logit of its target.

        Args:
            hidden_ND: last hidden states, in the head's dtype.
            targets_N: int64 vocabulary indexes.
        """
        lse = _RunningSum(hidden_ND)
        target_N = None if targets_N is None else torch.zeros_like(lse.sum_N)
        for first, logits_NC in self._logits(hidden_ND):
            if target_N is not None and targets_N is not None:
                here_N1, _, found_N1 = _found(logits_NC, first, targets_N[:, None])
                target_N = torch.where(here_N1[:, 0], found_N1[:, 0].double(), target_N)
            lse.add(logits_NC)
        return Summary(lse.value_N, target_N)

    def top(self, hidden_ND: Tensor, k: int) -> Tensor:
        """The vocabulary indexes of each token's `k` largest logits, int64 [N, K]; of all where there are fewer."""
        best_NK = hidden_ND.new_zeros(hidden_ND.shape[0], 0, dtype=torch.float32)
        ids_NK = torch.zeros_like(best_NK, dtype=torch.int64)
        for first, logits_NC in self._logits(hidden_ND):
            here = logits_NC.topk(min(k, logits_NC.shape[1]))
            best_NK, ids_NK = torch.cat([best_NK, here.values], 1), torch.cat([ids_NK, here.indices + first], 1)
            best_NK, kept_NK = best_NK.topk(min(k, best_NK.shape[1]))
            ids_NK = ids_NK.gather(1, kept_NK)
        return ids_NK

    def buckets(self, hidden_ND: Tensor, ids_NK: Tensor) -> Tensor:
        """The logits of some vocabulary indexes, and the log-sum-exp of all others as one more.

        Nothing is subtracted from a whole, so a rest of any size keeps its accuracy; and each logit is used once, so
        that the buckets are a distribution whatever rounding a logit has.

        Args:
            hidden_ND: last hidden states.
            ids_NK: int64, distinct within a token.

        Returns:
            float64 [N, M], the rest last: -inf where the indexes are the whole vocabulary.
        """
        rest = _RunningSum(hidden_ND)
        picked_NK = torch.zeros(ids_NK.shape, dtype=torch.float64, device=hidden_ND.device)
        for first, logits_NC in self._logits(hidden_ND):
            here_NK, index_NK, found_NK = _found(logits_NC, first, ids_NK)
            picked_NK = torch.where(here_NK, found_NK.double(), picked_NK)
            # Indexes of other chunks were moved into this one and may meet one of its own; a minimum has no order.
            mask_NK = torch.where(here_NK, -torch.inf, torch.inf).to(logits_NC.dtype)
            rest.add(logits_NC.scatter_reduce_(1, index_NK, mask_NK, "amin"))
        return torch.cat([picked_NK, rest.value_N[:, None]], 1)

    def expected_weight(self, hidden_ND: Tensor, lse_N: Tensor) -> Tensor:
        """`W^T softmax(W h + b)` of each token: the mean row of the head under the token's distribution.

        Args:
            hidden_ND: last hidden states.
            lse_N: their log-sum-exp from `summary`, float64.

        Returns:
            float32 [N, D].
        """
        mean_ND = torch.zeros(hidden_ND.shape[0], self.weight_VD.shape[1], device=hidden_ND.device)
        for first, logits_NC in self._logits(hidden_ND):
            p_NC = (logits_NC - lse_N.float()[:, None]).exp_()
            mean_ND += p_NC @ self.weight_VD[first : first + self.chunk].float()
        return mean_ND


class _RunningSum:
    """The log-sum-exp of logits that come chunk by chunk; sums within a chunk are float32, over chunks float64."""

    def __init__(self, hidden_ND: Tensor) -> None:
        tokens, device = hidden_ND.shape[0], hidden_ND.device
        # Finite, so that a chunk whose logits are all masked adds nothing instead of -inf - -inf.
        lowest = torch.finfo(torch.float32).min
        self.top_N = torch.full((tokens,), lowest, dtype=torch.float32, device=device)
        self.sum_N = torch.zeros(tokens, dtype=torch.float64, device=device)

    def add(self, logits_NC: Tensor) -> None:
        """Takes a chunk's float32 logits in; they are used up."""
        higher_N = torch.maximum(self.top_N, logits_NC.amax(1))
        rescale_N = torch.exp((self.top_N - higher_N).double())
        self.sum_N = self.sum_N * rescale_N + logits_NC.sub_(higher_N[:, None]).exp_().sum(1).double()
        self.top_N = higher_N

    @property
    def value_N(self) -> Tensor:
        """The log-sum-exp of all so far, float64; -inf of nothing."""
        return self.top_N.double() + self.sum_N.log()


def _found(logits_NC: Tensor, first: int, ids_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which vocabulary indexes lie in the chunk that begins at `first`, their columns, and the logits there.

    Columns of indexes that lie elsewhere are moved to the chunk's ends, and their logits mean nothing.
    """
    here_NK = (ids_NK >= first) & (ids_NK < first + logits_NC.shape[1])
    index_NK = (ids_NK - first).clamp(0, logits_NC.shape[1] - 1)
    return here_NK, index_NK, logits_NC.gather(1, index_NK)


OWN_PATH_TOKENS = 256
"""Tokens whose full logits are held at once, in float64 and a few copies: 3 GB at a vocabulary of 256,000."""


class OwnPathHead:
    """An output path that is more than a matrix product: the model's own, with full logits, a piece at a time."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits of at most `OWN_PATH_TOKENS` tokens, float64 [N, V]."""
        return self.adapter.logits_from_hidden(hidden_ND[None])[0].double()

    def top(self, hidden_ND: Tensor, k: int) -> Tensor:
        """As `LinearHead.top`."""
        pieces = (self.logits(piece_ND) for piece_ND in hidden_ND.split(OWN_PATH_TOKENS))
        return torch.cat([logits_NV.topk(min(k, logits_NV.shape[1])).indices for logits_NV in pieces])

    def buckets(self, hidden_ND: Tensor, ids_NK: Tensor) -> Tensor:
        """As `LinearHead.buckets`."""
        found = []
        for piece_ND, ids_PK in zip(hidden_ND.split(OWN_PATH_TOKENS), ids_NK.split(OWN_PATH_TOKENS), strict=True):
            logits_PV = self.logits(piece_ND)
            picked_PK = logits_PV.gather(1, ids_PK)
            rest_P1 = logits_PV.scatter_(1, ids_PK, -torch.inf).logsumexp(1, keepdim=True)
            found.append(torch.cat([picked_PK, rest_P1], 1))
        return torch.cat(found)
