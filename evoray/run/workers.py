"""How the workers of a verb are built, from its settings.

Holds: `located`, `worker_spec`, `worker_memory`, `started_pool`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from evoray.cluster import Pool, WorkerSpec, open_pool
from evoray.cluster.capacity import HostMemory
from evoray.model import Facts, model_folder
from evoray.run.progress import Progress
from evoray.settings import TOP_K, BuildSettings, ChoiceSettings, EvalSettings
from evoray.store import Location, Manifest

MIB = 1 << 20

_S = TypeVar("_S", bound=BuildSettings | ChoiceSettings | EvalSettings)


def located(settings: _S) -> _S:
    """The same with absolute paths of model and store.

    Workers, and later commands on the run, may have another working directory.
    """
    absolute: dict[str, str] = {}
    if settings.model is not None and (folder := model_folder(settings.model)) is not None:
        absolute["model"] = str(folder)
    if settings.store is not None:
        absolute["store"] = str(Location.parse(settings.store))
    return settings.model_copy(update=absolute)


def worker_spec(
    settings: ChoiceSettings | EvalSettings, facts: Facts, store: str | None, droppable: tuple[str, ...] = ()
) -> WorkerSpec:
    """How each worker is built. All load the commit that the driver saw, wherever a branch has moved meanwhile."""
    return WorkerSpec(
        model=facts.model,
        store=store,
        revision=facts.revision or settings.revision,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=settings.attn_implementation,
        dtype=settings.dtype.value,
        allow_partial=settings.allow_partial,
        device=settings.device.value,
        weights_digest=facts.weights_digest,
        threads=settings.threads_per_worker,
        gpus=settings.gpus_per_worker,
        top_k=settings.top_k if isinstance(settings, ChoiceSettings) else TOP_K,
        droppable=droppable,
        work_bytes=settings.work_memory,
        variant_bytes=settings.variant_memory,
        cache_bytes=settings.cache_disk,
    )


def worker_memory(settings: ChoiceSettings | EvalSettings, facts: Facts, manifest: Manifest | None) -> HostMemory:
    """Bytes of host memory that a worker asks for: base model, ready variants, states, and 300 MiB of libraries.

    Where memory is short, ready variants but for one layer's can be done without.
    """
    # On CPUs "auto" is float32; on a GPU the host only holds a file at a time, and asking for more does no harm.
    width = {"float16": 2, "bfloat16": 2}.get(settings.dtype.value, 4) / (4 if facts.dtype == "float32" else 2)
    base = facts.parameter_bytes * width
    layers = [layer.dense_bytes * width for layer in manifest.layers] if manifest else []
    variants = min(settings.variant_memory, sum(layers) * len(manifest.levels)) if manifest else 0
    return HostMemory(int(base + variants + 300 * MIB), int(variants), int(max(layers, default=0)))


@contextmanager
def started_pool(
    settings: ChoiceSettings | EvalSettings, spec: WorkerSpec, memory: HostMemory, progress: Progress
) -> Iterator[Pool]:
    """The workers of a verb, while it needs them.

    Args:
        settings: how many, where, and how long to wait.
        spec: how each is built.
        memory: bytes of host memory each asks for.
        progress: told that they start, and what they say of the model.

    Raises:
        UserError: no such cluster, or workers that can't load what the spec names.
        EvorayError: no worker in time.
    """
    started = progress.starting(settings.workers)
    with open_pool(
        spec,
        workers=settings.workers,
        address=settings.address,
        allow_mixed=settings.allow_mixed,
        wait=settings.wait,
        memory=memory,
        hung_after=settings.hung_after,
        hung_at_start=settings.hung_at_start,
        note=progress.note,
        keep_log=progress.keep_log,
        run=str(Location.parse(settings.run)) if isinstance(settings, ChoiceSettings) else None,
    ) as pool:
        started(1.0)
        for note in pool.notes:
            progress.note(f"note: {note}")
        yield pool
