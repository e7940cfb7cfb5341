"""A transformers checkpoint with dequantized weights.

Holds: `export_hf`, `layers_of`.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from evoray.configuration import BASE, DROPPED, KEPT, Configuration, configuration_text
from evoray.errors import UserError
from evoray.export.folder import appearing, new_folder
from evoray.formats import dense_weight
from evoray.model import (
    DropKind,
    Facts,
    ModelAdapter,
    checkpoint_facts,
    load_model,
    load_tokenizer,
    quiet_transformers,
)
from evoray.run.named import resolve_sites
from evoray.space.costs import check_configuration
from evoray.store import VariantStore


def export_hf(
    model: str,
    store: str | None,
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
    engines that quantize by themselves. Weights and biases of dropped sublayers are zero, those of dropped blocks in
    all their sublayers: the model keeps its form, and any engine runs it.

    Args:
        model: the base model.
        store: its variants; None for a configuration that only drops.
        configuration: layer -> level, sublayer or block -> dropped or kept; what it does not name stays as it is.
        out: a new or empty folder. It appears whole or not at all.
        revision: of the model on the hub.
        trust_remote_code: let the checkpoint's own Python run.
        allow_partial: accept models with less than 90% of their weights in reach.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something, the store is of another model, or the configuration does not fit.
    """
    target = new_folder(out)
    variants = None if store is None else VariantStore.open(store)
    facts = checkpoint_facts(model, revision, trust_remote_code, allow_partial=allow_partial)
    configuration = resolve_sites(configuration, facts.droppable)
    layers = layers_of(facts, configuration)
    if variants is not None:
        check_configuration(variants.manifest, layers)
        variants.manifest.check_made_from(model, facts.weights_digest)
    elif layers:
        name, level = next(iter(layers.items()))
        raise UserError(f"the configuration has {name} at level {level}; give the --store of its variants")
    with appearing(target) as stage:
        _write(stage, facts, variants, configuration, model, revision, trust_remote_code, allow_partial)
    return target


def layers_of(facts: Facts, configuration: Configuration) -> Configuration:
    """What of a configuration is to be found in a store; sees that the rest are sites that can be dropped.

    Raises:
        UserError: a name or level that doesn't go with the other.
    """
    sites = {site.name for site in facts.droppable}
    for name, level in configuration.items():
        if name in sites and level not in (DROPPED, KEPT):
            raise UserError(f"{name} has no level {level!r}; choose {DROPPED} or {KEPT}")
        if name not in sites and level in (DROPPED, KEPT):
            raise UserError(
                f"{name} can't be {level}: it is no sublayer or block; those of {facts.model_class} run from "
                f"{facts.droppable[0].name} to {facts.droppable[-1].name}"
            )
    return {name: level for name, level in configuration.items() if name not in sites}


def _write(
    stage: Path,
    facts: Facts,
    variants: VariantStore | None,
    configuration: Configuration,
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    allow_partial: bool,
) -> None:
    # A dtype that holds base weights and dequantized ones without rounding either.
    exact = getattr(torch, facts.dtype)
    if variants is not None:
        exact = torch.promote_types(exact, getattr(torch, variants.manifest.scale_dtype))
    loaded = load_model(
        model,
        revision=revision,
        dtype=str(exact).removeprefix("torch."),
        device="cpu",
        trust_remote_code=trust_remote_code,
    )
    adapter = ModelAdapter(loaded, allow_partial=allow_partial)
    dropped = [name for name, level in configuration.items() if level == DROPPED]
    silent = _silent_sublayers(adapter, dropped)
    # A layer that lies in what is dropped needs no variant.
    gone = {layer for name in silent for layer in adapter.droppable[name].layers}
    for layer, level in configuration.items():
        if variants is None or level in (BASE, DROPPED, KEPT) or layer in gone:
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
        load_tokenizer(model, revision, trust_remote_code).save_pretrained(stage)
    (stage / "evoray-configuration.txt").write_text(configuration_text(configuration), encoding="utf-8")


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
