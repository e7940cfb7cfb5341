"""How many workers have room, against counting by hand and by search over all sizes."""

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.cluster.capacity import (
    GPU_HOST_MEMORY,
    HostMemory,
    Node,
    lacking_gpus,
    max_gpus,
    room_for_workers,
    share_of_time,
    usable_cores,
)
from evoray.errors import UserError

GB = 10**9


def test_cores_decide_where_memory_does_not() -> None:
    nodes = [Node(8, 0, 16 * GB), Node(3, 0, 16 * GB), Node(0, 0, GB)]
    room = room_for_workers(nodes, 0, threads=2, on_gpu=False)
    assert (room.workers, room.slots, room.memory, room.spared) == (5, 5, 0, 0)


def test_memory_decides_where_nothing_can_be_spared() -> None:
    room = room_for_workers([Node(8, 0, 16 * GB), Node(8, 0, 4 * GB)], 5 * GB, threads=1, on_gpu=False)
    assert (room.workers, room.slots, room.memory) == (3, 16, 5 * GB)


def test_variants_give_way_to_workers() -> None:
    likes = HostMemory(6 * GB, 4 * GB, GB // 10)
    room = room_for_workers([Node(4, 0, 16 * GB)], likes, threads=1, on_gpu=False)
    assert (room.workers, room.memory, room.spared, room.variants) == (4, 4 * GB, 2 * GB, 2 * GB)
    alone = room_for_workers([Node(4, 0, 16 * GB)], likes, threads=1, on_gpu=False, workers=2)
    assert (alone.workers, alone.memory, alone.variants) == (2, 6 * GB, 4 * GB)
    tight = room_for_workers([Node(4, 0, 5 * GB)], likes, threads=1, on_gpu=False)
    assert (tight.workers, tight.memory) == (2, 5 * GB // 2)


def test_workers_asked_for_beyond_the_room_are_asked_for_all_the_same() -> None:
    room = room_for_workers([Node(4, 0, 4 * GB)], 2 * GB, threads=1, on_gpu=False, workers=6)
    assert (room.workers, room.fitting) == (6, 2)
    none_yet = room_for_workers([Node(0, 0, 4 * GB)], 2 * GB, threads=1, on_gpu=False, workers=6)
    assert (none_yet.workers, none_yet.fitting, none_yet.memory) == (6, 0, 2 * GB)
    assert room_for_workers([Node(0, 0, 4 * GB)], 2 * GB, threads=1, on_gpu=False).workers == 1


def test_gpus_count_and_ask_for_little_of_the_host() -> None:
    nodes = [Node(32, 4, 20 * GB), Node(32, 2, 200 * GB), Node(64, 0, 500 * GB)]
    room = room_for_workers(nodes, HostMemory(90 * GB, 4 * GB, GB), threads=1, on_gpu=True)
    assert (room.workers, room.slots, room.memory, room.spared) == (4, 6, GPU_HOST_MEMORY, 0)


def test_a_worker_of_several_gpus_needs_them_on_one_node() -> None:
    nodes = [Node(32, 1, 200 * GB)] * 6 + [Node(32, 2, 200 * GB), Node(32, 5, 200 * GB), Node(64, 0, 500 * GB)]
    for gpus, slots in ((1, 13), (2, 3), (3, 1), (5, 1), (6, 0)):
        room = room_for_workers(nodes, 0, threads=1, on_gpu=True, gpus=gpus)
        assert (room.slots, room.fitting, room.workers) == (slots, slots, max(1, slots))
    # Those that were asked for wait for such nodes.
    room = room_for_workers(nodes[:6], 0, threads=1, on_gpu=True, workers=4, gpus=2)
    assert (room.workers, room.fitting) == (4, 0)


def test_what_is_there_and_what_is_missing_for_workers_of_several_gpus() -> None:
    nodes = [Node(32, 1, GB)] * 4
    assert lacking_gpus(nodes, 2).startswith(
        "--gpus-per-worker 2: the Ray cluster has 4 GPUs on 4 nodes, at most 1 on one, and a worker needs 2 on one; "
    )
    assert lacking_gpus([Node(8, 0, GB)], 1).startswith("device cuda: the Ray cluster has no GPU; ")
    assert max_gpus([]) == 0


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 4), st.integers(0, 3))
def test_gpus_of_different_nodes_make_no_worker(counts: list[int], gpus: int, memory: int) -> None:
    """Against taking a node's GPUs one worker after the other."""
    nodes = [Node(8, count, 5) for count in counts]
    taken = 0
    for count in counts:
        left, room = count, 5
        while left >= gpus and room >= memory:
            left, room, taken = left - gpus, room - memory, taken + 1
    assert room_for_workers(nodes, memory, threads=1, on_gpu=True, gpus=gpus).fitting == taken


def test_a_worker_larger_than_every_node_is_a_users_error() -> None:
    said = r"at least 8\.10 GB of memory, and the largest node has 4\.00 GB for workers; lower --variant-memory"
    for workers in (None, 2):
        with pytest.raises(UserError, match=said):
            room_for_workers(
                [Node(4, 0, 4 * GB), Node(0, 0, 64 * GB)],
                HostMemory(12 * GB, 4 * GB, GB // 10),
                threads=1,
                on_gpu=False,
                workers=workers,
            )


@given(
    st.lists(st.builds(Node, st.integers(0, 5), st.just(0), st.integers(0, 60)), max_size=4),
    st.integers(1, 20),
    st.integers(0, 20),
    st.integers(0, 20),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(1, 2),
)
def test_as_many_as_fit_with_as_much_as_lets_them(
    nodes: list[Node], base: int, variants: int, layer: int, workers: int | None, threads: int
) -> None:
    likes = HostMemory(base + variants, variants, layer)

    def fitting(size: int) -> int:
        return sum(min(int(node.cpus) // threads, int(node.memory) // size) for node in nodes)

    sizes = range(base + min(layer, variants), base + variants + 1)
    if any(node.cpus >= threads for node in nodes) and not fitting(sizes[0]):
        with pytest.raises(UserError):
            room_for_workers(nodes, likes, threads=threads, on_gpu=False, workers=workers)
        return
    room = room_for_workers(nodes, likes, threads=threads, on_gpu=False, workers=workers)
    best = min(fitting(sizes[0]), 99 if workers is None else workers)
    assert room.memory == max(size for size in sizes if fitting(size) >= best)
    assert room.fitting == fitting(room.memory)
    assert room.workers == (max(1, best) if workers is None else workers)
    assert room.variants == room.memory - base


def test_host_memory_is_a_number_that_travels() -> None:
    likes = HostMemory(7, 4, 1)
    assert likes == 7
    again = pickle.loads(pickle.dumps(likes))
    assert (int(again), again.variants, again.layer) == (7, 4, 1)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({}, None),
    ],
)
def test_a_containers_share_of_time(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert share_of_time(tmp_path) == cores


def test_usable_cores_are_not_more_than_this_process_is_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert usable_cores() == 1
