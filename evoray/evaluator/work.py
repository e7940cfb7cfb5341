"""A batch as an evaluator takes it.

Holds: `Work`.

Legend: B blocks of the batch, T padded length.
"""

from dataclasses import dataclass

import numpy as np

from evoray.fitness import TeacherBlock
from evoray.settings import VOCABULARY_CHUNK


@dataclass(frozen=True)
class Work:
    """One batch, with all that fixes the shapes it is measured in.

    Attributes:
        ids: int32 [B, T], right-padded.
        cuts: tokens of each block that count, int [B]; the rest of a row is padding.
        teacher: the teacher's part of each block, cut likewise; empty where no KL is asked for.
        vocabulary_chunk: rows of the head per matrix product. It fixes the shapes of the products and so their
            rounding: one value per run.
    """

    ids: np.ndarray
    cuts: tuple[int, ...]
    teacher: tuple[TeacherBlock, ...] = ()
    vocabulary_chunk: int = VOCABULARY_CHUNK
