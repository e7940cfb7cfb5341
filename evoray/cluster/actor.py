"""The process of a worker under Ray.

Holds: `ModelActor`, `WorkerActor`, `UnpreparedError`, `breaks_device`, `or_die`.

What a process of Ray imports to know this class decides what it reads of its environment, so torch, transformers and
what imports them come in only when the worker is built.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import platform
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import ray

from evoray.cluster.metrics import TransferMetrics
from evoray.cluster.worker import DeviceRecord, ModelWorker, Worker, WorkerSpec, take_environment
from evoray.errors import EvorayError
from evoray.log_line import JsonFormatter

if TYPE_CHECKING:
    import numpy as np

    from evoray.evaluator import Work
    from evoray.fitness import Fitness

Result = TypeVar("Result")

_logger = logging.getLogger("evoray")

DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl(2), which only Linux has: a signal for when the parent, Ray's node process, is gone."""


class UnpreparedError(Exception):
    """The process was restarted while it had no call; it has to be prepared again, and no work is to blame."""


class ModelActor:
    """The worker's process. Building the worker may fail, so that is a call with a result, not the constructor.

    Args:
        environment: of the driver, without secrets, because Ray's head keeps it. It is set here and not only with the
            worker: a call that was sent to the process before this one brings its arguments, and the modules that
            these need, before anything is prepared.
        number: of the worker among the driver's; its log lines have it.
    """

    def __init__(self, environment: dict[str, str] | None = None, number: int = 0) -> None:
        take_environment(environment or {})
        self._at, self._lines = "{}", _log_as_json(number)
        self.worker: ModelWorker | None = None
        # After its driver or node was killed, Ray would keep this process, and its device's memory, for a minute.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)

    def hello(self) -> tuple[str, int]:
        """The node and the process: Ray found a place for it, and it lives."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def prepare(self, spec: WorkerSpec) -> tuple[DeviceRecord, tuple[str, ...]]:
        """Builds the worker; returns its record and notes.

        Raises:
            UserError: see `Worker`.
            EvorayError: this device or node can't, now; another one, or a new process later, may.
        """
        if self.worker is None:
            began = time.monotonic()
            try:
                self.worker = self._make(spec)
            except Exception as error:
                if (cause := _device_error(error)) is None:
                    raise
                raise EvorayError(f"its device fails: {str(cause).strip().splitlines()[0]}") from None
            seconds = time.monotonic() - began
            _logger.info("ready after %.1f s with %s on %s", seconds, spec.model, self.worker.record.device)
        return self.worker.record, self.worker.notes

    def start(self, at: str, spec: WorkerSpec) -> tuple[DeviceRecord, tuple[str, ...]]:
        """`prepare`, as the driver calls it; `at` is what log lines say beside their text, as JSON."""
        self._log_at(at)
        return self.prepare(spec)

    def _log_at(self, at: str) -> None:
        if at != self._at:
            self._at, self._lines.at = at, json.loads(at)

    def _make(self, spec: Any) -> ModelWorker:
        """What this process holds, of the spec that the driver gave."""
        raise NotImplementedError

    def _ready(self) -> Any:
        """What `_make` made.

        Raises:
            UnpreparedError: nothing yet.
        """
        if self.worker is None:
            raise UnpreparedError
        return self.worker


class WorkerActor(ModelActor):
    """The process of an evaluator."""

    def __init__(self, environment: dict[str, str] | None = None, number: int = 0) -> None:
        super().__init__(environment, number)
        self._transfers = TransferMetrics()

    def _make(self, spec: WorkerSpec) -> Worker:
        return Worker(spec)

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        """See `Evaluator.losses`."""
        worker: Worker = self._ready()
        losses_NB = or_die(lambda: worker.losses(rows_NL, work, fitness))
        self._transfers.publish()
        return losses_NB

    def each(self, method: str, work: Work, *arguments: Any) -> Any:
        """See `Worker.each`."""
        worker: Worker = self._ready()
        return or_die(lambda: worker.each(method, work, *arguments))

    # As the driver calls them. Plain bytes and strings cost it a third less to send than arrays and enumerations. `at`
    # is what log lines say beside their text, as JSON: the run and its generation. Nothing else may depend on it.

    def measure(self, at: str, count: int, rows: bytes, work: Work, fitness: str) -> tuple[np.ndarray, float]:
        """`losses` of int8 rows, and the seconds they took."""
        self._log_at(at)
        self._ready()
        import numpy as np

        from evoray.fitness import Fitness

        rows_NL = np.frombuffer(rows, dtype=np.int8).reshape(count, len(rows) // count)
        began = time.perf_counter()
        return self.losses(rows_NL, work, Fitness(fitness)), time.perf_counter() - began

    def timed(self, at: str, method: str, work: Work, *arguments: Any) -> tuple[Any, float]:
        """`each`, and the seconds it took."""
        self._log_at(at)
        began = time.perf_counter()
        return self.each(method, work, *arguments), time.perf_counter() - began


def _log_as_json(number: int) -> JsonFormatter:
    """Sends what is logged in this process to its standard error, which Ray keeps in a file; see `WorkerLogs`."""
    handler, lines = logging.StreamHandler(), JsonFormatter(node=platform.node(), pid=os.getpid(), worker=number)
    handler.setFormatter(lines)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _logger.setLevel(logging.INFO)
    return lines


def breaks_device(error: BaseException) -> bool:
    """Whether a device's context is lost with this error: nothing in this process can use the device any more."""
    import torch

    # Errors of libraries on the device come as RuntimeError, and say "CUDA error: CUBLAS_STATUS_...".
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


def _device_error(error: BaseException | None) -> BaseException | None:
    """The error of the device, or its full memory, that an error comes from: a loader may have wrapped it."""
    import torch

    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or breaks_device(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def or_die(call: Callable[[], Result]) -> Result:
    """The call's result. Where it breaks the device, this process ends: its work is done again in another one."""
    try:
        return call()
    except RuntimeError as error:
        if breaks_device(error):
            _die(error)
        raise


def _die(error: BaseException) -> NoReturn:
    _logger.error("the device failed, and this worker ends: %s", error)
    logging.shutdown()
    os._exit(1)
