"""One evaluator in some process: what it is made from, and what its bits depend on.

Holds: `WorkerSpec`, `DeviceRecord`, `versions`, `cpu_name`, `gpu_names`, `ModelWorker`, `Worker`. Knows no Ray: the
driver's own process runs the same worker. Imports no torch and no transformers before a worker is built: they read the
environment once, and what is forwarded has to be there by then.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from evoray.errors import EvorayError, UserError
from evoray.settings import TOP_K, VARIANT_BYTES, WORK_BYTES

if TYPE_CHECKING:
    import numpy as np

    from evoray.evaluator import Work
    from evoray.fitness import Fitness

FORWARDED = (
    *("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
)
"""Environment that decides what a worker can load; credentials of object storage are each node's own. It travels as an
argument, not in Ray's runtime environment, because that one is shown on dashboards and a token must not be."""

MEASUREMENTS = frozenset({"teach", "influences", "pass_bytes"})
"""Methods of an evaluator that `Worker.each` runs: (batch, arguments) -> what it says of the batch."""


def versions() -> dict[str, str]:
    """Versions that must be equal on driver and workers: python (major and minor), torch, transformers, evoray."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: version(name) for name in ("torch", "transformers", "evoray")},
    }


def forwarded_environment() -> dict[str, str]:
    """What of this process's environment workers are given."""
    return {name: os.environ[name] for name in FORWARDED if name in os.environ}


def take_environment(forwarded: dict[str, str]) -> None:
    """Sets what this process lacks of the driver's environment. Too late once huggingface_hub is imported."""
    for name, value in forwarded.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs to build its evaluator.

    Attributes:
        model, revision, trust_remote_code, attn_implementation, dtype, allow_partial: as `load_model` takes them.
        device: "auto", "cpu" or "cuda".
        store: folder or URI of the variants; None to judge the base model alone.
        weights_digest: of the base weights, as the driver found them; a worker that loads others is refused. None where
            the driver did not look; the store's is compared in any case.
        threads: of torch, per worker.
        gpus: that the blocks are spread over, where the device is "cuda".
        top_k: of the base model's tokens, how many a KL over top tokens looks at.
        work_bytes: limit of all beside the base model and ready weights.
        variant_bytes: limit of ready weights on the device.
        cache_bytes: limit of a node's disk for files of a remote store; None for the usual one.
        reuse: resume candidates from common prefixes.
        droppable: names of sublayers and blocks that candidates may do without, in the order of their columns.
        versions: of the driver.
        environment: set where the worker's own process lacks it. Not shown by repr: it may hold a token.
    """

    model: str
    store: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    dtype: str = "auto"
    allow_partial: bool = False
    device: str = "auto"
    weights_digest: str | None = None
    threads: int = 1
    gpus: int = 1
    top_k: int = TOP_K
    work_bytes: int = WORK_BYTES
    variant_bytes: int = VARIANT_BYTES
    cache_bytes: int | None = None
    reuse: bool = True
    droppable: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=versions)
    environment: dict[str, str] = field(default_factory=forwarded_environment, repr=False)


@dataclass(frozen=True)
class DeviceRecord:
    """What the bits of a loss depend on beside model, candidate and batch. Equal on all workers of a run."""

    device: str
    capability: str
    dtype: str
    attention: str
    products: str
    threads: int
    top_k: int
    python: str
    torch: str
    transformers: str
    evoray: str

    def differences(self, other: DeviceRecord) -> list[str]:
        """One `key: this, not that` per key that differs."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{key}: {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]


class ModelWorker:
    """A loaded model, and the record of what its bits depend on.

    Attributes:
        adapter: the model.
        store: of the spec; None where it names none.
        record, notes: what the driver is told.

    Raises:
        UserError: other versions than the driver's, other base weights, a model or store that can't be read.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        take_environment(spec.environment)
        found = versions()
        differing = [
            f"{name} {found[name]}, the driver has {want}"
            for name, want in spec.versions.items()
            if found[name] != want
        ]
        if differing:
            raise UserError(
                f"worker on {platform.node()} has {'; '.join(differing)}; give all nodes the same image or runtime_env"
            )
        # Late, so that the environment above decides where weights are looked for.
        import torch

        from evoray.model import ModelAdapter, checkpoint_facts, load_model, pick_devices
        from evoray.model.products import library
        from evoray.store import VariantStore

        # The whole machine is shared by one-thread workers; more threads than cores are many times slower.
        torch.set_num_threads(spec.threads)
        self.store = None if spec.store is None else VariantStore.open(spec.store, cache_bytes=spec.cache_bytes)
        if self.store is not None or spec.weights_digest is not None:
            facts = checkpoint_facts(
                spec.model, spec.revision, spec.trust_remote_code, allow_partial=spec.allow_partial
            )
            if spec.weights_digest is not None and facts.weights_digest != spec.weights_digest:
                raise UserError(
                    f"worker on {platform.node()} finds other weights of {spec.model} than the driver "
                    f"({facts.weights_digest[:12]}, not {spec.weights_digest[:12]}); "
                    "give --revision, or clear its cache"
                )
            if self.store is not None:
                self.store.manifest.check_made_from(spec.model, facts.weights_digest)
        places = pick_devices(spec.device, spec.gpus)
        device = places[0]
        model = load_model(
            spec.model,
            revision=spec.revision,
            dtype=spec.dtype,
            device=str(device),
            attn_implementation=spec.attn_implementation,
            trust_remote_code=spec.trust_remote_code,
            gpus=spec.gpus,
        )
        self.adapter = ModelAdapter(model, allow_partial=spec.allow_partial)
        self.adapter.check_droppable(spec.droppable)
        self.notes = self.adapter.notes
        self.record = DeviceRecord(
            device=gpu_names([torch.cuda.get_device_name(each) for each in places])
            if device.type == "cuda"
            else cpu_name(),
            capability=".".join(map(str, torch.cuda.get_device_capability(device)))
            if device.type == "cuda"
            else torch.backends.cpu.get_cpu_capability(),
            dtype=str(self.adapter.dtype).removeprefix("torch."),
            attention=str(getattr(model.config, "_attn_implementation", None)),
            # Logits are float32 whatever the model is.
            products=library(device, torch.float32),
            threads=spec.threads,
            top_k=spec.top_k,
            **found,
        )


class Worker(ModelWorker):
    """An evaluator with the model loaded."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        from evoray.evaluator import Evaluator

        self.evaluator: Evaluator = Evaluator(
            self.adapter,
            self.store,
            droppable=spec.droppable,
            top_k=spec.top_k,
            work_bytes=spec.work_bytes,
            variant_bytes=spec.variant_bytes,
            reuse=spec.reuse,
        )

    def losses(self, rows_NL: np.ndarray, work: Work, fitness: Fitness) -> np.ndarray:
        """As `Evaluator.losses`."""
        return self.evaluator.losses(rows_NL, work, fitness)

    def each(self, method: str, work: Work, *arguments: Any) -> Any:
        """What one of the evaluator's `MEASUREMENTS` says of a batch.

        Raises:
            EvorayError: the method is none of them.
        """
        if method not in MEASUREMENTS:
            raise EvorayError(f"{method!r} is no measurement of a worker; known are {', '.join(sorted(MEASUREMENTS))}")
        return getattr(self.evaluator, method)(work, *arguments)


def gpu_names(names: Sequence[str]) -> str:
    """GPUs as a record has them: the name of one, or how many of which."""
    if len(names) == 1:
        return names[0]
    return " + ".join(f"{count} x {name}" for name, count in Counter(names).items())


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
