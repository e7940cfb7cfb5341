"""A model without a store, as spaces and prices take it.

Holds: `bare_manifest`.
"""

from evoray.model import Facts
from evoray.space import BareLayer, BareManifest


def bare_manifest(facts: Facts) -> BareManifest:
    """What stands for a manifest where there is no store: every layer has its base weight and no level.

    Args:
        facts: of the base model.
    """
    layers = tuple(
        BareLayer(layer.name, layer.block, layer.out_features, layer.in_features, layer.dense_bytes)
        for layer in facts.layers
    )
    return BareManifest(layers, facts.dense_bytes)
