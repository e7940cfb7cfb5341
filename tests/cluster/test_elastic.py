"""Workers that come and go: ranges of workers, GPUs of the cluster, nodes that are drained or replaced."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pools import all_ready, candidates, works
from ray.cluster_utils import Cluster
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

PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION`."""


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[list[Any]]:
    """One node with room for one worker; tests change the list as they change the nodes."""
    nodes = [cluster.add_node(num_cpus=1)]
    yield nodes
    for node in nodes:
        cluster.remove_node(node, allow_graceful=True)


@pytest.fixture(scope="module")
def rows(material: Material) -> np.ndarray:
    return candidates(material)


@pytest.fixture(scope="module")
def local(material: Material) -> LocalPool:
    return LocalPool(material.spec)


@pytest.fixture(scope="module")
def expected(local: LocalPool, rows: np.ndarray) -> np.ndarray:
    return local.measure(rows, works(6), Fitness.perplexity)


class WaitsForTheThird(WorkerActor):
    """No answer comes before a third worker is prepared."""

    marks = ""

    def prepare(self, spec: WorkerSpec) -> Any:
        found = super().prepare(spec)
        (Path(self.marks) / f"prepared-{os.getpid()}").touch()
        if len(list(Path(self.marks).glob("prepared-*"))) == 3:
            # As long as this end is open, the others' no longer block.
            self.open = os.open(f"{self.marks}/fifo", os.O_RDWR)
        return found

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        os.close(os.open(f"{self.marks}/fifo", os.O_RDONLY))
        (Path(self.marks) / f"worked-{os.getpid()}").touch()
        return super().losses(rows_NL, work, fitness)


def test_it_begins_with_the_least_number_and_who_comes_joins_in_the_middle(
    cluster: Cluster, nodes: list[Any], material: Material, rows: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    cls = type("WaitsForTheThird", (WaitsForTheThird,), {"marks": str(tmp_path)})
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if "are needed to begin" in text:
            nodes.append(cluster.add_node(num_cpus=1))

    with RayPool(material.spec, workers="2..3", note=note, actor_class=cls) as pool:
        assert notes[0].startswith(
            "room for 1 workers, and 2 are needed to begin: each asks for {'num_cpus': 1}, and the cluster has 1 "
            "cores, 0 GPUs and "
        )
        assert sum(actor.ready for actor in pool._actors) == 2
        nodes.append(cluster.add_node(num_cpus=1))
        assert np.array_equal(pool.measure(rows, works(6), Fitness.perplexity), expected)
        assert len(list(tmp_path.glob("worked-*"))) == 3


def test_too_few_are_told_and_the_wait_ends(nodes: list[Any], material: Material) -> None:
    with pytest.raises(EvorayError, match=r"^(no worker|1 of at least 2 workers) for 3 s: each asks for .*; add nodes"):
        RayPool(material.spec, workers="2..4", wait=3.0, note=lambda text: None)


def test_without_a_number_new_nodes_bring_new_workers(
    cluster: Cluster, nodes: list[Any], material: Material, rows: np.ndarray, expected: np.ndarray
) -> None:
    notes: list[str] = []
    with RayPool(material.spec, note=notes.append) as pool:
        assert pool.workers == 1
        nodes.append(cluster.add_node(num_cpus=1))
        while pool.workers < 2:
            assert np.array_equal(pool.measure(rows, works(6), Fitness.perplexity), expected)
        assert notes == ["1 workers more: the cluster has grown"]
        all_ready(pool, 2)
        assert np.array_equal(pool.measure(rows, works(6), Fitness.perplexity), expected)


class OnNoRealGpu(WorkerActor):
    def prepare(self, spec: WorkerSpec) -> Any:
        assert spec.device == "cuda"
        return super().prepare(replace(spec, device="cpu"))


def test_gpus_are_those_of_the_cluster_and_a_ceiling_leaves_some(cluster: Cluster, material: Material) -> None:
    """The driver's own node has none."""
    node = cluster.add_node(num_cpus=4, num_gpus=3)
    try:
        spec = replace(material.spec, device="auto")
        with RayPool(spec, actor_class=OnNoRealGpu) as pool:
            assert pool.workers == 3
            assert pool.spec.device == "cuda"
        with RayPool(spec, workers="..2", actor_class=OnNoRealGpu) as pool:
            assert pool.workers == 2
    finally:
        cluster.remove_node(node, allow_graceful=True)


def test_a_node_that_is_drained_gets_no_more_work_and_its_worker_moves(
    cluster: Cluster, nodes: list[Any], material: Material, rows: np.ndarray, expected: np.ndarray
) -> None:
    notes: list[str] = []
    nodes.append(cluster.add_node(num_cpus=1))
    with RayPool(material.spec, workers=2, note=notes.append) as pool:
        all_ready(pool, 2)
        going = pool._actors[0].node
        gcs = ray._private.worker.global_worker.gcs_client
        assert gcs.drain_node(going, PREEMPTION, "spot", 2**62)[0]
        while not notes:
            assert np.array_equal(pool.measure(rows, works(6), Fitness.perplexity), expected)
        assert notes == ["worker 0 leaves its node, which will be gone soon"]
        nodes.append(cluster.add_node(num_cpus=1))
        all_ready(pool, 2)
        assert going not in {actor.node for actor in pool._actors}
        assert np.array_equal(pool.measure(rows, works(6), Fitness.perplexity), expected)
        assert pool.lost == 0


class ReplacesNodes:
    """A pool whose first node is replaced at the first report of some of its measurements."""

    def __init__(self, pool: RayPool, cluster: Cluster, nodes: list[Any], at: set[int]) -> None:
        self._pool, self._cluster, self._nodes, self._at, self._calls = pool, cluster, nodes, at, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def measure(
        self, rows_NL: np.ndarray, works: list[Work], fitness: Fitness, progress: object = None, ahead: Any = ()
    ) -> np.ndarray:
        number, self._calls = self._calls, self._calls + 1

        def replace_node(share: float) -> None:
            if number in self._at:
                self._at.discard(number)
                self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)
                self._nodes.append(self._cluster.add_node(num_cpus=1))

        return self._pool.measure(rows_NL, works, fitness, replace_node, ahead)


def test_a_search_whose_nodes_are_replaced_in_generations_leaves_the_same_run(
    cluster: Cluster, nodes: list[Any], local: LocalPool, material: Material, tmp_path: Path
) -> None:
    with searching_with(local):
        search(material.settings(tmp_path / "none", generations=2))
    nodes.append(cluster.add_node(num_cpus=1))
    with RayPool(material.spec, workers=2) as pool:
        replaced: Any = ReplacesNodes(pool, cluster, nodes, {1, 3})
        with searching_with(replaced):
            search(material.settings(tmp_path / "replaced", generations=2))
        assert not pool.named_aside
    assert bits_of(tmp_path / "replaced") == bits_of(tmp_path / "none")
