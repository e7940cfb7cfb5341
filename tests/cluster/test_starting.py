"""How workers come to be: what they import and when, devices that fail, unlike devices, and waits."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pools import Marks, candidates, marked, works
from ray.exceptions import ActorUnavailableError
from searches import Material

from evoray.cluster import LocalPool, WorkerSpec
from evoray.cluster.actor import WorkerActor, breaks_device
from evoray.cluster.actors import PAUSE, TRIES, Actor
from evoray.cluster.capacity import Node
from evoray.cluster.logs import WorkerLogs
from evoray.cluster.ray_pool import RayPool
from evoray.cluster.worker import gpu_names
from evoray.errors import EvorayError, UserError
from evoray.evaluator import Work
from evoray.fitness import Fitness
from evoray.store import Manifest, VariantStore

# Workers can't import tests, so that classes defined here travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


# What is imported when


def test_a_workers_process_imports_nothing_that_reads_the_environment_before_it_is_set() -> None:
    script = (
        "import sys, pickle, evoray.cluster.ray_pool, evoray.cluster.pool\n"
        "from evoray.cluster import WorkerSpec\n"
        "pickle.loads(pickle.dumps(WorkerSpec(model='m')))\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[]\n", done.stderr


class Telling(WorkerActor):
    def hello(self) -> Any:
        # Such as the arguments of a call that was meant for the process before this one.
        import evoray.evaluator  # noqa: F401

        return super().hello()

    def prepare(self, spec: WorkerSpec) -> Any:
        import huggingface_hub

        raise UserError(f"{huggingface_hub.constants.HF_HUB_CACHE} {huggingface_hub.constants.ENDPOINT}")


def test_the_drivers_environment_is_there_when_hugging_face_reads_it(ray_here: None, material: Material) -> None:
    forwarded = {"HF_HUB_CACHE": "/nowhere/hub", "HF_ENDPOINT": "http://nowhere.example"}
    with pytest.raises(UserError, match=r"^/nowhere/hub http://nowhere\.example$"):
        RayPool(replace(material.spec, environment=forwarded), workers=1, actor_class=Telling)


# Devices that fail


@pytest.mark.parametrize(
    ("error", "breaks"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nand more"), True),
        (RuntimeError("cublas: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("shapes don't fit"), False),
        (ValueError("CUDA error: said by somebody else"), False),
    ],
)
def test_what_breaks_a_device(error: Exception, breaks: bool) -> None:
    assert breaks_device(error) is breaks


class _SickWorker:
    def losses(self, *_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class SickOnce(Marks):
    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        if self.first("sick"):
            self.worker: Any = _SickWorker()
        return super().losses(rows_NL, work, fitness)


class OccupiedTwice(Marks):
    def prepare(self, spec: WorkerSpec) -> Any:
        if self.first("one") or self.first("two"):
            raise EvorayError("the device is occupied")
        self.first(f"ready-{os.getpid()}")
        return super().prepare(spec)


def test_an_actor_that_ray_has_yet_to_start_again_is_waited_for_and_one_that_dies_is_not() -> None:
    pool = RayPool.__new__(RayPool)
    actor = Actor(0, None)
    pool._actors, pool._logs, pool.spec = [actor], WorkerLogs(None), WorkerSpec(model="m")
    absent = ActorUnavailableError("The actor is restarting.", None)
    for _ in range(3 * TRIES):
        pool._failed_start(actor, absent)
    assert (actor.failures, actor.placed) == (0, False)
    assert actor.again_at <= time.monotonic() + PAUSE * TRIES
    for failures in range(1, TRIES):
        actor.placed = True
        pool._failed_start(actor, absent)
        assert actor.failures == failures
    actor.placed = True
    with pytest.raises(EvorayError, match=r"^workers die while they load m: "):
        pool._failed_start(actor, absent)


class AlwaysOccupied(WorkerActor):
    def prepare(self, spec: WorkerSpec) -> Any:
        raise EvorayError("the device is occupied")


@pytest.mark.cluster
def test_a_device_that_breaks_costs_a_worker_and_no_search(ray_here: None, material: Material, tmp_path: Path) -> None:
    expected = LocalPool(material.spec).measure(candidates(material, 6), works(2), Fitness.perplexity)
    with RayPool(material.spec, workers=1, actor_class=marked(SickOnce, tmp_path)) as pool:
        assert np.array_equal(pool.measure(candidates(material, 6), works(2), Fitness.perplexity), expected)
        assert pool.lost == 1
        assert not pool.named_aside


@pytest.mark.cluster
def test_a_device_in_use_is_tried_again(ray_here: None, material: Material, tmp_path: Path) -> None:
    notes: list[str] = []
    with RayPool(material.spec, workers=1, actor_class=marked(OccupiedTwice, tmp_path), note=notes.append) as pool:
        assert len(pool.teach(works(2))) == 2
    assert notes == ["worker 0 could not start and is tried again: the device is occupied"]


def test_a_device_in_use_for_good_ends_the_wait_with_its_reason(
    ray_here: None, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = RayPool._check_wait

    def checked(pool: RayPool, least: int = 1) -> None:
        # The wait ends when the reason is known, however long a process takes to start here.
        if pool._last_failure is not None:
            pool._until = 0.0
        check(pool, least)

    monkeypatch.setattr(RayPool, "_check_wait", checked)
    with pytest.raises(EvorayError, match=r"^no worker for 300 s: the device is occupied$") as caught:
        RayPool(material.spec, workers=1, actor_class=AlwaysOccupied, wait=300.0)
    assert not isinstance(caught.value, UserError)


class LoadsLong(Marks):
    """Loads until a file says that the wait is over."""

    def prepare(self, spec: WorkerSpec) -> Any:
        fifo = f"{self.marks}/fifo"
        with open(fifo, encoding="ascii"):
            return super().prepare(spec)


@pytest.mark.cluster
def test_loading_is_no_waiting(
    ray_here: None, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    waited = 0
    check = RayPool._check_wait

    def checked(pool: RayPool, least: int = 1) -> None:
        nonlocal waited
        placed = any(actor.placed and actor.starting is not None for actor in pool._actors)
        if placed:
            # From its place on, no time is left for anything but loading.
            pool._wait, waited = 0.0, waited + 1
        if waited == 3:
            (tmp_path / "fifo").open("w").close()
        check(pool, least)

    monkeypatch.setattr(RayPool, "_check_wait", checked)
    monkeypatch.setattr("evoray.cluster.actors.SAY", 0.0)
    notes: list[str] = []
    with RayPool(material.spec, workers=1, actor_class=marked(LoadsLong, tmp_path), note=notes.append) as pool:
        assert waited >= 3
        assert pool.record
    # Who waits is told for what.
    assert any(
        note.endswith("0 are ready, 1 load the model, 0 wait for a place or for their process") for note in notes
    )


# Unlike devices


class OneUnlike(Marks):
    def prepare(self, spec: WorkerSpec) -> Any:
        record, notes = super().prepare(spec)
        return (record if self.first("first") else replace(record, device="another", capability="9.9")), notes


@pytest.mark.cluster
def test_a_worker_that_differs_is_refused_and_the_others_go_on(
    ray_here: None, material: Material, tmp_path: Path
) -> None:
    expected = LocalPool(material.spec).measure(candidates(material, 6), works(2), Fitness.perplexity)
    notes: list[str] = []
    with RayPool(material.spec, workers=2, actor_class=marked(OneUnlike, tmp_path), note=notes.append) as pool:
        while not any(actor.refused for actor in pool._actors):
            pool._ask_to_start()
            pool._await({})
        assert np.array_equal(pool.measure(candidates(material, 6), works(2), Fitness.perplexity), expected)
        assert pool.record.device != "another"
        refused = next(index for index, actor in enumerate(pool._actors) if actor.refused)
        assert len(notes) == 1
        assert notes[0].startswith(
            f"worker {refused} is refused: it differs from the first one in device: another, not "
        )
        assert "; capability: 9.9, not " in notes[0]
        assert notes[0].endswith("; use nodes of one kind, or --allow-mixed")
        # The last one that fits comes back as another kind.
        for actor in pool._actors:
            if actor.ready:
                os.kill(actor.pid or 0, 9)
        with pytest.raises(UserError, match=r"^the last worker differs from the first one in device: another"):
            pool.measure(candidates(material, 6), works(2), Fitness.perplexity)


@pytest.mark.cluster
def test_mixed_workers_are_let_in_where_that_is_allowed(ray_here: None, material: Material, tmp_path: Path) -> None:
    cls = marked(OneUnlike, tmp_path)
    with RayPool(material.spec, workers=2, actor_class=cls, allow_mixed=True) as pool:
        while not all(actor.ready for actor in pool._actors):
            pool._ask_to_start()
            pool._await({})


# Room


def test_workers_without_room_are_told_once(ray_here: None, material: Material) -> None:
    notes: list[str] = []
    with RayPool(replace(material.spec, threads=3), workers=2, note=notes.append) as pool:
        pool.teach(works(2))
    assert notes == ["1 of 2 workers are placed; each asks for {'num_cpus': 3}, and the others join when there is room"]


def test_a_worker_larger_than_the_machine_is_refused_at_once(ray_here: None, material: Material) -> None:
    with pytest.raises(UserError, match=r"^each worker asks for at least 1000\.00 GB of memory, and the largest node"):
        RayPool(material.spec, workers=2, memory=10**12)


def test_workers_on_gpus_wait_for_the_first_gpu_of_a_cluster_only_when_they_are_counted(
    ray_here: None, material: Material
) -> None:
    spec = replace(material.spec, device="cuda")
    with pytest.raises(UserError, match="the Ray cluster has no GPU"):
        RayPool(spec)
    with pytest.raises(EvorayError, match=r"^no worker for 0 s: each asks for \{'num_cpus': 1, 'num_gpus': 1\}"):
        RayPool(spec, workers=1, wait=0.0)


def test_workers_of_several_gpus_are_told_what_is_there_and_what_is_missing(
    ray_here: None, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of one GPU each; nobody starts a process on them."""
    notes: list[str] = []
    spec = replace(material.spec, device="auto", gpus=2)
    monkeypatch.setattr("evoray.cluster.actors.nodes", lambda: [Node(8, 1, 10**10)] * 3)
    with pytest.raises(
        UserError, match=r"^--gpus-per-worker 2: the Ray cluster has 3 GPUs on 3 nodes, at most 1 on one"
    ):
        RayPool(spec)
    with pytest.raises(EvorayError, match=r"^no worker for 0 s: each asks for \{'num_cpus': 1, 'num_gpus': 2\}"):
        RayPool(spec, workers="1..4", wait=0.0, note=notes.append)
    (note,) = notes
    assert note.startswith(
        "room for 0 workers, and 1 are needed to begin: each asks for {'num_cpus': 1, 'num_gpus': 2}, and the cluster "
        "has 24 cores, 3 GPUs (at most 1 on one) and 30.0 GB for workers on 3 nodes; waiting 0 s for more"
    )


def test_gpus_as_a_record_names_them() -> None:
    assert gpu_names(["H100"]) == "H100"
    assert gpu_names(["H100", "H100"]) == "2 x H100"
    assert gpu_names(["H100", "A100", "H100"]) == "2 x H100 + 1 x A100"


# Stores of other models


def test_a_store_of_another_model_is_refused_without_being_told_the_models_digest(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert material.spec.weights_digest is None
    opened = VariantStore.open

    def another(place: str, **how: Any) -> Any:
        store = opened(place, **how)
        changed = Manifest.model_validate(store.manifest.model_dump() | {"weights_digest": "0" * 64})
        monkeypatch.setattr(store, "manifest", changed)
        return store

    monkeypatch.setattr(VariantStore, "open", another)
    with pytest.raises(UserError, match="the store was made from other base weights"):
        LocalPool(material.spec)
