"""What was measured before anybody asked for it.

Holds: `Ahead`, `Pair`, `Kept`, `pairs`.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from evoray.evaluator import Work

Ahead = tuple[np.ndarray, Sequence["Work"]]
"""Candidates (int8 rows) and batches that may be asked for next."""

Pair = tuple[str, bytes, bytes]
"""Fitness, batch and candidate: what a loss is a function of, in a run."""

MOST = 65536
"""Pairs that are kept, a few hundred bytes each."""


class Kept:
    """Losses per block of pairs that were measured ahead of being asked for; the oldest leave first."""

    def __init__(self) -> None:
        self._losses: OrderedDict[Pair, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._losses)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._losses

    def put(self, pair: Pair, losses_B: np.ndarray) -> None:
        """Keeps the losses of a pair, float64 [blocks of the batch]."""
        self._losses[pair] = losses_B
        while len(self._losses) > MOST:
            self._losses.popitem(last=False)

    def take(self, pair: Pair) -> np.ndarray | None:
        """The losses of a pair, which are then no longer kept: nothing is asked for twice."""
        return self._losses.pop(pair, None)


def pairs(fitness: str, rows_NL: np.ndarray, works: Sequence["Work"]) -> list[list[Pair]]:
    """The pair of each batch and candidate: [batches][candidates]."""
    rows = [row.tobytes() for row in np.ascontiguousarray(rows_NL, dtype=np.int8)]
    found = []
    for work in works:
        # The teacher's part follows from the text; shapes decide bits, so they are part of what a batch is.
        told = hashlib.sha256(repr((work.ids.shape, tuple(work.cuts), work.vocabulary_chunk)).encode())
        told.update(np.ascontiguousarray(work.ids).tobytes())
        batch = told.digest()
        found.append([(fitness, batch, row) for row in rows])
    return found
