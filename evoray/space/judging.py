"""Rows of any configuration, for judging: untied, over budget or partial.

Holds: `judging_rows`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evoray.configuration import BASE, DROPPED
from evoray.space.costs import check_configuration, dropped_layers
from evoray.space.priced import PricedDroppable, PricedManifest, layer_levels


def judging_rows(
    manifest: PricedManifest, configuration: Mapping[str, str], droppable: Sequence[PricedDroppable] = ()
) -> NDArray[np.int8]:
    """The evaluator's row of a configuration.

    Args:
        manifest: of the store, or of the base model alone.
        configuration: site -> level; a layer that is not named, or has level `base`, keeps its base weight.
        droppable: the sites that are columns behind the layers.

    Returns:
        int8 [L + D]: index into the layer's list in `layer_levels`, or -1 for the base weight; then 0 for a dropped
        site, -1 for one that is kept. Without a store there is nothing to choose for layers, and they are no columns.

    Raises:
        UserError: sites or levels that there are not.
    """
    check_configuration(manifest, configuration, droppable)
    gone = dropped_layers(configuration, droppable)
    stored = zip(manifest.layers, layer_levels(manifest), strict=True) if manifest.kind else ()
    indexes = [
        -1 if layer.name in gone or level == BASE else levels.index(level)
        for layer, levels in stored
        for level in [configuration.get(layer.name, BASE)]
    ]
    drops = [0 if configuration.get(site.name) == DROPPED else -1 for site in droppable]
    return np.array([*indexes, *drops], dtype=np.int8)
