"""The verb build: a model and a text, or a folder of EvoPress, become a store of variants.

Holds: `run_build`, `BuildPlan`, `plan_build`, `build_memory`.
"""

import tempfile
from dataclasses import dataclass, replace

import torch

from evoray.cluster import crew_device, joins_cluster, open_crew
from evoray.cluster.build_worker import BuildSpec
from evoray.cluster.capacity import usable_cores
from evoray.compress import Recipe, build, store_header
from evoray.compress.evopress import NO_CODES, EvopressFolder, folder_header, import_folder, read_folder
from evoray.compress.kinds import find_kind
from evoray.compress.recipe import HESSIAN_SHARDS
from evoray.errors import UserError
from evoray.model import Facts, ModelAdapter, checkpoint_facts, load_model, load_tokenizer, pick_device
from evoray.run.directory import check_folder
from evoray.run.ground import block_length
from evoray.run.progress import Progress
from evoray.run.workers import MIB, located
from evoray.settings import BuildSettings, Device
from evoray.settings.workers import worker_range
from evoray.store import Location, Manifest, StoreHeader, StoreWriter
from evoray.tokens import BosPolicy, Role, TokenText, read_text, resolve_bos

USUAL_SEQUENCE = 2048
"""Default length of blocks of Hessian text, in tokens: the length GPTQ and EvoPress calibrate with."""


_THREADS = "threads"
"""Key of a store's settings."""


@dataclass(frozen=True)
class BuildPlan:
    """A build, checked and ready.

    Attributes:
        facts: of the base model.
        source: how variants are made, or the folder that they come from.
        text: the Hessian text; None for methods without.
        header: of the store.
        dtype: what the model runs in.
        device: where it runs.
    """

    facts: Facts
    source: Recipe | EvopressFolder
    text: TokenText | None
    header: StoreHeader
    dtype: str
    device: torch.device

    def on(self, device: torch.device, settings: BuildSettings) -> "BuildPlan":
        """The same with the model on another kind of device."""
        if device.type == self.device.type or isinstance(self.source, EvopressFolder):
            return replace(self, device=device)
        dtype = _dtype(settings, self.facts, device)
        header = _header(settings, self.facts, self.source, self.text, dtype, device)
        return replace(self, header=header, dtype=dtype, device=device)


def _dtype(settings: BuildSettings, facts: Facts, device: torch.device) -> str:
    if settings.dtype.value != "auto":
        return settings.dtype.value
    return "float32" if device.type == "cpu" else facts.dtype


def plan_build(settings: BuildSettings) -> BuildPlan:
    """Checks a build without reading a weight.

    Raises:
        UserError: a model, text, level, group size or folder that can't work.
    """
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    device = pick_device(settings.device.value)
    dtype = _dtype(settings, facts, device)
    shapes = {layer.name: (layer.out_features, layer.in_features) for layer in facts.layers}
    if settings.from_evopress is not None:
        folder = read_folder(settings.from_evopress, settings.kind, shapes)
        header = folder_header(
            facts,
            folder,
            group_size=settings.group_size,
            symmetric=settings.symmetric,
            cost_format=settings.cost_format,
            compute_dtype=dtype,
            device=device.type,
        )
        return BuildPlan(facts, folder, None, header, dtype, device)
    recipe = find_kind(settings.kind).recipe(settings, facts)
    # Before a large text is read.
    recipe.check(shapes)
    recipe.stored_dtype(facts.dtype)
    text = _hessian_text(settings, facts) if recipe.needs_text else None
    header = _header(settings, facts, recipe, text, dtype, device)
    return BuildPlan(facts, recipe, text, header, dtype, device)


def _header(
    settings: BuildSettings, facts: Facts, recipe: Recipe, text: TokenText | None, dtype: str, device: torch.device
) -> StoreHeader:
    return store_header(
        facts,
        recipe,
        text,
        compute_dtype=dtype,
        device=device.type,
        attention=settings.attn_implementation,
    )


def _hessian_text(settings: BuildSettings, facts: Facts) -> TokenText:
    assert settings.data is not None
    tokenizer = load_tokenizer(settings.model, settings.revision, settings.trust_remote_code)
    return read_text(
        settings.data,
        Role.hessian,
        tokenizer,
        sequence_length=block_length(settings.sequence_length, facts, USUAL_SEQUENCE),
        max_tokens=settings.hessian_tokens,
        bos=resolve_bos(BosPolicy(settings.bos), tokenizer),
        separator=settings.separator,
        seed=settings.seed,
    )


def _check_writable(place: str) -> None:
    """Sees that a local folder can be written, which else shows only after the first block's Hessians, and that the
    place is no run."""
    check_folder(Location.parse(place), "a store", "--store")
    path = Location.parse(place).local_path
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"--store {place} can't be written: {error.strerror}; give another folder") from None


