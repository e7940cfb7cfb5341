"""Workers as real Ray actors: equal bits with any number of them, and whatever kills them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from pools import Marks, all_ready, candidates, marked, works
from searches import Material, bits_of, searching_with

from evoray.cluster import LocalPool, WorkerSpec, ray_pool
from evoray.cluster.ray_pool import RayPool, WorkerActor
from evoray.errors import EvorayError, UserError
from evoray.evaluator import Work
from evoray.fitness import Fitness, TeacherBlock
from evoray.run.journal import Journal
from evoray.run.plan import plan_search
from evoray.run.search import search
from evoray.store import Location

# Workers can't import tests, so that classes defined here travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def taught(pool: Any, count: int = 3) -> list[Work]:
    """The same batches with the teacher's part."""
    plain = works(count)
    return [Work(work.ids, work.cuts, tuple(blocks)) for work, blocks in zip(plain, pool.teach(plain), strict=True)]


@pytest.fixture(scope="module")
def local(material: Material) -> LocalPool:
    return LocalPool(material.spec)


@pytest.fixture(scope="module")
def expected(local: LocalPool, material: Material) -> np.ndarray:
    """Losses without Ray: what every pool must give, bit for bit."""
    return local.measure(candidates(material), taught(local), Fitness.kl)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def pool(ray_here: None, material: Material, notes: list[str]) -> Iterator[RayPool]:
    with RayPool(material.spec, workers=2, note=notes.append) as pool:
        yield pool


def lives(process: int) -> bool:
    """Whether a process is there, and no mere entry of a dead one."""
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def pids(pool: RayPool, count: int = 2) -> list[int]:
    """Processes of the workers, once that many are ready.

    Where others did a dead one's work in time, nobody has noticed yet that it is gone: it is given work until then.
    """
    while True:
        all_ready(pool, count)
        found = [actor.pid for actor in pool._actors if actor.ready and actor.pid]
        if all(lives(process) for process in found):
            return found
        pool.teach(works(8))


