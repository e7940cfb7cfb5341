"""One decision of the search.

Holds: `Genotype`, `Gene`.
"""

from dataclasses import dataclass
from itertools import pairwise

Genotype = tuple[int, ...]
"""One level index per gene of a space, in the space's order; 0 is the level of the smallest cost."""


@dataclass(frozen=True)
class Gene:
    """One site, or several that always share a level, with its levels from the cheapest to the dearest.

    A site is a layer, or a sublayer or block that can be dropped. Costs are sums over the gene's sites, whole numbers,
    so that totals compare exactly.

    Attributes:
        name: for messages and journals.
        block: block of the model that the first site belongs to.
        sites: what it decides for, in the order of the space's sites.
        levels: labels, by rising cost.
        costs: cost of each level in the unit of the gene's budget, strictly rising (not falling for a switch).
        code_bits: code bits of each level, for reports.
        bytes: stored bytes of each level (codes, scales, zero points, masks), for reports.
        zeros: weights that each level makes zero, for reports; empty where there are none.
        other: bytes at each level of what is no layer and goes with the sites (biases, norms), for reports; empty where
            there are none.
        members: names of the genes that this one switches off at its first level: those of the layers in a sublayer
            that it drops. Empty for all other genes.
        budget: which of the space's limits its costs count for.

    Raises:
        ValueError: nothing to decide for, lists of unequal length, levels named twice, costs that don't rise.
    """

    name: str
    block: int
    sites: tuple[str, ...]
    levels: tuple[str, ...]
    costs: tuple[int, ...]
    code_bits: tuple[int, ...]
    bytes: tuple[int, ...]
    zeros: tuple[int, ...] = ()
    other: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    budget: int = 0

    def __post_init__(self) -> None:
        for name in ("zeros", "other"):
            if not getattr(self, name):
                object.__setattr__(self, name, (0,) * len(self.levels))
        if not self.sites or not self.levels:
            raise ValueError(f"gene {self.name} has no site or no level")
        lists = (self.levels, self.costs, self.code_bits, self.bytes, self.zeros, self.other)
        if len({len(each) for each in lists}) > 1:
            raise ValueError(f"gene {self.name}: levels, costs, code_bits, bytes, zeros and other differ in length")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"gene {self.name} names a level twice: {', '.join(self.levels)}")
        rising = all(low < high or (self.members and low == high) for low, high in pairwise(self.costs))
        if self.costs[0] < 0 or not rising:
            raise ValueError(f"gene {self.name}: costs {self.costs} don't rise strictly from 0 or more")
