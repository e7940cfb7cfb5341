"""What workers wrote to their logs, brought to the driver: nodes go away, and take Ray's files with them.

Holds: `WorkerLogs`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray

TAIL = 1 << 16
"""Bytes of a log that are kept: its end, which tells what happened last."""

LINES = 500
"""The same in lines, where Ray counts by these."""

AT_THE_END = 1.5
"""Seconds for all logs together when a pool is closed: who asked for the end kills a few seconds later."""

ANSWER = 10
"""Seconds that Ray's dashboard may take to get a log from a node."""


class WorkerLogs:
    """Keeps the end of the standard error of workers' processes, which is where their logs go.

    Each is brought in a thread of its own, so that no work waits for it, and what can't be read is left out: logs end
    no run.

    Args:
        keep: takes a name and what stands in that log, in any thread; None where nobody wants them.
    """

    def __init__(self, keep: Callable[[str, bytes], None] | None) -> None:
        self._keep = keep
        self._threads: list[threading.Thread] = []

    def fetch(self, worker: int, node: str | None, pid: int | None) -> None:
        """Keeps the log of one process, whether it still lives or not.

        Args:
            worker: its number.
            node: id of its node.
            pid: of the process there.
        """
        if self._keep is None or node is None or pid is None:
            return
        # A daemon, because Ray's dashboard may never answer, and Python waits for others when it ends.
        thread = threading.Thread(target=self._bring, args=(worker, node, pid), name=f"log of {pid}", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def finish(self) -> None:
        """Waits for the logs that are on their way, but not for long."""
        until = time.monotonic() + AT_THE_END
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _bring(self, worker: int, node: str, pid: int) -> None:
        assert self._keep is not None
        try:
            found = _here(node, pid)
            if found is None:
                found = _elsewhere(node, pid)
        except Exception:
            return  # of a broken cluster, in many names
        if found:
            self._keep(f"worker-{worker}-{pid}.log", found)


def _here(node: str, pid: int) -> bytes | None:
    """From this machine's disk, which needs no dashboard; None of another node."""
    if ray.get_runtime_context().get_node_id() != node:
        return None
    folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    for path in folder.glob(f"worker-*-{pid}.err"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read()
    return b""


def _elsewhere(node: str, pid: int) -> bytes:
    from ray.util.state import get_log

    lines = get_log(node_id=node, pid=pid, suffix="err", tail=LINES, timeout=ANSWER)
    return "".join(lines).encode()[-TAIL:]
