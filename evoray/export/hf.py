"""A transformers checkpoint with dequantized weights.

Holds: `export_hf`.
"""

import os
import shutil
import tempfile
from pathlib import Path

import torch

from evoray.configuration import BASE, Configuration, configuration_text
from evoray.errors import EvorayError, UserError
from evoray.formats import dense_weight
from evoray.model import Facts, ModelAdapter, checkpoint_facts, load_model, load_tokenizer, quiet_transformers
from evoray.space.costs import check_configuration
from evoray.store import VariantStore


def export_hf(
    model: str,
    store: str,
    configuration: Configuration,
    out: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_partial: bool = False,
) -> Path:
    """Writes a checkpoint that `AutoModelForCausalLM.from_pretrained` loads as it is.

    Weights are exactly what the store's codes dequantize to: the very values that the search measured. So it takes the
    room of the base model, or more where scales have more digits than the checkpoint's dtype; it is for judging and for
    engines that quantize by themselves.

    Args:
        model: the base model.
        store: its variants.
        configuration: layer -> level; layers that it does not name keep their base weights.
        out: a new or empty folder. It appears whole or not at all.
        revision: of the model on the hub.
        trust_remote_code: let the checkpoint's own Python run.
        allow_partial: accept models with less than 90% of their weights in reach.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something, the store is of another model, or the configuration does not fit.
    """
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {out} holds something already; give a new folder")
    variants = VariantStore.open(store)
    check_configuration(variants.manifest, configuration)
    facts = checkpoint_facts(model, revision, trust_remote_code, allow_partial=allow_partial)
    variants.manifest.check_made_from(model, facts.weights_digest)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename.
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}; give another folder") from None
    try:
        _write(stage, facts, variants, configuration, model, revision, trust_remote_code, allow_partial)
        if target.exists():
            target.rmdir()
        # Temporary folders and safetensors files come closed to others; a checkpoint is as open as any new file.
        mask = os.umask(0)
        os.umask(mask)
        stage.chmod(0o777 & ~mask)
        for file in stage.rglob("*"):
            file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
        stage.rename(target)
    except OSError as error:
        raise EvorayError(f"--out {out} can't be written: {error.strerror}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


def _write(
    stage: Path,
    facts: Facts,
    variants: VariantStore,
    configuration: Configuration,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    allow_partial: bool,
) -> None:
    # A dtype that holds base weights and dequantized ones without rounding either.
    stored = (getattr(torch, name) for name in (facts.dtype, variants.manifest.scale_dtype))
    exact = str(torch.promote_types(*stored)).removeprefix("torch.")
    loaded = load_model(model, revision=revision, dtype=exact, device="cpu", trust_remote_code=trust_remote_code)
    adapter = ModelAdapter(loaded, allow_partial=allow_partial)
    for layer, level in configuration.items():
        if level == BASE:
            continue
        dtype = adapter.layers[layer].base.dtype
        weight_OI = dense_weight(variants.read(layer, level), dtype)
        # Written into the parameter itself, so that the base weight's memory is reused and ties are kept.
        with torch.no_grad():
            adapter.layers[layer].base.copy_(adapter.ready(layer, weight_OI))
    adapter.close()
    with quiet_transformers():
        loaded.save_pretrained(stage, safe_serialization=True)
        load_tokenizer(model, revision, trust_remote_code).save_pretrained(stage)
    (stage / "evoray-configuration.txt").write_text(configuration_text(configuration), encoding="utf-8")