def run_build(settings: BuildSettings, progress: Progress | None = None) -> Manifest:
    """Makes the variants, or goes on where an interrupted build stopped.

    Args:
        settings: what to build.
        progress: told of finished layers.

    Raises:
        UserError: a mistake in the settings, or a store made another way in the same place.
        EvorayError: storage fails.
    """
    progress = progress or Progress()
    plan = plan_build(settings)
    _check_writable(settings.store)
    begun = StoreWriter.begun(settings.store)
    threads = _threads(settings, begun)
    if settings.workers != 0 and settings.device is Device.auto and joins_cluster(settings.address):
        plan = plan.on(torch.device(crew_device(settings.address, settings.workers, threads)), settings)
    writer = StoreWriter(settings.store, _recording(plan, threads, begun))
    if settings.workers != 0 and not isinstance(plan.source, EvopressFolder):
        return _build_on_cluster(settings, plan, plan.source, writer, threads, progress)
    torch.set_num_threads(threads)
    model = load_model(
        settings.model,
        revision=settings.revision,
        dtype=plan.dtype,
        device=str(plan.device),
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
    )
    adapter = ModelAdapter(model, allow_partial=settings.allow_partial)
    for note in adapter.notes:
        progress.note(f"note: {note}")
    if isinstance(plan.source, EvopressFolder):
        progress.note(f"note: {NO_CODES}")
        return import_folder(adapter, writer, plan.source, progress=progress.layer)
    return build(adapter, writer, plan.source, plan.text, progress=progress.layer, note=progress.note)


def _threads(settings: BuildSettings, begun: StoreHeader | None) -> int:
    """Threads of torch in each process. On CPUs sums have other last bits with other threads.

    Raises:
        UserError: the store was begun with others than are asked for.
    """
    known = None if begun is None else begun.settings.get(_THREADS)
    if known is not None and settings.threads not in (None, known):
        raise UserError(
            f"{settings.store} was begun with --threads {known}, which its bits depend on; leave out --threads "
            f"{settings.threads}, or give another folder by --store"
        )
    return settings.threads or known or (usable_cores() if settings.workers == 0 else 1)


def _recording(plan: BuildPlan, threads: int, begun: StoreHeader | None) -> StoreHeader:
    """The header with the threads, where bits depend on them. A store that was begun before they were recorded goes on
    without."""
    if plan.device.type != "cpu" or isinstance(plan.source, EvopressFolder):
        return plan.header
    if begun is not None and _THREADS not in begun.settings:
        return plan.header
    return plan.header.model_copy(update={"settings": {**plan.header.settings, _THREADS: threads}})


def _build_on_cluster(
    settings: BuildSettings, plan: BuildPlan, recipe: Recipe, writer: StoreWriter, threads: int, progress: Progress
) -> Manifest:
    from evoray.compress.builder import build_by, check_build

    facts = plan.facts
    check_build(writer, recipe, plan.text, {each.name: (each.out_features, each.in_features) for each in facts.layers})
    spec = BuildSpec(
        model=located(settings).model,
        revision=facts.revision or settings.revision,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=settings.attn_implementation,
        dtype=plan.dtype,
        allow_partial=settings.allow_partial,
        device=plan.device.type,
        weights_digest=facts.weights_digest,
        threads=threads,
        header=writer.header,
        recipe=recipe,
        text=plan.text if recipe.needs_text else None,
        layers=tuple(each.name for each in facts.layers),
    )
    blocks = {each.name: each.block for each in facts.layers}
    if set(blocks) <= writer.finished_layers():
        return writer.finish(list(blocks))
    started = progress.starting(settings.workers)
    with open_crew(
        spec,
        workers=settings.workers,
        address=settings.address,
        wait=settings.wait,
        memory=build_memory(plan, settings),
        hung_after=settings.hung_after,
        note=progress.note,
        keep_log=progress.keep_log,
    ) as crew:
        started(1.0)
        for note in crew.notes:
            progress.note(f"note: {note}")
        return build_by(crew, writer, recipe, blocks, progress=progress.layer, note=progress.note)


def build_memory(plan: BuildPlan, settings: BuildSettings) -> int:
    """Bytes of host memory that each process of a build takes: base model, states of the text, what making the largest
    group of layers takes, and 300 MiB of libraries. Rather too much: which layers share an input is not known yet."""
    facts = plan.facts
    width = {"float16": 2, "bfloat16": 2}.get(plan.dtype, 4) / (4 if facts.dtype == "float32" else 2)
    base = facts.parameter_bytes * width
    if plan.text is None or isinstance(plan.source, EvopressFolder):
        largest = max(each.out_features * each.in_features for each in facts.layers)
        return int(base + 8 * largest * len(plan.header.levels) + 300 * MIB)
    most = worker_range(settings.workers)[1] if settings.workers != 0 else 1
    shards = -(-HESSIAN_SHARDS // (most or 1))
    hidden = int(getattr(facts.config.get_text_config(), "hidden_size", 0))
    states = plan.text.tokens * hidden * 4 * shards // HESSIAN_SHARDS
    rows: dict[tuple[int, int], int] = {}
    for each in facts.layers:
        rows[each.block, each.in_features] = rows.get((each.block, each.in_features), 0) + each.out_features
    # The Hessian and its factor in float64 a few times over; errors of all rows and levels in float64.
    making = max(
        8 * (5 * columns * columns + columns * count * len(plan.header.levels)) for (_, columns), count in rows.items()
    )
    return int(base + states + making + 300 * MIB)
