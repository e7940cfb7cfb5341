"""A transformers checkpoint with dequantized weights: `--format hf`.

Holds: `export`.
"""

from pathlib import Path

import torch

from evoray.configuration import BASE, configuration_text
from evoray.export.silence import silence, silent_sublayers
from evoray.export.source import ExportSource
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, load_model, load_tokenizer, quiet_transformers


def export(source: ExportSource, stage: Path) -> None:
    """Writes a checkpoint that `AutoModelForCausalLM.from_pretrained` loads as it is.

    Weights are exactly what the store's codes dequantize to: the very values that the search measured. So it takes the
    room of the base model, or more where scales have more digits than the checkpoint's dtype; it is for judging and for
    engines that quantize by themselves. Weights and biases of dropped sublayers are zero, those of dropped blocks in
    all their sublayers: the model keeps its form, and any engine runs it.

    Args:
        source: what to write.
        stage: an empty folder.

    Raises:
        UserError: the configuration needs a store, or something dropped can't be said by zeros.
    """
    variants = source.needed_variants()
    # A dtype that holds base weights and dequantized ones without rounding either.
    exact = getattr(torch, source.facts.dtype)
    if variants is not None:
        exact = torch.promote_types(exact, getattr(torch, variants.manifest.scale_dtype))
    loaded = load_model(
        source.model,
        revision=source.revision,
        dtype=str(exact).removeprefix("torch."),
        device="cpu",
        trust_remote_code=source.trust_remote_code,
    )
    adapter = ModelAdapter(loaded, allow_partial=source.allow_partial)
    silent = silent_sublayers(adapter, source.dropped)
    # A layer that lies in what is dropped needs no variant.
    gone = {layer for name in silent for layer in adapter.droppable[name].layers}
    for layer, level in source.layers.items():
        if variants is None or level == BASE or layer in gone:
            continue
        dtype = adapter.layers[layer].base.dtype
        weight_OI = dense_weight(variants.read(layer, level), dtype)
        # Written into the parameter itself, so that the base weight's memory is reused and ties are kept.
        with torch.no_grad():
            adapter.layers[layer].base.copy_(adapter.ready(layer, weight_OI))
    silence(adapter, silent)
    adapter.close()
    with quiet_transformers():
        loaded.save_pretrained(stage, safe_serialization=True)
        load_tokenizer(source.model, source.revision, source.trust_remote_code).save_pretrained(stage)
    (stage / "evoray-configuration.txt").write_text(configuration_text(source.configuration), encoding="utf-8")
