"""What a search may choose: genes, their exact costs, the budget, and which genotypes are legal. numpy only.

Holds:
    gene: `Gene`, one decision with ordered levels and exact costs; `Genotype`, one level index per gene
    ties: `Tie`, `tie`: which layers share a gene because inference engines fuse them
    budget: `Budget`, `Measure`: a target, and the exact whole limit it stands for
    priced: `PricedManifest` and its parts: what is asked of a store's manifest; `layer_levels`
    costs: `Costs`, `configuration_costs`: bits, bpw, bytes and size of any configuration
    space: `Space`, all genes with the limit
    quantization: `quantization_space`, `judging_rows`

A new kind of search is one more file here, with a function that returns a `Space`.
"""

from evoray.space.budget import Budget, Measure
from evoray.space.costs import Costs, configuration_costs
from evoray.space.gene import Gene, Genotype
from evoray.space.priced import PricedLayer, PricedLevel, PricedManifest, layer_levels
from evoray.space.quantization import judging_rows, quantization_space
from evoray.space.space import Space
from evoray.space.ties import Tie, tie

__all__ = [
    "Budget",
    "Costs",
    "Gene",
    "Genotype",
    "Measure",
    "PricedLayer",
    "PricedLevel",
    "PricedManifest",
    "Space",
    "Tie",
    "configuration_costs",
    "judging_rows",
    "layer_levels",
    "quantization_space",
    "tie",
]
