"""A loaded model made into what a configuration says, to be judged or to generate with.

Holds: `apply_configuration`.
"""

import torch

from evoray.configuration import BASE, Configuration
from evoray.errors import UserError
from evoray.formats import dense_weight
from evoray.model import ModelAdapter
from evoray.space.costs import check_configuration
from evoray.store import VariantStore

DROPPED, KEPT = "dropped", "kept"


def apply_configuration(
    adapter: ModelAdapter, store: VariantStore | None, configuration: Configuration, *, overwrite: bool = False
) -> None:
    """Makes the adapter's model be a configuration, whatever it was before.

    Afterwards `adapter.model` answers as that model does: calls with masks and a cache, `generate`, other libraries.

    Example:
        >>> adapter = ModelAdapter(load_model("embedded"))
        >>> apply_configuration(adapter, VariantStore.open("variants"), found.configuration)
        >>> adapter.model.generate(**tokenizer("Once", return_tensors="pt"))

    Args:
        adapter: The base model. No evaluator may be using it.
        store: The variants, made from that model; None where the configuration needs none.
        configuration: Site -> level. Layers that it does not name get their base weights, sites that can be dropped
            are kept.
        overwrite: Write variants over the base weights: no more memory than the base model takes, but no way back.

    Raises:
        UserError: a layer, level or site that is not there, or a corrupt variant. In the first case nothing changed.
    """
    # Sites that can be dropped, of a model that has them.
    droppable = getattr(adapter, "droppable", {})
    drops = {site: level == DROPPED for site, level in configuration.items() if level in (DROPPED, KEPT)}
    unknown = [site for site in drops if site not in droppable]
    if unknown:
        raise UserError(
            f"the configuration says {configuration[unknown[0]]!r} of {unknown[0]}, which is nothing this model can do "
            f"without; {', '.join(list(droppable)[:3]) or 'none of its parts'} can be dropped"
        )
    variants = {site: level for site, level in configuration.items() if site not in drops}
    if store is not None:
        check_configuration(store.manifest, variants)
    elif wanted := [site for site, level in variants.items() if level != BASE]:
        raise UserError(f"{wanted[0]} at level {variants[wanted[0]]!r} needs variants; give the store that has them")
    for name, layer in adapter.layers.items():
        adapter.restore(name)
        level = variants.get(name, BASE)
        if level == BASE:
            continue
        assert store is not None
        ready = adapter.ready(name, dense_weight(store.read(name, level), layer.base.dtype, layer.base.device))
        if overwrite:
            with torch.no_grad():
                layer.base.copy_(ready)
        else:
            adapter.swap(name, ready)
    for name in droppable:
        adapter.drop(name, drops.get(name, False))
