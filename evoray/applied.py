"""A loaded model made into what a configuration says, to be judged or to generate with.

Holds: `apply_configuration`.
"""

import torch

from evoray.configuration import BASE, DROPPED, KEPT, Configuration
from evoray.errors import UserError
from evoray.formats import dense_weight
from evoray.model import ModelAdapter
from evoray.space.costs import check_configuration, dropped_layers
from evoray.store import VariantStore


def apply_configuration(
    adapter: ModelAdapter, store: VariantStore | None, configuration: Configuration, *, overwrite: bool = False
) -> None:
    """Makes the adapter's model be a configuration, whatever it was before.

    Afterwards `adapter.model` answers as that model does: calls with masks and a cache, `generate`, other libraries.

    Example:
        >>> adapter = evoray.ModelAdapter(AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B"))
        >>> evoray.apply_configuration(adapter, evoray.VariantStore.open("variants"), found.configuration)
        >>> adapter.model.generate(**tokenizer("Once", return_tensors="pt"))

    Args:
        adapter: The base model. No evaluator may be using it.
        store: The variants, made from that model; None where the configuration needs none.
        configuration: Site -> level. Layers that it does not name get their base weights, sites that can be dropped
            are kept.
        overwrite: Write variants over the base weights: no more memory than the base model takes, but no way back.

    Raises:
        UserError: no adapter; a layer, level or site that is not there, and then nothing changed; a site that can't be
            dropped, and then it is the base model; or a corrupt variant.
    """
    if not isinstance(adapter, ModelAdapter):
        raise UserError(
            f"{type(adapter).__name__} is no ModelAdapter, which keeps the base weights; wrap the model once, by "
            "evoray.ModelAdapter(model)"
        )
    sites = list(adapter.droppable.values())
    drops = {site: level == DROPPED for site, level in configuration.items() if level in (DROPPED, KEPT)}
    if unknown := [site for site in drops if site not in adapter.droppable]:
        raise UserError(
            f"the configuration says {configuration[unknown[0]]!r} of {unknown[0]}, which is nothing this model can do "
            f"without; {', '.join(list(adapter.droppable)[:3]) or 'none of its parts'} can be dropped"
        )
    if store is not None:
        check_configuration(store.manifest, configuration, sites)
    elif wanted := [site for site, level in configuration.items() if level not in (BASE, DROPPED, KEPT)]:
        raise UserError(f"{wanted[0]} at level {configuration[wanted[0]]!r} needs variants; give the store with them")
    for name in adapter.layers:
        adapter.restore(name)
    adapter.check_droppable([name for name, dropped in drops.items() if dropped])
    gone = dropped_layers(configuration, sites)
    for name, layer in adapter.layers.items():
        level = configuration.get(name, BASE)
        # A layer that lies in what is dropped needs no variant.
        if level == BASE or name in gone:
            continue
        assert store is not None
        ready = adapter.ready(name, dense_weight(store.read(name, level), layer.base.dtype, layer.base.device))
        if overwrite:
            with torch.no_grad():
                layer.base.copy_(ready)
        else:
            adapter.swap(name, ready)
    for name in adapter.droppable:
        adapter.drop(name, drops.get(name, False))
