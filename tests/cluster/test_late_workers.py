"""Workers that are slow, hang, or are killed while they swap weights: nobody waits for them, and no bit changes."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pools import Marks, candidates, marked, works
from searches import Material, bits_of, searching_with

from evoray.cluster import LocalPool, WorkerSpec
from evoray.cluster.actor import WorkerActor
from evoray.cluster.ray_pool import RayPool
from evoray.errors import EvorayError
from evoray.evaluator import Work
from evoray.fitness import Fitness
from evoray.run.search import search

pytestmark = pytest.mark.cluster

# Workers can't import tests, so that classes defined here travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def rows(material: Material) -> np.ndarray:
    return candidates(material)


@pytest.fixture(scope="module")
def local(material: Material) -> LocalPool:
    return LocalPool(material.spec)


@pytest.fixture(scope="module")
def expected(local: LocalPool, rows: np.ndarray) -> np.ndarray:
    return local.measure(rows, works(4), Fitness.perplexity)


@pytest.fixture(scope="module")
def undisturbed(local: LocalPool, material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A search that nobody disturbs."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with searching_with(local):
        search(material.settings(run, generations=2))
    return bits_of(run)


class DiesInSwap(Marks):
    """Twice a process is killed between two layers of a candidate."""

    def prepare(self, spec: WorkerSpec) -> Any:
        found = super().prepare(spec)
        assert self.worker is not None
        adapter = self.worker.evaluator.adapter
        swap, swaps = adapter.swap, 0

        def killed(*arguments: Any) -> None:
            nonlocal swaps
            swap(*arguments)
            swaps += 1
            if swaps == 5 and (self.first("one") or self.first("two")):
                os.kill(os.getpid(), signal.SIGKILL)

        adapter.swap = killed  # type: ignore[method-assign]
        return found


class TenTimesSlower(Marks):
    """One worker takes ten times as long as it would."""

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        began = time.perf_counter()
        found = super().losses(rows_NL, work, fitness)
        if self.first("slow") or Path(f"{self.marks}/slow-{os.getpid()}").exists():
            Path(f"{self.marks}/slow-{os.getpid()}").touch()
            # This is its work, not a wait for somebody.
            time.sleep(9 * (time.perf_counter() - began))
        return found


class HangsOnce(Marks):
    """The first process stops for good at its fourth call."""

    calls = 0

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        self.calls += 1
        if self.calls == 4 and self.first("hangs"):
            signal.pause()
        return super().losses(rows_NL, work, fitness)


class HangsAtFirst(Marks):
    """The first process stops for good while it loads its model, the second at the first batch of the teacher, the
    third at the first candidates, the fourth goes on. All imports are made before, so that what is timed is short."""

    def hello(self) -> Any:
        import transformers.models.llama.modeling_llama  # noqa: F401

        import evoray.evaluator  # noqa: F401

        return super().hello()

    def prepare(self, spec: WorkerSpec) -> Any:
        if self.first("load"):
            signal.pause()
        return super().prepare(spec)

    def each(self, method: str, work: Work, *arguments: Any) -> Any:
        if self.first(method):
            signal.pause()
        return super().each(method, work, *arguments)

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        if self.first("losses"):
            signal.pause()
        return super().losses(rows_NL, work, fitness)


class NeverLoads(WorkerActor):
    def prepare(self, spec: WorkerSpec) -> Any:
        signal.pause()


def test_workers_killed_while_they_swap_weights_change_no_bit_of_a_search(
    ray_here: None, material: Material, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    cls = marked(DiesInSwap, tmp_path / "marks")
    with RayPool(material.spec, workers=2, actor_class=cls) as pool, searching_with(pool):
        search(material.settings(tmp_path / "run", generations=2))
        assert pool.lost >= 2
        assert not pool.named_aside
    assert bits_of(tmp_path / "run") == undisturbed


def test_a_worker_ten_times_slower_changes_no_bit_of_a_search(
    ray_here: None, material: Material, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    cls = marked(TenTimesSlower, tmp_path / "marks")
    with RayPool(material.spec, workers=2, actor_class=cls) as pool, searching_with(pool):
        search(material.settings(tmp_path / "run", generations=2))
        assert pool.lost == 0
    assert bits_of(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_hangs_is_restarted(
    ray_here: None, material: Material, rows: np.ndarray, expected: np.ndarray, tmp_path: Path, workers: int
) -> None:
    notes: list[str] = []
    cls = marked(HangsOnce, tmp_path / "marks")
    with RayPool(material.spec, workers=workers, actor_class=cls, hung_after=2.0, note=notes.append) as pool:
        # Where there are two, the other one does its work meanwhile.
        while pool.lost < 1:
            assert np.array_equal(pool.measure(rows, works(4), Fitness.perplexity), expected)
        assert re.search(r" has not answered for \d+ s, far beyond what can be expected; it is restarted$", notes[0])
        assert not pool.named_aside
        assert np.array_equal(pool.measure(rows, works(4), Fitness.perplexity), expected)


def test_workers_that_hang_before_any_speed_is_known_change_no_bit_of_a_search(
    ray_here: None, material: Material, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    notes: list[str] = []
    cls = marked(HangsAtFirst, tmp_path / "marks")
    with (
        RayPool(material.spec, workers=1, actor_class=cls, hung_at_start=20.0, note=notes.append) as pool,
        searching_with(pool),
    ):
        search(material.settings(tmp_path / "run", generations=2))
        assert pool.lost >= 2
        assert not pool.named_aside
    assert {"load", "teach", "losses"} <= {path.name for path in (tmp_path / "marks").iterdir()}
    assert notes[0].endswith(f" has not loaded {material.model} within 20 s; it is restarted")
    said = " has not answered for "
    assert sum(said in note for note in notes) >= 2
    assert bits_of(tmp_path / "run") == undisturbed


def test_starts_that_all_hang_end_with_what_can_be_done(ray_here: None, material: Material) -> None:
    with pytest.raises(EvorayError, match=r"^3 starts of worker 0 in a row did not load .* give --hung-at-start$"):
        RayPool(material.spec, workers=1, actor_class=NeverLoads, hung_at_start=0.5, note=lambda _: None)
