"""What workers wrote is kept: of those that are lost, and of those that end with the pool. Its lines say where from."""

import json
import logging
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import ray
from pools import candidates, works
from searches import Material

from evoray.cluster import logs
from evoray.cluster.actor import WorkerActor
from evoray.cluster.logs import TAIL, WorkerLogs
from evoray.cluster.ray_pool import RayPool
from evoray.evaluator import Work
from evoray.fitness import Fitness
from evoray.log_line import JsonFormatter

# Workers can't import tests, so that classes defined here travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Says(WorkerActor):
    """Has something to say of all it does."""

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        logging.getLogger("evoray").warning("at %d candidates", len(rows_NL))
        return super().losses(rows_NL, work, fitness)


@pytest.mark.cluster
def test_a_lost_worker_and_the_one_after_it_leave_their_logs(ray_here: None, material: Material) -> None:
    rows, (work,) = candidates(material, 4), works(1)
    kept: dict[str, bytes] = {}
    pids = []
    with RayPool(material.spec, workers=1, keep_log=kept.__setitem__, run="/runs/a", actor_class=Says) as pool:
        pids.append(pool._actors[0].pid)
        os.kill(pids[0] or 0, 9)
        pool.at("/runs/a", 3)
        losses = pool.measure(rows, [work], Fitness.perplexity)
        pids.append(pool._actors[0].pid)
        pool.at("/runs/b", 0)
        again = pool.measure(rows, [work], Fitness.perplexity)
    # A sweep's workers go from run to run; what they say of it changes nothing of what they measure.
    assert np.array_equal(losses, again)
    assert sorted(kept) == sorted(f"worker-0-{pid}.log" for pid in pids)
    lines = [
        [json.loads(line) for line in kept[f"worker-0-{pid}.log"].decode().splitlines() if line.startswith("{")]
        for pid in pids
    ]
    for pid, of_process in zip(pids, lines, strict=True):
        assert {(line["pid"], line["worker"], line["logger"]) for line in of_process} == {(pid, 0, "evoray")}
    (first,), (ready, *said) = lines
    assert (first["run"], "generation" in first, first["text"].startswith("ready after ")) == ("/runs/a", False, True)
    assert (ready["run"], ready["generation"], ready["text"].startswith("ready after ")) == ("/runs/a", 3, True)
    assert [(line["run"], line["generation"], line["text"]) for line in said] == [
        ("/runs/a", 3, "at 4 candidates"),
        ("/runs/b", 0, "at 4 candidates"),
    ]


def test_a_line_says_at_what_it_was_written() -> None:
    lines = JsonFormatter(worker=2)
    record = logging.LogRecord("evoray", logging.WARNING, "here", 1, "one %s", ("word",), None)
    assert json.loads(lines.format(record)).keys() == {"time", "level", "event", "worker", "logger", "text"}
    lines.at = {"run": "/runs/a", "generation": 7}
    found = json.loads(lines.format(record))
    assert (found["worker"], found["run"], found["generation"], found["text"]) == (2, "/runs/a", 7, "one word")


def test_the_end_of_a_log_is_what_is_kept(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        def get_logs_dir_path(self) -> str:
            return str(tmp_path)

    monkeypatch.setattr(ray._private.worker.global_worker, "node", Node())
    (tmp_path / "worker-abc-01000000-77.err").write_bytes(b"begin" + bytes(TAIL - 3) + b"end")
    kept: dict[str, bytes] = {}
    here = ray.get_runtime_context().get_node_id()
    found = WorkerLogs(kept.__setitem__)
    found.fetch(3, here, 77)
    found.fetch(3, here, 78)  # never wrote a word
    found.fetch(3, None, None)  # never had a place
    found.finish()
    WorkerLogs(None).fetch(3, here, 77)
    assert list(kept) == ["worker-3-77.log"]
    assert kept["worker-3-77.log"] == bytes(TAIL - 3) + b"end"


def test_no_log_ends_a_run_and_the_end_does_not_wait_for_those_that_do_not_come(
    ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, kept = threading.Event(), dict[str, bytes]()

    def elsewhere(node: str, pid: int) -> bytes:
        if pid == 77:
            assert go_on.wait(100)
        if pid == 78:
            raise RuntimeError("no dashboard")
        return b"words"

    monkeypatch.setattr(logs, "_elsewhere", elsewhere)
    monkeypatch.setattr(logs, "AT_THE_END", 2.0)
    found = WorkerLogs(kept.__setitem__)
    for worker, pid in enumerate((77, 78, 79)):
        found.fetch(worker, "ab" * 28, pid)
    found.finish()
    assert list(kept) == ["worker-2-79.log"]
    go_on.set()
