"""What a KL divergence needs of the base model, per token block: small enough to keep for a whole run.

Holds: `TeacherForm`, `TeacherBlock`, `teacher_table`, `blocks_of_table`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa


class TeacherForm(StrEnum):
    """How the teacher is kept.

    `linear`: the head is linear; `vectors` are c = W^T softmax(W h_t) and `scalars` are LSE(W h_t) - <c, h_t>.
    `hidden`: it is not; `vectors` are the last hidden states h_t, from which the model's own output path gives
    the logits again.
    """

    linear = "linear"
    hidden = "hidden"


@dataclass(frozen=True)
class TeacherBlock:
    """The teacher's part of one token block.

    Attributes:
        vectors: float32 or float16 [tokens, hidden size] (bfloat16 hidden states are kept as float32, which holds
            them exactly).
        scalars: float64 [tokens]; zeros in the form `hidden`.
    """

    vectors: np.ndarray
    scalars: np.ndarray

    def cut(self, tokens: int) -> "TeacherBlock":
        """The first `tokens` tokens. Right for every causal model: a prefix does not see what follows it."""
        return TeacherBlock(self.vectors[:tokens], self.scalars[:tokens])


def teacher_table(blocks: Sequence[TeacherBlock]) -> pa.Table:
    """One row per block: `vectors` and `scalars` as raw bytes, their dtype and token count beside them."""
    return pa.table(
        {
            "tokens": pa.array([len(block.scalars) for block in blocks], pa.int32()),
            "dtype": pa.array([block.vectors.dtype.name for block in blocks], pa.string()),
            "vectors": pa.array([block.vectors.tobytes() for block in blocks], pa.large_binary()),
            "scalars": pa.array([block.scalars.tobytes() for block in blocks], pa.large_binary()),
        }
    )


def blocks_of_table(table: pa.Table) -> list[TeacherBlock]:
    """The inverse of `teacher_table`; the arrays look into the table's memory, nothing is copied."""
    blocks = []
    for row in range(table.num_rows):
        tokens = table["tokens"][row].as_py()
        vectors = np.frombuffer(table["vectors"][row].as_buffer(), dtype=table["dtype"][row].as_py())
        scalars = np.frombuffer(table["scalars"][row].as_buffer(), dtype=np.float64)
        blocks.append(TeacherBlock(vectors.reshape(tokens, -1), scalars))
    return blocks
