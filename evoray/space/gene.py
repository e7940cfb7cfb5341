"""One decision of the search.

Holds: `Genotype`, `Gene`.
"""

from dataclasses import dataclass
from itertools import pairwise

Genotype = tuple[int, ...]
"""One level index per gene of a space, in the space's order; 0 is the level of the smallest cost."""


@dataclass(frozen=True)
class Gene:
    """One layer, or several that always share a level, with its levels from the cheapest to the dearest.

    Costs are sums over the gene's layers, whole numbers, so that totals compare exactly.

    Attributes:
        name: for messages and journals.
        block: block of the model that the first layer belongs to.
        layers: the layers it decides for, in the manifest's order.
        levels: labels, by rising cost.
        costs: cost of each level in the unit of the space's budget, strictly rising.
        code_bits: code bits of each level, for reports.
        bytes: stored bytes of each level (codes, scales, zero points), for reports.

    Raises:
        ValueError: nothing to decide for, lists of unequal length, levels named twice, costs that don't rise.
    """

    name: str
    block: int
    layers: tuple[str, ...]
    levels: tuple[str, ...]
    costs: tuple[int, ...]
    code_bits: tuple[int, ...]
    bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layers or not self.levels:
            raise ValueError(f"gene {self.name} has no layer or no level")
        if not len(self.levels) == len(self.costs) == len(self.code_bits) == len(self.bytes):
            raise ValueError(f"gene {self.name}: levels, costs, code_bits and bytes differ in length")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"gene {self.name} names a level twice: {', '.join(self.levels)}")
        if self.costs[0] < 0 or any(low >= high for low, high in pairwise(self.costs)):
            raise ValueError(f"gene {self.name}: costs {self.costs} don't rise strictly from 0 or more")
