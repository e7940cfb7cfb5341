"""What a run measured and decided, a generation at a time.

Holds: `Journal`, `GenerationRecord`, `GenerationRow`, `Measurements`.

A generation exists from the moment generations.parquet names it. Everything else of it (its evaluations, its batches)
is written before, and what a crash left behind unnamed is ignored and written again.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evoray.errors import UserError
from evoray.evolve import Draw, Measurement, Outcome
from evoray.space import Genotype
from evoray.store import Location
from evoray.store.manifest import CorruptError
from evoray.tokens import Batch

GENERATIONS, BATCHES, EVALUATIONS = "generations.parquet", "batches.parquet", "evaluations"


@dataclass(frozen=True)
class GenerationRow:
    """One row of generations.parquet.

    Attributes:
        generation: 0 for the race that finds a start.
        winner: level index per gene.
        population: all who go on, the winner first.
        fitness: the winner's loss on the last rung, nats per token.
        parent_fitness: the parent's on the same tokens; None where there was none.
        accepted: a child won, and is the first of all who go on.
        doubt: the probability, at most, that one as good as its parent would have; None where the race doesn't say.
        risk: the probability, at most, of the race to let in a child that is no better; None where it doesn't say.
        bits, bpw, size, sparsity: of the winner; size in bytes.
        candidates: genotypes measured.
        tokens: candidate tokens measured.
        seconds: it took.
        lost_workers: how many times a worker was lost meanwhile.
        busy_seconds: how long each worker had work.
        set_aside: candidates that killed workers, as text.
        evaluations: name of its file.
        sha256: of that file.
    """

    generation: int
    winner: Genotype
    population: tuple[Genotype, ...]
    fitness: float
    parent_fitness: float | None
    accepted: bool
    doubt: float | None
    risk: float | None
    bits: float
    bpw: float
    size: int
    sparsity: float
    candidates: int
    tokens: int
    seconds: float
    lost_workers: int
    busy_seconds: tuple[float, ...]
    set_aside: tuple[str, ...]
    evaluations: str
    sha256: str

    @property
    def outcome(self) -> Outcome:
        """What a strategy is told to get where it was."""
        return Outcome(self.generation, self.winner, self.fitness, self.population)


_ROW_SCHEMA = pa.schema(
    [
        ("generation", pa.int32()),
        ("winner", pa.list_(pa.int16())),
        ("population", pa.list_(pa.list_(pa.int16()))),
        ("fitness", pa.float64()),
        ("parent_fitness", pa.float64()),
        ("accepted", pa.bool_()),
        ("doubt", pa.float64()),
        ("risk", pa.float64()),
        ("bits", pa.float64()),
        ("bpw", pa.float64()),
        ("size", pa.int64()),
        ("sparsity", pa.float64()),
        ("candidates", pa.int32()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("lost_workers", pa.int32()),
        ("busy_seconds", pa.list_(pa.float64())),
        ("set_aside", pa.list_(pa.string())),
        ("evaluations", pa.string()),
        ("sha256", pa.string()),
    ]
)
_BATCH_SCHEMA = pa.schema(
    [
        ("generation", pa.int32()),
        ("rung", pa.int16()),
        ("draw", pa.int32()),
        ("skip", pa.int32()),
        ("lasting", pa.bool_()),
        ("batch", pa.int32()),
        ("blocks", pa.list_(pa.int32())),
        ("cuts", pa.list_(pa.int32())),
        ("padded", pa.int32()),
    ]
)
_EVALUATION_SCHEMA = pa.schema(
    [
        ("generation", pa.int32()),
        ("rung", pa.int16()),
        ("genotype", pa.list_(pa.int16())),
        ("batch", pa.int32()),
        ("losses", pa.list_(pa.float64())),
    ]
)


@dataclass
class GenerationRecord:
    """What is measured in one generation, until it is committed."""

    generation: int
    batches: list[dict[str, object]] = field(default_factory=list)
    evaluations: list[dict[str, object]] = field(default_factory=list)
    candidates: set[Genotype] = field(default_factory=set)
    tokens: int = 0

    def add(self, measurement: Measurement, batches: Sequence[Batch], losses_NB: np.ndarray) -> None:
        """Takes one measurement.

        Args:
            measurement: what was asked for, of N genotypes.
            batches: what they were measured on.
            losses_NB: float64 [N, B], sums in nats per block, blocks in the order of the batches.
        """
        first, rung, genotypes, draw = 0, measurement.rung, measurement.genotypes, measurement.drawn
        for number, batch in enumerate(batches):
            self.batches.append(
                {
                    "generation": self.generation,
                    "rung": rung,
                    "draw": draw.index,
                    "skip": draw.skip,
                    "lasting": draw.lasting,
                    "batch": number,
                    "blocks": batch.blocks,
                    "cuts": batch.cuts,
                    "padded": batch.padded,
                }
            )
            last = first + len(batch.blocks)
            self.evaluations += [
                {
                    "generation": self.generation,
                    "rung": rung,
                    "genotype": genotype,
                    "batch": number,
                    "losses": losses_B[first:last],
                }
                for genotype, losses_B in zip(genotypes, losses_NB, strict=True)
            ]
            first = last
        self.candidates |= set(genotypes)
        self.tokens += len(genotypes) * sum(batch.tokens for batch in batches)


@dataclass(frozen=True)
class Measurements:
    """What was asked for, and what came of it.

    Attributes:
        measurement: genotypes (N), tokens and draw.
        cuts: tokens of each block.
        losses_NB: float64 [N, B], sums in nats.
    """

    measurement: Measurement
    cuts: tuple[int, ...]
    losses_NB: np.ndarray


class Journal:
    """Reads what a run has, and adds generations to it.

    Args:
        folder: of the run.

    Raises:
        UserError: the journal is damaged.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self.rows: list[GenerationRow] = []
        self._batches: list[pa.Table] = []
        if (folder / GENERATIONS).exists():
            for row in self._table(GENERATIONS, _ROW_SCHEMA).to_pylist():
                values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
                values["population"] = tuple(map(tuple, values["population"]))
                self.rows.append(GenerationRow(**values))
        if self.rows:
            # Rows that a crash left behind, of a generation that is not named.
            batches = self._table(BATCHES, _BATCH_SCHEMA)
            self._batches = [batches.filter(pc.less_equal(batches["generation"], self.rows[-1].generation))]

    def damaged(self, why: str) -> UserError:
        """The error to raise for a journal that can't be what was written."""
        line = (why.strip().splitlines() or ["unknown"])[0]
        return UserError(f"the journal of {self._folder} is damaged ({line}); begin again in another run directory")

    def _table(self, name: str, schema: pa.Schema) -> pa.Table:
        try:
            data = (self._folder / name).read_bytes()
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        except FileNotFoundError:
            raise self.damaged(f"{name} is missing") from None
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(f"{name}: {error}") from None
        if not table.schema.equals(schema):
            raise self.damaged(f"{name} has other columns than {', '.join(schema.names)}")
        return table

    def batches(self, generation: int) -> pa.Table:
        """What a generation was measured on: rung, number, blocks, cuts and padded length of each batch."""
        table = pa.concat_tables([_BATCH_SCHEMA.empty_table(), *self._batches])
        return table.filter(pc.equal(table["generation"], generation))

    def evaluations(self, row: GenerationRow) -> pa.Table:
        """All losses of a generation: rung, genotype, batch, and per block of it a sum in nats.

        With `batches` they replay any race policy offline.

        Raises:
            UserError: they are missing, or not what was written.
        """
        try:
            data = (self._folder / EVALUATIONS / row.evaluations).read_bytes(row.sha256)
        except FileNotFoundError:
            raise self.damaged(f"{row.evaluations} is missing") from None
        except CorruptError as error:
            raise self.damaged(f"{row.evaluations}: {error}") from None
        return pa.ipc.open_file(pa.py_buffer(data)).read_all()

    def measurements(self, row: GenerationRow) -> list["Measurements"]:
        """What a generation measured, in order.

        Raises:
            UserError: it is missing, or not what was written.
        """
        batches: dict[int, list[dict[str, Any]]] = {}
        for batch in self.batches(row.generation).to_pylist():
            batches.setdefault(batch["rung"], []).append(batch)
        losses: dict[int, dict[Genotype, list[float]]] = {}
        # Batches of a rung stand one after the other, each with all genotypes in the order in which they were asked.
        for each in self.evaluations(row).to_pylist():
            losses.setdefault(each["rung"], {}).setdefault(tuple(each["genotype"]), []).extend(each["losses"])
        found = []
        for rung, there in sorted(batches.items()):
            cuts = tuple(cut for batch in there for cut in batch["cuts"])
            genotypes = tuple(losses.get(rung, {}))
            if not genotypes or any(len(losses_B) != len(cuts) for losses_B in losses[rung].values()):
                raise self.damaged(f"{row.evaluations} does not fit {BATCHES}")
            draw = Draw(there[0]["draw"], there[0]["skip"], there[0]["lasting"])
            measurement = Measurement(rung, genotypes, sum(cuts), draw)
            found.append(Measurements(measurement, cuts, np.array(list(losses[rung].values()))))
        return found

    @property
    def tokens(self) -> int:
        """Candidate tokens of all generations."""
        return sum(row.tokens for row in self.rows)

    @property
    def seconds(self) -> float:
        """Time of all generations."""
        return sum(row.seconds for row in self.rows)

    def commit(self, record: GenerationRecord, row: GenerationRow) -> GenerationRow:
        """Writes a generation. Once this returns, no crash of this process loses it.

        Args:
            record: what was measured.
            row: what was decided; its `evaluations` and `sha256` are filled in here.
        """
        name = f"generation-{record.generation:05d}.arrow"
        data = _arrow(pa.Table.from_pylist(record.evaluations, _EVALUATION_SCHEMA))
        (self._folder / EVALUATIONS / name).write_bytes(data)
        self._batches.append(pa.Table.from_pylist(record.batches, _BATCH_SCHEMA))
        self._batches = [pa.concat_tables(self._batches).combine_chunks()]
        (self._folder / BATCHES).write_bytes(_parquet(self._batches[0]))
        values = {entry.name: getattr(row, entry.name) for entry in fields(row)}
        named = GenerationRow(**values | {"evaluations": name, "sha256": hashlib.sha256(data).hexdigest()})
        self.rows.append(named)
        rows = [{entry.name: getattr(row, entry.name) for entry in fields(row)} for row in self.rows]
        (self._folder / GENERATIONS).write_bytes(_parquet(pa.Table.from_pylist(rows, _ROW_SCHEMA)))
        return named


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
