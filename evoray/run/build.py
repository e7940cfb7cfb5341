"""The verb build: a model and a text, or a folder of EvoPress, become a store of variants.

Holds: `run_build`, `BuildPlan`, `plan_build`.
"""

import tempfile
from dataclasses import dataclass

import torch

from evoray.cluster.capacity import usable_cores
from evoray.compress import Recipe, build, store_header
from evoray.compress.evopress import NO_CODES, EvopressFolder, folder_header, import_folder, read_folder
from evoray.compress.kinds import find_kind
from evoray.errors import UserError
from evoray.model import Facts, ModelAdapter, checkpoint_facts, load_model, load_tokenizer, pick_device
from evoray.run.directory import check_folder
from evoray.run.ground import block_length
from evoray.run.progress import Progress
from evoray.settings import BuildSettings
from evoray.store import Location, Manifest, StoreHeader, StoreWriter
from evoray.tokens import BosPolicy, Role, TokenText, read_text, resolve_bos

USUAL_SEQUENCE = 2048
"""Default length of blocks of Hessian text, in tokens: the length GPTQ and EvoPress calibrate with."""


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


def plan_build(settings: BuildSettings) -> BuildPlan:
    """Checks a build without reading a weight.

    Raises:
        UserError: a model, text, level, group size or folder that can't work.
    """
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    device = pick_device(settings.device.value)
    dtype = settings.dtype.value
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else facts.dtype
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
    header = store_header(facts, recipe, text, compute_dtype=dtype, device=device.type)
    return BuildPlan(facts, recipe, text, header, dtype, device)


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
    writer = StoreWriter(settings.store, plan.header)
    torch.set_num_threads(settings.threads or usable_cores())
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
