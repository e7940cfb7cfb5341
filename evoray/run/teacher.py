"""A text with the base model's part of every block: computed once, spread over the workers, kept, reused.

Holds: `TaughtText`, `teach_text`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from evoray.cluster import Pool
from evoray.evaluator import Work
from evoray.fitness import Fitness, TeacherBlock
from evoray.fitness.teacher import blocks_of_table, teacher_table
from evoray.run.shapes import Shapes
from evoray.store import Location
from evoray.store.manifest import CorruptError
from evoray.tokens import Batch, TokenText, all_batches

INDEX = "index.json"

SHARD_TOKENS = 65536
"""Tokens per file: small enough that an interrupted teacher pass loses little, large enough to be few files."""


@dataclass(frozen=True)
class TaughtText:
    """Token blocks and, where a KL is measured, the teacher's part of each.

    Attributes:
        text: the blocks.
        shapes: of passes.
        teacher: one per block; empty for fitness that needs no teacher.
    """

    text: TokenText
    shapes: Shapes
    teacher: tuple[TeacherBlock, ...] = ()

    def works(self, batches: Iterable[Batch]) -> list[Work]:
        """Batches of this text, ready for workers."""
        return [
            Work(
                batch.ids(self.text),
                batch.cuts,
                tuple(self.teacher[block].cut(cut) for block, cut in zip(batch.blocks, batch.cuts, strict=True))
                if self.teacher
                else (),
                self.shapes.vocabulary_chunk,
            )
            for batch in batches
        ]


def teach_text(
    pool: Pool,
    text: TokenText,
    *,
    shapes: Shapes,
    fitness: Fitness = Fitness.kl,
    weights_digest: str = "",
    folder: Location | None = None,
    progress: Callable[[float], None] | None = None,
) -> TaughtText:
    """The teacher's part of a whole text.

    Args:
        pool: who computes it.
        text: of which every block is taught, whole. A cut block takes the first tokens of it.
        shapes: of passes.
        fitness: that the teacher is for.
        weights_digest: of the base model; with text and device it names what was computed.
        folder: where it is kept. What lies there under the same name and checksum is not computed again.
        progress: told the share that is done, 0 to 1.

    Raises:
        EvorayError: workers fail, or the folder can't be written.
    """
    batches = all_batches(text, shapes.tokens_per_pass)
    shards = list(_shards(batches))
    deciding = [weights_digest, text.digest, asdict(shapes), fitness.value, asdict(pool.record)]
    key = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    known = _known(folder, key)
    if folder is not None and not known:
        for name in folder.list():  # of another key, or damaged
            (folder / name).delete()
    teacher: dict[int, TeacherBlock] = {}
    for number, shard in enumerate(shards):
        name = f"{number:05d}.arrow"
        table = _read(folder, name, known.get(name))
        if table is None:
            chunk = shapes.vocabulary_chunk
            works = [Work(batch.ids(text), batch.cuts, vocabulary_chunk=chunk) for batch in shard]
            taught = pool.teach(works, fitness)
            table = teacher_table([block for blocks in taught for block in blocks])
            if folder is not None:
                data = _ipc(table)
                (folder / name).write_bytes(data)
                known[name] = hashlib.sha256(data).hexdigest()
                (folder / INDEX).write_bytes(json.dumps({"key": key, "shards": known}, indent=1).encode())
                table = _read(folder, name, known[name]) or table
        teacher |= dict(zip((block for batch in shard for block in batch.blocks), blocks_of_table(table), strict=True))
        if progress:
            progress((number + 1) / len(shards))
    return TaughtText(text, shapes, tuple(teacher[block] for block in range(len(text.blocks))))


def _shards(batches: Sequence[Batch]) -> Iterable[list[Batch]]:
    shard: list[Batch] = []
    for batch in batches:
        shard.append(batch)
        if sum(held.tokens for held in shard) >= SHARD_TOKENS:
            yield shard
            shard = []
    if shard:
        yield shard


def _known(folder: Location | None, key: str) -> dict[str, str]:
    if folder is None or not (folder / INDEX).exists():
        return {}
    try:
        found = json.loads((folder / INDEX).read_bytes())
        return dict(found["shards"]) if found["key"] == key else {}
    except (ValueError, KeyError, TypeError):
        return {}  # damaged: all of it is computed again


def _read(folder: Location | None, name: str, sha256: str | None) -> pa.Table | None:
    """A shard as it lies, memory-mapped where it is local; None where it is missing or not what was written."""
    if folder is None or sha256 is None or not (folder / name).exists():
        return None
    path = (folder / name).local_path
    if (folder / name).size() == 0:
        return None  # nothing can be mapped
    if path is None:
        try:
            return pa.ipc.open_file(pa.py_buffer((folder / name).read_bytes(sha256))).read_all()
        except CorruptError:
            return None
    buffer = pa.memory_map(str(path)).read_buffer()
    if hashlib.sha256(buffer).hexdigest() != sha256:
        return None
    return pa.ipc.open_file(buffer).read_all()


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
