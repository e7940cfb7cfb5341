"""What parts of the base model do to the hidden state that goes through them.

Holds: `InfluenceWalk`.

Legend: B blocks of the batch, T padded length, D hidden, S spans of a model, N tokens that count.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from torch import Tensor

from evoray.errors import EvorayError
from evoray.fitness import INFLUENCES, influence
from evoray.model import DropKind, ModelAdapter


class InfluenceWalk:
    """One pass of the base model, a part at a time.

    The state behind a sublayer is what its block returns without the sublayers that run after it, the state before it
    what the block returns without it and them. So sublayers that work side by side (falcon) count as if the sum took
    them in one after the other.

    Args:
        adapter: the model, with its base weights in place and nothing dropped.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter

    def measure(self, ids_BT: Tensor, cuts_B: Sequence[int], spans: Sequence[Sequence[str]]) -> np.ndarray:
        """See `Evaluator.influences`."""
        ends = [(self._points(span[0])[0], self._points(span[-1])[1]) for span in spans]
        backward = [" to ".join(span) for span, (before, behind) in zip(spans, ends, strict=True) if before >= behind]
        if backward:
            raise EvorayError(f"the span {backward[0]} does not go forward through the model")
        wanted = {point for pair in ends for point in pair}
        last_use = {before: max(behind for first, behind in ends if first == before) for before, _ in ends}
        found_S4B = np.zeros((len(spans), len(INFLUENCES), len(cuts_B)))
        held: dict[tuple[int, int], Tensor] = {}
        for point, state_BTD in self._walk(ids_BT, wanted):
            if state_BTD.ndim != 3:
                raise EvorayError("influences need states of the form [rows, tokens, width], which this model lacks")
            for span, (before, behind) in enumerate(ends):
                if behind == point:
                    for block, cut in enumerate(cuts_B):
                        before_ND = held[before][block, :cut].to(state_BTD.device)
                        per_token_4N = influence(before_ND, state_BTD[block, :cut])
                        found_S4B[span, :, block] = per_token_4N.sum(1).cpu().numpy()
            held[point] = state_BTD
            held = {old: state for old, state in held.items() if last_use.get(old, point) > point}
        return found_S4B

    def _points(self, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """The places before and behind a site: (block, how many of its sublayers have run)."""
        if name not in self.adapter.droppable:
            raise EvorayError(f"{name} is no sublayer or block of the model")
        site = self.adapter.droppable[name]
        if site.kind is DropKind.block:
            return (site.block, 0), (site.block + 1, 0)
        sublayers = self.adapter.sublayers[site.block]
        ran = sublayers.index(name) + 1
        # Behind its last sublayer is behind the block.
        return (site.block, ran - 1), ((site.block, ran) if ran < len(sublayers) else (site.block + 1, 0))

    def _walk(self, ids_BT: Tensor, wanted: Collection[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """The base model's states at the places asked for, in order, a few at a time in memory."""
        start, entering = 0, None
        for block, ran in sorted(wanted):
            if not ran:
                state = self.adapter.hidden(ids_BT, start=start, hidden_BTD=entering, stop=block)
            else:
                after = self.adapter.sublayers[block][ran:]
                try:
                    for name in after:
                        self.adapter.drop(name)
                    state = self.adapter.hidden(ids_BT, start=start, hidden_BTD=entering, stop=block + 1)
                finally:
                    for name in after:
                        self.adapter.drop(name, False)
            if not ran and block in self.adapter.boundaries:
                start, entering = block, state
            yield (block, ran), state
