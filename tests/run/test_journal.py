"""What a journal holds: enough to replay its races, and a sign of damage when it is damaged."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from searches import Material

from evoray.errors import UserError
from evoray.evolve import FixedRace, Measurement
from evoray.fitness import Fitness
from evoray.run.journal import GenerationRecord, GenerationRow, Journal
from evoray.run.plan import plan_search
from evoray.run.search import search
from evoray.settings import SearchSettings
from evoray.store import Location
from evoray.tokens import Batch


@pytest.fixture(scope="module")
def settings(material: Material, tmp_path_factory: pytest.TempPathFactory) -> SearchSettings:
    """Of a finished run with races of three rungs."""
    run = tmp_path_factory.mktemp("journal") / "run"
    settings = material.settings(run, survivors=(4, 2, 1), tokens=(64, 100, 256), generations=3)
    search(settings)
    return settings


def test_races_are_replayed_from_the_files_alone(settings: SearchSettings) -> None:
    # What a person with pyarrow reads: no code of this package between the files and the numbers.
    folder = Path(settings.run)
    batches = pq.read_table(folder / "batches.parquet").to_pylist()
    rungs = plan_search(settings).rungs
    parent = None
    for row in pq.read_table(folder / "generations.parquet").to_pylist():
        with pa.ipc.open_file(folder / "evaluations" / row["evaluations"]) as reader:
            entries = reader.read_all().to_pylist()
        losses: dict[int, dict[tuple[int, ...], list[float]]] = {}
        for entry in entries:
            assert entry["generation"] == row["generation"]
            by_genotype = losses.setdefault(entry["rung"], {})
            by_genotype.setdefault(tuple(entry["genotype"]), []).extend(entry["losses"])
        # Losses stand in the order of their batches, so a genotype's are one list over all blocks.
        used = {
            rung: [batch for batch in batches if (batch["generation"], batch["rung"]) == (row["generation"], rung)]
            for rung in losses
        }
        first = tuple(losses[min(losses)])
        stages = rungs if row["generation"] else (type(rungs[0])(1, rungs[0].tokens),)
        race = FixedRace(first, [] if parent is None else [parent], stages)
        while (wanted := race.ask()) is not None:
            assert wanted.genotypes == tuple(losses[wanted.rung]), "the survivors of the rung before"
            cuts = [cut for batch in used[wanted.rung] for cut in batch["cuts"]]
            assert sum(cuts) == wanted.tokens
            race.tell(
                np.array([losses[wanted.rung][genotype] for genotype in wanted.genotypes]), Fitness.kl.counted(cuts)
            )
        assert race.result.winner == tuple(row["winner"])
        assert race.result.fitness == row["fitness"]
        assert race.result.parent_fitness == row["parent_fitness"]
        assert row["tokens"] == sum(
            len(measured) * sum(batch_cut for batch in used[rung] for batch_cut in batch["cuts"])
            for rung, measured in losses.items()
        )
        assert row["candidates"] == len({genotype for measured in losses.values() for genotype in measured})
        parent = race.result.winner


def row_of(generation: int) -> GenerationRow:
    return GenerationRow(
        generation=generation,
        winner=(0, 1),
        population=((0, 1), (1, 1)),
        fitness=float("inf"),
        parent_fitness=None,
        doubt=None,
        risk=None,
        accepted=True,
        bits=3.0,
        bpw=3.5,
        size=10,
        sparsity=0.25,
        candidates=2,
        tokens=12,
        seconds=0.5,
        lost_workers=1,
        busy_seconds=(0.25, 0.125),
        set_aside=("(1, 1)",),
        evaluations="",
        sha256="",
    )


def record_of(generation: int) -> GenerationRecord:
    record = GenerationRecord(generation)
    batches = [Batch("t", (0, 3), (4, 2), 4), Batch("t", (1,), (3,), 3)]
    record.add(Measurement(0, ((0, 1), (1, 1)), 8), batches, np.array([[1.0, 2.0, generation], [np.inf, 4.0, 5.0]]))
    return record


@pytest.fixture
def written(tmp_path: Path) -> Location:
    """A journal of two generations."""
    journal = Journal(Location.parse(tmp_path))
    for generation in (1, 2):
        journal.commit(record_of(generation), row_of(generation))
    return Location.parse(tmp_path)


def test_what_was_committed_is_read_again(written: Location) -> None:
    journal = Journal(written)
    assert [row.generation for row in journal.rows] == [1, 2]
    assert [vars(row) | {"evaluations": "", "sha256": ""} for row in journal.rows] == [
        vars(row_of(1)),
        vars(row_of(2)),
    ]
    assert (journal.tokens, journal.seconds) == (24, 1.0)
    evaluations = journal.evaluations(journal.rows[1]).to_pylist()
    assert [(entry["genotype"], entry["batch"], entry["losses"]) for entry in evaluations] == [
        ([0, 1], 0, [1.0, 2.0]),
        ([1, 1], 0, [np.inf, 4.0]),
        ([0, 1], 1, [2.0]),
        ([1, 1], 1, [5.0]),
    ]
    assert [(batch["blocks"], batch["cuts"]) for batch in journal.batches(2).to_pylist()] == [
        ([0, 3], [4, 2]),
        ([1], [3]),
    ]


def test_what_no_generation_names_is_ignored_and_replaced(written: Location) -> None:
    kept = (written / "generations.parquet").read_bytes()
    Journal(written).commit(record_of(3), row_of(3))
    (written / "generations.parquet").write_bytes(kept)
    journal = Journal(written)
    assert journal.batches(3).num_rows == 0
    journal.commit(record_of(3), row_of(3))
    assert pq.read_table(written.local_path / "batches.parquet")["generation"].to_pylist() == [1, 1, 2, 2, 3, 3]


def test_batches_of_an_unnamed_first_generation_are_ignored(written: Location) -> None:
    (written / "generations.parquet").delete()
    journal = Journal(written)
    assert (journal.rows, journal.batches(1).num_rows) == ([], 0)


@pytest.mark.parametrize("name", ["generations.parquet", "batches.parquet"])
def test_damaged_tables_are_a_users_error(written: Location, name: str) -> None:
    data = (written / name).read_bytes()
    for damage in (b"", b"PAR1", data[: len(data) // 2], data[:-1], b"x" * len(data)):
        (written / name).write_bytes(damage)
        with pytest.raises(UserError, match=rf"the journal of \S+ is damaged \({name}") as caught:
            Journal(written)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["generations.parquet", "batches.parquet"])
def test_no_flipped_bit_is_read_as_other_numbers(written: Location, name: str) -> None:
    def read() -> object:
        journal = Journal(written)
        return journal.rows, [journal.batches(generation).to_pylist() for generation in (1, 2)]

    expected, refused = read(), 0
    data = (written / name).read_bytes()
    for at in range(0, len(data), 3):
        Path(written.path, name).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            # A bit that decides nothing, of a column's statistics, may pass.
            assert read() == expected
        except UserError:
            refused += 1
    assert refused > len(data) // 3 // 4


def test_missing_batches_and_other_columns_are_damage(written: Location) -> None:
    (written / "batches.parquet").delete()
    with pytest.raises(UserError, match=r"batches\.parquet is missing"):
        Journal(written)
    pq.write_table(pa.table({"generation": [1]}), written.local_path / "generations.parquet")
    with pytest.raises(UserError, match=r"generations\.parquet has other columns than generation, winner"):
        Journal(written)


def test_evaluations_that_are_not_what_was_written_are_damage(written: Location) -> None:
    journal = Journal(written)
    place = written / "evaluations" / journal.rows[0].evaluations
    place.write_bytes(place.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match="its sha256 is"):
        journal.evaluations(journal.rows[0])
    place.delete()
    with pytest.raises(UserError, match="is missing"):
        journal.evaluations(journal.rows[0])


def test_a_winner_that_this_search_can_not_have_is_damage(material: Material, tmp_path: Path) -> None:
    settings = material.settings(tmp_path, generations=1)
    search(settings)
    table = pq.read_table(tmp_path / "generations.parquet")
    winners = pa.array([[2] * len(winner) for winner in table["winner"].to_pylist()], table.schema.field("winner").type)
    pq.write_table(table.set_column(1, "winner", winners), tmp_path / "generations.parquet")
    with pytest.raises(UserError, match=r"the journal of \S+ is damaged \(the winner told for generation 0"):
        search(settings)
