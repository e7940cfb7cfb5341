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
    `topk`: whatever the head is, for measures over the top k tokens; `ids` are these, `vectors` their
    log-probabilities and `scalars` the log of the probability of all others.
    """

    linear = "linear"
    hidden = "hidden"
    topk = "topk"


@dataclass(frozen=True)
class TeacherBlock:
    """The teacher's part of one token block.

    Attributes:
        vectors: float32 or float16 [tokens, hidden size] (bfloat16 hidden states are kept as float32, which holds
            them exactly); float64 [tokens, k] in the form `topk`.
        scalars: float64 [tokens]; zeros in the form `hidden`.
        ids: int32 [tokens, k] in the form `topk`, None in the others.
    """

    vectors: np.ndarray
    scalars: np.ndarray
    ids: np.ndarray | None = None

    def cut(self, tokens: int) -> "TeacherBlock":
        """The first `tokens` tokens. Right for every causal model: a prefix does not see what follows it."""
        ids = None if self.ids is None else self.ids[:tokens]
        return TeacherBlock(self.vectors[:tokens], self.scalars[:tokens], ids)


def teacher_table(blocks: Sequence[TeacherBlock]) -> pa.Table:
    """One row per block: its arrays as raw bytes (null for no `ids`), tokens and dtype of `vectors` beside them."""
    return pa.table(
        {
            "tokens": pa.array([len(block.scalars) for block in blocks], pa.int32()),
            "dtype": pa.array([block.vectors.dtype.name for block in blocks], pa.string()),
            "vectors": pa.array([block.vectors.tobytes() for block in blocks], pa.large_binary()),
            "scalars": pa.array([block.scalars.tobytes() for block in blocks], pa.large_binary()),
            "ids": pa.array(
                [None if block.ids is None else block.ids.tobytes() for block in blocks], pa.large_binary()
            ),
        }
    )


def blocks_of_table(table: pa.Table) -> list[TeacherBlock]:
    """The inverse of `teacher_table`; the arrays look into the table's memory, nothing is copied."""
    blocks = []
    for row in range(table.num_rows):
        tokens = table["tokens"][row].as_py()
        vectors = np.frombuffer(table["vectors"][row].as_buffer(), dtype=table["dtype"][row].as_py())
        scalars = np.frombuffer(table["scalars"][row].as_buffer(), dtype=np.float64)
        held = table["ids"][row].as_buffer()
        ids = None if held is None else np.frombuffer(held, dtype=np.int32).reshape(tokens, -1)
        blocks.append(TeacherBlock(vectors.reshape(tokens, -1), scalars, ids))
    return blocks
