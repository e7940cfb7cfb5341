"""What a search may choose: genes, their exact costs, the budget, and which genotypes are legal. numpy only.

Holds:
    gene: `Gene`, one decision with ordered levels and exact costs; `Genotype`, one level index per gene
    ties: `Tie`, `tie`: which layers share a gene because inference engines fuse them
    budget: `Budget`, `Measure`: a target, and the exact whole limit it stands for
    priced: `PricedManifest` and its parts: what is asked of a store's manifest; `BareManifest`; `layer_levels`
    costs: `Costs`, `configuration_costs`: bits, bpw, bytes, size and sparsity of any configuration
    space: `Space`, all genes with the limits
    wanted: `Wanted`: what a user asks of a space
    levels: genes over the levels of a store; depth: genes that drop sublayers or blocks, `drop_units`
    kinds: `make_space`, `kind_defaults`: the space of a kind of store
    quantization, sparsity, joint: the kinds; `quantization_space`
    knapsack: `cheapest`, the best legal genotypes of sums over genes
    judging: `judging_rows`

A new kind of search is one more file here, named as its stores name their kind, with `space` and `DEFAULTS`.
"""

from evoray.space.budget import Budget, Measure
from evoray.space.costs import Costs, configuration_costs
from evoray.space.defaults import KindDefaults
from evoray.space.depth import drop_units
from evoray.space.gene import Gene, Genotype
from evoray.space.judging import judging_rows
from evoray.space.kinds import kind_defaults, make_space
from evoray.space.knapsack import cheapest
from evoray.space.priced import (
    BareLayer,
    BareManifest,
    PricedDroppable,
    PricedLayer,
    PricedLevel,
    PricedManifest,
    layer_levels,
)
from evoray.space.quantization import quantization_space
from evoray.space.space import Space
from evoray.space.ties import Tie, tie
from evoray.space.wanted import Wanted

__all__ = [
    "BareLayer",
    "BareManifest",
    "Budget",
    "Costs",
    "Gene",
    "Genotype",
    "KindDefaults",
    "Measure",
    "PricedDroppable",
    "PricedLayer",
    "PricedLevel",
    "PricedManifest",
    "Space",
    "Tie",
    "Wanted",
    "cheapest",
    "configuration_costs",
    "drop_units",
    "judging_rows",
    "kind_defaults",
    "layer_levels",
    "make_space",
    "quantization_space",
    "tie",
]
