"""Nodes that die: no candidate is blamed, the work is done elsewhere, and no wait is without end."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pools import all_ready, candidates, works
from ray.cluster_utils import Cluster
from searches import Material

from evoray.cluster import Dispatcher, LocalPool
from evoray.cluster.ray_pool import RayPool
from evoray.errors import EvorayError
from evoray.fitness import Fitness

pytestmark = pytest.mark.cluster


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[list[Any]]:
    """Two nodes with room for one worker each; tests change the list as they change the nodes."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield nodes
    for node in nodes:
        cluster.remove_node(node, allow_graceful=True)


@pytest.fixture(scope="module")
def rows(material: Material) -> np.ndarray:
    return candidates(material)


@pytest.fixture(scope="module")
def expected(material: Material, rows: np.ndarray) -> np.ndarray:
    return LocalPool(material.spec).measure(rows, works(4), Fitness.perplexity)


@pytest.fixture
def blamed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether candidates were blamed, loss by loss."""
    blamed: list[bool] = []
    lost = Dispatcher.lost

    def watched(self: Dispatcher, worker: Any, *, blame: bool) -> list[int]:
        blamed.append(blame)
        return lost(self, worker, blame=blame)

    monkeypatch.setattr(Dispatcher, "lost", watched)
    return blamed


def node_of(nodes: list[Any], pool: RayPool, index: int) -> Any:
    return next(node for node in nodes if node.node_id == pool._actors[index].node)


def test_a_node_that_dies_is_no_candidates_fault(
    cluster: Cluster, nodes: list[Any], material: Material, rows: np.ndarray, expected: np.ndarray, blamed: list[bool]
) -> None:
    notes: list[str] = []
    with RayPool(material.spec, workers=2, note=notes.append) as pool:
        all_ready(pool, 2)
        gone = node_of(nodes, pool, 0)
        removed: list[Any] = []

        def remove(share: float) -> None:
            if not removed:
                removed.append(gone)
                nodes.remove(gone)
                cluster.remove_node(gone, allow_graceful=False)

        assert np.array_equal(pool.measure(rows, works(4), Fitness.perplexity, remove), expected)
        assert removed
        # The other worker may have done all in time, before anybody noticed.
        while pool.lost < 1:
            assert np.array_equal(pool.measure(rows, works(4), Fitness.perplexity), expected)
        assert blamed == [False] * pool.lost
        assert not pool.named_aside
        # The other worker does the work alone until a node comes.
        assert np.array_equal(pool.measure(rows, works(4), Fitness.perplexity), expected)
        nodes.append(cluster.add_node(num_cpus=1))
        all_ready(pool, 2)
        assert {actor.node for actor in pool._actors} == {node.node_id for node in nodes}
        assert np.array_equal(pool.measure(rows, works(4), Fitness.perplexity), expected)


def test_when_all_nodes_die_the_work_waits_for_new_ones(
    cluster: Cluster, nodes: list[Any], material: Material, rows: np.ndarray, expected: np.ndarray, blamed: list[bool]
) -> None:
    with RayPool(material.spec, workers=2) as pool:
        all_ready(pool, 2)
        removed = False

        def replace_all(share: float) -> None:
            nonlocal removed
            if not removed:
                removed = True
                while nodes:
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=2))

        assert np.array_equal(pool.measure(rows, works(4), Fitness.perplexity, replace_all), expected)
        assert removed
        assert not any(blamed)
        assert not pool.named_aside


def test_without_any_node_the_wait_ends(
    cluster: Cluster, nodes: list[Any], material: Material, rows: np.ndarray
) -> None:
    with RayPool(material.spec, workers=1) as pool:
        pool._wait = 5.0
        while nodes:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        with pytest.raises(EvorayError, match=r"no worker for 5 s: each asks for .*; add nodes"):
            pool.measure(rows, works(4), Fitness.perplexity)