class Once:
    """A report of progress that does something at the first report."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act, self.done = act, False

    def __call__(self, share: float) -> None:
        if not self.done:
            self.done = True
            self.act()


def kill(*processes: int) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


# Equal bits


def test_two_workers_give_the_bits_of_none(
    pool: RayPool, local: LocalPool, material: Material, expected: np.ndarray
) -> None:
    for mine, theirs in zip(taught(pool), taught(local), strict=True):
        for block, other in zip(mine.teacher, theirs.teacher, strict=True):
            assert np.array_equal(block.vectors, other.vectors)
            assert np.array_equal(block.scalars, other.scalars)
    assert np.array_equal(pool.measure(candidates(material), taught(pool), Fitness.kl), expected)
    assert np.array_equal(
        pool.measure(candidates(material), works(), Fitness.perplexity),
        local.measure(candidates(material), works(), Fitness.perplexity),
    )
    assert np.isfinite(expected).all()


def test_a_search_with_two_workers_leaves_the_run_of_a_search_with_none(
    pool: RayPool, local: LocalPool, material: Material, tmp_path: Path
) -> None:
    with searching_with(local):
        search(material.settings(tmp_path / "none"))
    with searching_with(pool):
        search(material.settings(tmp_path / "two"))
    assert bits_of(tmp_path / "two") == bits_of(tmp_path / "none")


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_leaves_the_same_run(
    ray_here: None, material: Material, tmp_path: Path, workers: int
) -> None:
    search(material.settings(tmp_path / "none"))
    search(material.settings(tmp_path / "some", workers=workers))
    assert bits_of(tmp_path / "some") == bits_of(tmp_path / "none")


def test_any_measurement_of_batches_gives_the_bits_of_none(pool: RayPool, local: LocalPool) -> None:
    plain, shares = works(5), list[float]()
    taught = [
        each(plain, "teach", Fitness.kl_topk, progress=report)
        for each, report in ((pool.each, shares.append), (local.each, None))
    ]
    for blocks, others in zip(*taught, strict=True):
        for block, other in zip(blocks, others, strict=True):
            for name in ("vectors", "scalars", "ids"):
                assert np.array_equal(getattr(block, name), getattr(other, name))
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for one in (pool, local):
        with pytest.raises(EvorayError, match=r"'losses' is no measurement .* influences, pass_bytes, teach"):
            one.each(plain, "losses", Fitness.kl)


# Losses of workers


def test_a_worker_killed_in_a_rung_changes_no_bit(
    pool: RayPool, material: Material, expected: np.ndarray, notes: list[str]
) -> None:
    lost, victim = pool.lost, pids(pool)[0]
    measured = pool.measure(candidates(material), taught(pool), Fitness.kl, Once(lambda: kill(victim)))
    assert np.array_equal(measured, expected)
    # The other worker may have done again what the killed one was at, before the death is noticed.
    while pool.lost == lost:
        assert np.array_equal(pool.measure(candidates(material), taught(pool), Fitness.kl), expected)
    assert victim not in pids(pool)
    assert pool.lost == lost + 1
    assert not pool.named_aside
    assert sum(f"(process {victim}) was lost" in note for note in notes) == 1


def test_all_workers_killed_in_a_rung_change_no_bit(pool: RayPool, material: Material, expected: np.ndarray) -> None:
    victims = pids(pool)
    measured = pool.measure(candidates(material), taught(pool), Fitness.kl, Once(lambda: kill(*victims)))
    assert np.array_equal(measured, expected)
    assert not pool.named_aside


def test_workers_killed_between_measurements_change_no_bit(
    pool: RayPool, material: Material, expected: np.ndarray
) -> None:
    ready = taught(pool)
    kill(*pids(pool))
    assert np.array_equal(pool.measure(candidates(material), ready, Fitness.kl), expected)
    assert not pool.named_aside


def test_a_worker_killed_while_it_teaches_changes_no_bit(pool: RayPool, local: LocalPool) -> None:
    plain, victim = works(8), pids(pool)[0]
    found = pool.teach(plain, progress=Once(lambda: kill(victim)))
    for mine, theirs in zip(found, local.teach(plain), strict=True):
        for block, other in zip(mine, theirs, strict=True):
            assert np.array_equal(block.vectors, other.vectors)
            assert np.array_equal(block.scalars, other.scalars)


@pytest.mark.cluster
def test_what_was_measured_ahead_is_the_same_bits_and_is_not_measured_again(
    pool: RayPool, material: Material, expected: np.ndarray
) -> None:
    pids(pool)
    given, batches = candidates(material), taught(pool)
    # Once, so that speeds are known; then a measurement of one pair leaves the second worker nothing but what is ahead.
    pool.measure(given, batches, Fitness.kl)
    ahead = [(given[:2], batches[1:])]
    for _ in range(20):
        first = pool.measure(given[:1], batches[:1], Fitness.kl, None, ahead)
        assert np.array_equal(first, expected[:1, :2])
        if pool._kept or any(late.pair for late in pool._late.values()):
            break
    else:
        raise AssertionError("the idle worker never began what may be asked for next")
    assert np.array_equal(pool.measure(given[:2], batches[1:], Fitness.kl), expected[:2, 2:])
    assert not pool._kept
    assert np.array_equal(pool.measure(given, batches, Fitness.kl), expected)


class KillsInEveryPhase:
    """A pool whose workers are killed, one after the other, at the first report of some of its calls."""

    def __init__(self, pool: RayPool, fatal: set[int]) -> None:
        self._pool, self._fatal, self.phases = pool, fatal, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def _report(self, phase: str) -> Once | None:
        self.phases.append(phase)
        if len(self.phases) - 1 not in self._fatal:
            return None
        victim = pids(self._pool)[len(self.phases) % 2]
        return Once(lambda: kill(victim))

    def measure(
        self, rows_NL: np.ndarray, works: list[Work], fitness: Fitness, progress: object = None, ahead: Any = ()
    ) -> np.ndarray:
        return self._pool.measure(rows_NL, works, fitness, self._report("measure"), ahead)

    def teach(self, works: list[Work], fitness: Fitness | None = None) -> list[list[TeacherBlock]]:
        return self._pool.teach(works, fitness, self._report("teach"))


@pytest.mark.cluster
def test_a_search_whose_workers_are_killed_in_every_phase_leaves_the_same_run(
    pool: RayPool, local: LocalPool, material: Material, tmp_path: Path
) -> None:
    with searching_with(local):
        search(material.settings(tmp_path / "none", generations=2))
    lost = pool.lost
    # Teacher, start, first and second rung of a generation, and judging.
    kills: Any = KillsInEveryPhase(pool, {0, 1, 2, 5, 6, 7})
    with searching_with(kills):
        search(material.settings(tmp_path / "killed", generations=2))
    assert kills.phases == ["teach", *["measure"] * 5, "teach", "measure", "measure"]
    assert bits_of(tmp_path / "killed") == bits_of(tmp_path / "none")
    pids(pool)
    assert pool.lost >= lost + 6


class DiesAtStart(Marks):
    def prepare(self, spec: WorkerSpec) -> Any:
        for name in ("first", "second"):
            if self.first(name):
                kill(os.getpid())
        return super().prepare(spec)


class DiesAtRow(Marks):
    poison: tuple[int, ...] = ()

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        if self.poison in {tuple(row) for row in rows_NL.tolist()}:
            os.close(os.open(f"{self.marks}/{len(rows_NL)}-{os.getpid()}", os.O_CREAT))
            kill(os.getpid())
        return super().losses(rows_NL, work, fitness)


class DiesAtAnything(Marks):
    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        os._exit(3)

    def each(self, method: str, work: Work, *arguments: Any) -> Any:
        os._exit(3)


class Fails(WorkerActor):
    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        raise ZeroDivisionError("no such thing\nand a second line")


@pytest.mark.cluster
def test_workers_killed_while_they_start_come_again(
    ray_here: None, material: Material, expected: np.ndarray, tmp_path: Path
) -> None:
    with RayPool(material.spec, workers=2, actor_class=marked(DiesAtStart, tmp_path)) as pool:
        assert np.array_equal(pool.measure(candidates(material), taught(pool), Fitness.kl), expected)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.cluster
def test_a_candidate_that_kills_workers_is_found_and_set_aside(
    ray_here: None, material: Material, expected: np.ndarray, tmp_path: Path
) -> None:
    given, notes = candidates(material), list[str]()
    poison = tuple(given[5].tolist())
    cls = marked(DiesAtRow, tmp_path, poison=poison)
    with RayPool(material.spec, workers=2, actor_class=cls, note=notes.append) as pool:
        measured = pool.measure(given, taught(pool), Fitness.kl)
        assert np.isinf(measured[5]).all()
        healthy = [index for index in range(len(given)) if index != 5]
        assert np.array_equal(measured[healthy], expected[healthy])
        assert pool.named_aside == {poison}
        lost = pool.lost
        again = pool.measure(given, taught(pool), Fitness.kl)
        assert np.array_equal(again, measured)
        assert pool.lost == lost, "a candidate that was set aside is not tried again"
    sizes = [int(path.name.partition("-")[0]) for path in tmp_path.iterdir()]
    assert 1 in sizes, "it was tried alone"
    told = [note for note in notes if "set aside" in note]
    assert len(told) == 1
    assert " ".join(map(str, poison)) in told[0]


@pytest.mark.cluster
def test_a_search_goes_on_beside_a_candidate_that_kills_workers(
    ray_here: None, material: Material, tmp_path: Path
) -> None:
    search(material.settings(tmp_path / "healthy", generations=2))
    # A child of the first generation that is not its winner.
    journal = Journal(Location.parse(str(tmp_path / "healthy")))
    first = journal.evaluations(journal.rows[1]).to_pylist()
    loser = next(tuple(entry["genotype"]) for entry in first if tuple(entry["genotype"]) != journal.rows[1].winner)
    space = plan_search(material.settings(tmp_path / "healthy")).ground.space
    marks = tmp_path / "marks"
    marks.mkdir()
    cls = marked(DiesAtRow, marks, poison=tuple(space.rows([loser])[0].tolist()))
    with RayPool(material.spec, workers=2, actor_class=cls) as pool, searching_with(pool):
        search(material.settings(tmp_path / "poisoned", generations=2))
    found = Journal(Location.parse(str(tmp_path / "poisoned")))
    assert found.rows[1].set_aside == (str(loser),)
    assert found.rows[1].lost_workers >= 2
    for row, healthy in zip(found.rows, journal.rows, strict=True):
        losses = {
            (entry["rung"], tuple(entry["genotype"]), entry["batch"]): entry["losses"]
            for entry in found.evaluations(row).to_pylist()
        }
        for entry in journal.evaluations(healthy).to_pylist():
            key = (entry["rung"], tuple(entry["genotype"]), entry["batch"])
            if key[1] == loser:
                assert np.isinf(losses.get(key, np.inf)).all()
            elif key in losses and row.generation <= 1:
                assert losses[key] == entry["losses"]


@pytest.mark.cluster
def test_workers_that_die_at_everything_end_the_measurement(
    ray_here: None, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or else it takes dozens of processes.
    monkeypatch.setattr(ray_pool, "MANY_ASIDE", 0)
    with RayPool(material.spec, workers=1, actor_class=marked(DiesAtAnything, tmp_path)) as pool:
        with pytest.raises(EvorayError, match="workers die while they measure the base model"):
            pool.teach(works(1))
        with pytest.raises(EvorayError, match="workers die again and again, whatever they measure"):
            pool.measure(candidates(material, 8), works(1), Fitness.perplexity)


# Refusals and failures


def test_a_failure_in_a_worker_is_one_line_and_the_pool_lives_on(
    ray_here: None, material: Material, expected: np.ndarray
) -> None:
    with RayPool(material.spec, workers=1, actor_class=Fails) as pool:
        for _ in range(2):
            with pytest.raises(EvorayError) as caught:
                pool.measure(candidates(material), works(), Fitness.perplexity)
            assert str(caught.value) == "a worker failed with ZeroDivisionError: no such thing"
            assert not isinstance(caught.value, UserError)
        assert len(pool.teach(works())) == 3
        handles = [held.handle for held in pool._actors]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(handles[0].each.remote("teach", works()[0]))


def test_workers_of_another_version_or_with_other_weights_are_refused(ray_here: None, material: Material) -> None:
    spec = material.spec
    with pytest.raises(UserError, match=r"worker on \S+ has torch \S+, the driver has 0\.1; give all nodes"):
        RayPool(replace(spec, versions={**spec.versions, "torch": "0.1"}), workers=1)
    with pytest.raises(UserError, match=r"finds other weights of \S+ than the driver \(\w{12}, not 0{12}\)"):
        RayPool(replace(spec, weights_digest="0" * 64), workers=1)


def test_no_room_for_a_worker_says_what_is_missing(ray_here: None, material: Material) -> None:
    with pytest.raises(EvorayError, match=r"no worker for 0 s: each asks for \{'num_cpus': 64\}, free in the cluster"):
        RayPool(replace(material.spec, threads=64), workers=1, wait=0.0)


def test_an_address_without_a_cluster_is_a_users_error(ray_home: Path) -> None:
    script = (
        "from evoray.cluster import WorkerSpec, open_pool\n"
        "from evoray.errors import UserError\n"
        "try: open_pool(WorkerSpec(model='m'), address='127.0.0.1:1')\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("no Ray cluster at '127.0.0.1:1': "), done.stderr
    assert len(done.stdout.splitlines()) == 1
