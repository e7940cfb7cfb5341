"""From last hidden states to what losses need, without a [tokens x vocabulary] tensor.

Holds: `LinearHead`, `Summary`.

Legend: N tokens, D hidden, V vocabulary, C a chunk of the vocabulary.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


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
                logits_NC = hidden_ND.float() @ weight_CD.float().T
            if self.bias_V is not None:
                logits_NC += self.bias_V[first : first + self.chunk].float()
            yield first, logits_NC

    def summary(self, hidden_ND: Tensor, targets_N: Tensor | None = None) -> Summary:
        """The log-sum-exp of each token's logits, and the logit of its target.

        Args:
            hidden_ND: last hidden states, in the head's dtype.
            targets_N: int64 vocabulary indexes.
        """
        tokens = hidden_ND.shape[0]
        top_N = torch.full((tokens,), -torch.inf, dtype=torch.float32, device=hidden_ND.device)
        sum_N = torch.zeros(tokens, dtype=torch.float64, device=hidden_ND.device)
        target_N = None if targets_N is None else torch.zeros(tokens, dtype=torch.float64, device=hidden_ND.device)
        for first, logits_NC in self._logits(hidden_ND):
            if target_N is not None and targets_N is not None:
                here_N = (targets_N >= first) & (targets_N < first + logits_NC.shape[1])
                index_N = (targets_N - first).clamp(0, logits_NC.shape[1] - 1)
                target_N = torch.where(here_N, logits_NC.gather(1, index_N[:, None])[:, 0].double(), target_N)
            higher_N = torch.maximum(top_N, logits_NC.amax(1))
            rescale_N = torch.exp((top_N - higher_N).double())
            sum_N = sum_N * rescale_N + logits_NC.sub_(higher_N[:, None]).exp_().sum(1).double()
            top_N = higher_N
        return Summary(top_N.double() + sum_N.log(), target_N)

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
