"""All genes of one search with the limit that their costs must keep.

Holds: `Space`.

Arrays are padded to the most levels any gene has; legend: N genotypes, G genes, L layers, K levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evoray.errors import UserError
from evoray.space.costs import Costs, costs_from_totals, more
from evoray.space.gene import Gene, Genotype

_LARGEST_TOTAL = 2**62
"""Totals and their differences must fit int64, in which the arrays are."""


@dataclass(frozen=True)
class Space:
    """What a search may choose from. Pure facts: it draws nothing and changes nothing.

    Attributes:
        genes: the decisions, in the order of their first layers.
        limit: the largest total cost a legal genotype may have, in the genes' unit.
        sites: names of all layers of the manifest, in its order: the columns of `rows`.
        labels: for each site the levels that its row entries point into.
        weights: compressible weights, for reports.
        other_bytes: bytes of the checkpoint outside of the genes' stored bytes, for reports.
        level: the label that, held by every gene, meets the target exactly; None where the target has none.

    Raises:
        ValueError: no gene, a layer in two genes, layers or levels that are no site's, a limit below the lowest total.
    """

    genes: tuple[Gene, ...]
    limit: int
    sites: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    weights: int
    other_bytes: int = 0
    level: str | None = None

    def __post_init__(self) -> None:
        if not self.genes:
            raise ValueError("a space needs at least one gene")
        if len(self.sites) != len(self.labels) or self.weights < 1:
            raise ValueError("a space needs a list of labels for each site, and weights")
        labels = dict(zip(self.sites, self.labels, strict=True))
        seen: set[str] = set()
        for gene in self.genes:
            for layer in gene.layers:
                if layer in seen or layer not in labels:
                    raise ValueError(f"{layer} of gene {gene.name} is in two genes, or no site")
                if missing := set(gene.levels) - set(labels[layer]):
                    raise ValueError(f"{layer} of gene {gene.name} lacks levels {sorted(missing)}")
                seen.add(layer)
        if sum(gene.costs[-1] for gene in self.genes) > _LARGEST_TOTAL:
            raise ValueError("costs are too large for 64 bits; use a larger unit")
        if self.limit < self.cost(self.lowest()):
            raise ValueError(f"limit {self.limit} is below the lowest total {self.cost(self.lowest())}")

    def lowest(self) -> Genotype:
        """Every gene at its cheapest level."""
        return (0,) * len(self.genes)

    def highest(self) -> Genotype:
        """Every gene at its dearest level, within the limit or not."""
        return tuple(len(gene.levels) - 1 for gene in self.genes)

    def cost(self, genotype: Sequence[int]) -> int:
        """Total cost in the genes' unit, exact."""
        return sum(gene.costs[index] for gene, index in zip(self.genes, genotype, strict=True))

    def is_legal(self, genotype: Sequence[int]) -> bool:
        """Whether every gene has such a level and the total is within the limit."""
        return (
            len(genotype) == len(self.genes)
            and all(0 <= index < len(gene.levels) for gene, index in zip(self.genes, genotype, strict=True))
            and self.cost(genotype) <= self.limit
        )

    def uniform(self, level: str | None = None) -> Genotype | None:
        """Every gene at one level.

        Args:
            level: a label; by default the one that meets the target exactly.

        Returns:
            None where there is no such label, a gene lacks it, or the total is above the limit.
        """
        level = self.level if level is None else level
        if level is None or any(level not in gene.levels for gene in self.genes):
            return None
        genotype = tuple(gene.levels.index(level) for gene in self.genes)
        return genotype if self.is_legal(genotype) else None

    def configuration(self, genotype: Sequence[int]) -> dict[str, str]:
        """Layer -> level, in the order of the sites; layers that no gene decides are left out."""
        level_of = {
            layer: gene.levels[index] for gene, index in zip(self.genes, genotype, strict=True) for layer in gene.layers
        }
        return {site: level_of[site] for site in self.sites if site in level_of}

    def genotype(self, configuration: Mapping[str, str]) -> Genotype:
        """The genotype of a configuration, within the limit or not (see `is_legal`).

        Raises:
            UserError: layers unknown or missing, a level that the gene lacks, or tied layers that differ.
        """
        known = {layer for gene in self.genes for layer in gene.layers}
        if unknown := [layer for layer in configuration if layer not in known]:
            raise UserError(f"the configuration names {unknown[0]}{more(unknown)}, which is no layer of this search")
        if missing := [site for site in self.sites if site in known and site not in configuration]:
            raise UserError(f"the configuration gives no level to {missing[0]}{more(missing)}; name every layer")
        return tuple(self._index(gene, configuration) for gene in self.genes)

    @staticmethod
    def _index(gene: Gene, configuration: Mapping[str, str]) -> int:
        levels = [configuration[layer] for layer in gene.layers]
        if len(set(levels)) > 1:
            given = ", ".join(f"{layer} {level}" for layer, level in zip(gene.layers, levels, strict=True))
            raise UserError(f"layers tied to one level differ: {given}; give them one level, or search with --tie none")
        if levels[0] not in gene.levels:
            raise UserError(
                f"{gene.layers[0]} has no level {levels[0]!r} in this search; choose {', '.join(gene.levels)}"
            )
        return gene.levels.index(levels[0])

    def rows(self, genotypes: Sequence[Sequence[int]]) -> NDArray[np.int8]:
        """What evaluators take.

        Args:
            genotypes: N of them.

        Returns:
            int8 [N, L]: index into the site's labels, or -1 (the base weight) where no gene decides.
        """
        genotypes_NG = np.asarray(genotypes, dtype=np.int64).reshape(len(genotypes), len(self.genes))
        gene_L, table_LK = self._row_table
        # Sites without a gene point at gene 0 and have -1 at all of its levels.
        return table_LK[np.arange(len(self.sites)), genotypes_NG[:, gene_L]]

    @cached_property
    def _row_table(self) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        gene_L = np.zeros(len(self.sites), dtype=np.int64)
        table_LK = np.full((len(self.sites), self.costs_GK.shape[1]), -1, dtype=np.int8)
        position = {site: number for number, site in enumerate(self.sites)}
        for number, gene in enumerate(self.genes):
            for layer in gene.layers:
                site = position[layer]
                gene_L[site] = number
                table_LK[site, : len(gene.levels)] = [self.labels[site].index(level) for level in gene.levels]
        return gene_L, table_LK

    @cached_property
    def costs_GK(self) -> NDArray[np.int64]:
        """int64 [G, K], read-only: cost of each gene's levels; -1 beyond its last."""
        costs_GK = np.full((len(self.genes), max(len(gene.levels) for gene in self.genes)), -1, dtype=np.int64)
        for number, gene in enumerate(self.genes):
            costs_GK[number, : len(gene.costs)] = gene.costs
        costs_GK.flags.writeable = False
        return costs_GK

    @cached_property
    def steps_GK(self) -> NDArray[np.int64]:
        """int64 [G, K+1], read-only: `[g, k]` is what gene g pays from level k-1 to k; 0 where there is no such step.

        So a gene at level k frees `[g, k]` by going down and pays `[g, k + 1]` for going up.
        """
        costs_GK = self.costs_GK
        steps_GK = np.zeros((costs_GK.shape[0], costs_GK.shape[1] + 1), dtype=np.int64)
        steps_GK[:, 1:-1] = np.where(costs_GK[:, 1:] >= 0, costs_GK[:, 1:] - costs_GK[:, :-1], 0)
        steps_GK.flags.writeable = False
        return steps_GK

    @cached_property
    def step_groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Groups of equal steps: their costs, int64 [S] rising, and in how many genes each occurs, int64 [S]."""
        costs_S, genes_S = np.unique(
            np.concatenate([np.unique(steps[steps > 0]) for steps in self.steps_GK]), return_counts=True
        )
        return costs_S, genes_S

    def summary(self, genotype: Sequence[int]) -> Costs:
        """Bits, bpw, bytes and size of a genotype."""
        chosen = list(zip(self.genes, genotype, strict=True))
        return costs_from_totals(
            weights=self.weights,
            code_bits=sum(gene.code_bits[index] for gene, index in chosen),
            stored_bytes=sum(gene.bytes[index] for gene, index in chosen),
            other_bytes=self.other_bytes,
        )
