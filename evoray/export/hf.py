"""A transformers checkpoint with dequantized weights: `--format hf`.

Holds: `export`.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from evoray.configuration import BASE, configuration_text
from evoray.errors import UserError
from evoray.export.source import ExportSource
from evoray.formats import dense_weight
from evoray.model import DropKind, ModelAdapter, load_model, load_tokenizer, quiet_transformers


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
    silent = _silent_sublayers(adapter, source.dropped)
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
    _silence(adapter, silent)
    adapter.close()
    with quiet_transformers():
        loaded.save_pretrained(stage, safe_serialization=True)
        load_tokenizer(source.model, source.revision, source.trust_remote_code).save_pretrained(stage)
    (stage / "evoray-configuration.txt").write_text(configuration_text(source.configuration), encoding="utf-8")


def _silent_sublayers(adapter: ModelAdapter, dropped: list[str]) -> list[str]:
    """The sublayers that have to add nothing, so that the model does without what is dropped.

    Raises:
        UserError: zeros in this model's weights don't make it do without them.
    """
    adapter.check_droppable(dropped)
    silent: list[str] = []
    for name in dropped:
        site = adapter.droppable[name]
        silent += adapter.sublayers[site.block] if site.kind is DropKind.block else [name]
    silent = list(dict.fromkeys(silent))
    try:
        adapter.check_droppable(silent)
    except UserError as error:
        raise UserError(
            f"dropped blocks of this model can't be written as a plain checkpoint: {str(error).split(';')[0]}; "
            "use the configuration file"
        ) from None
    return silent


def _silence(adapter: ModelAdapter, sublayers: list[str]) -> None:
    """Writes zeros into the weights and biases of sublayers.

    Raises:
        UserError: they belong to other parts of the model too.
    """
    parameters = {id(parameter): parameter for name in sublayers for parameter in adapter.silenced(name)}
    modules: set[torch.nn.Module] = {module for name in sublayers for module in adapter.modules(name)}
    for name, parameter in _outside(adapter.model, modules):
        if id(parameter) in parameters:
            raise UserError(f"{name} is a weight of dropped sublayers too, so it can't be zero; drop none of them")
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()


def _outside(model: PreTrainedModel, modules: set[torch.nn.Module]) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and parameters of all that lies in none of some modules."""
    inside = {part for module in modules for part in module.modules()}
    return [
        (f"{name}.{kind}", parameter)
        for name, module in model.named_modules()
        if module not in inside
        for kind, parameter in module.named_parameters(recurse=False)
    ]
