"""All genes of one search with the limits that their costs must keep.

Holds: `Space`.

Arrays are padded to the most levels any gene has; legend: N genotypes, G genes, L sites, K levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evoray.configuration import BASE, KEPT
from evoray.errors import UserError
from evoray.space.costs import NOTHING, Costs, Totals, costs_from_totals, more
from evoray.space.gene import Gene, Genotype

_LARGEST_TOTAL = 2**62
"""Totals and their differences must fit int64, in which the arrays are."""

AS_IN_BASE = (BASE, KEPT)
"""Levels that leave a site as it is in the base model: -1 in a row."""


@dataclass(frozen=True)
class Space:
    """What a search may choose from. Pure facts: it draws nothing and changes nothing.

    Mostly all genes share one budget. There are more where genes of some kind are counted by themselves, such as
    attention sublayers, of which a fixed number is dropped.

    A gene may be a switch: at its first level it drops a sublayer or block, and the genes of the layers in there, its
    members, are silent: they decide nothing, no step moves them, and they keep their levels for the day it returns.

    Attributes:
        genes: the decisions, in the order of their first sites.
        limit: the largest total cost a legal genotype may have in the first budget, in its unit.
        sites: names of all layers of the store, in its order, then of sites that can be dropped: columns of `rows`.
        labels: for each site the levels that its row entries point into.
        weights: compressible weights, for reports.
        other_bytes: bytes of the checkpoint outside of what genes and `fixed` count, for reports.
        level: the label that, held by every gene, meets the target exactly; None where the target has none.
        further: limits of the budgets after the first.
        freed: silent genes cost nothing: what a dropped sublayer frees, others can use. Else they cost what they did.
        fixed: layers that no gene decides, for reports.
        center: with `max_deviation`, from where levels are counted.
        max_deviation: the most steps, over all genes but switches, that a legal genotype is away from `center`.

    Raises:
        ValueError: no gene, a site in two genes, sites or levels unknown, a limit below the lowest total, members
            that are no genes.
    """

    genes: tuple[Gene, ...]
    limit: int
    sites: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    weights: int
    other_bytes: int = 0
    level: str | None = None
    further: tuple[int, ...] = ()
    freed: bool = True
    fixed: Totals = NOTHING
    center: Genotype | None = None
    max_deviation: int | None = None

    def __post_init__(self) -> None:
        if not self.genes:
            raise ValueError("a space needs at least one gene")
        if len(self.sites) != len(self.labels) or self.weights < 1:
            raise ValueError("a space needs a list of labels for each site, and weights")
        labels = dict(zip(self.sites, self.labels, strict=True))
        seen: set[str] = set()
        for gene in self.genes:
            for site in gene.sites:
                if site in seen or site not in labels:
                    raise ValueError(f"{site} of gene {gene.name} is in two genes, or no site")
                if missing := set(gene.levels) - set(labels[site]) - set(AS_IN_BASE):
                    raise ValueError(f"{site} of gene {gene.name} lacks levels {sorted(missing)}")
                seen.add(site)
            if not 0 <= gene.budget < len(self.limits):
                raise ValueError(f"gene {gene.name} counts for budget {gene.budget}, of {len(self.limits)}")
        if sum(gene.costs[-1] for gene in self.genes) > _LARGEST_TOTAL:
            raise ValueError("costs are too large for 64 bits; use a larger unit")
        members = [member for gene in self.genes for member in gene.members]
        if len(set(members)) != len(members) or not set(members) <= {gene.name for gene in self.genes}:
            raise ValueError("a gene is a member of two others, or a member is no gene")
        for limit, total in zip(self.limits, self.totals(self.lowest()), strict=True):
            if limit < total:
                raise ValueError(f"limit {limit} is below the lowest total {total}")
        if self.max_deviation is not None and (self.center is None or self.max_deviation < 0):
            raise ValueError("a deviation of 0 or more needs a center")

    @property
    def limits(self) -> tuple[int, ...]:
        """The limit of every budget."""
        return (self.limit, *self.further)

    def lowest(self) -> Genotype:
        """Every gene at its cheapest level."""
        return (0,) * len(self.genes)

    def highest(self) -> Genotype:
        """Every gene at its dearest level, within the limits or not."""
        return tuple(len(gene.levels) - 1 for gene in self.genes)

    def cost(self, genotype: Sequence[int]) -> int:
        """Total cost in the first budget, in its unit, exact."""
        return self.totals(genotype)[0]

    def totals(self, genotype: Sequence[int]) -> tuple[int, ...]:
        """Total cost in every budget, exact."""
        totals = [0] * len(self.limits)
        for gene, index, owner in zip(self.genes, genotype, self._owner, strict=True):
            if not (self.freed and owner >= 0 and genotype[owner] == 0):
                totals[gene.budget] += gene.costs[index]
        return tuple(totals)

    def is_legal(self, genotype: Sequence[int]) -> bool:
        """Whether every gene has such a level, all totals are within their limits, and the deviation is, too."""
        return (
            len(genotype) == len(self.genes)
            and all(0 <= index < len(gene.levels) for gene, index in zip(self.genes, genotype, strict=True))
            and all(total <= limit for total, limit in zip(self.totals(genotype), self.limits, strict=True))
            and (self.max_deviation is None or self.deviation(genotype) <= self.max_deviation)
        )

    def deviation(self, genotype: Sequence[int]) -> int:
        """Steps away from the center, over all genes but switches; 0 without a center."""
        if self.center is None:
            return 0
        pairs = zip(self.genes, genotype, self.center, strict=True)
        return sum(abs(index - middle) for gene, index, middle in pairs if not gene.members)

    def uniform(self, level: str | None = None) -> Genotype | None:
        """Every gene at one level, and nothing dropped that need not be.

        Args:
            level: a label; by default the one that meets the target exactly.

        Returns:
            None where there is no such label, a gene lacks it, or a total is above its limit.
        """
        level = self.level if level is None else level
        chosen = [gene for gene in self.genes if not gene.members]
        if level is None or not chosen or any(level not in gene.levels for gene in chosen):
            return None
        genotype = tuple(len(gene.levels) - 1 if gene.members else gene.levels.index(level) for gene in self.genes)
        return genotype if self.is_legal(genotype) else None

    def silent(self, genotype: Sequence[int]) -> tuple[bool, ...]:
        """For each gene whether it decides nothing, because what it is about is dropped."""
        return tuple(owner >= 0 and genotype[owner] == 0 for owner in self._owner)

    def configuration(self, genotype: Sequence[int]) -> dict[str, str]:
        """Site -> level, in the order of the sites; sites that no gene decides and silent ones are left out."""
        level_of = {
            site: gene.levels[index]
            for gene, index, silent in zip(self.genes, genotype, self.silent(genotype), strict=True)
            for site in gene.sites
            if not silent
        }
        return {site: level_of[site] for site in self.sites if site in level_of}

    def genotype(self, configuration: Mapping[str, str]) -> Genotype:
        """The genotype of a configuration, within the limits or not (see `is_legal`).

        Layers of what is dropped need no level; a silent gene without one takes the middle of its levels.

        Raises:
            UserError: sites unknown or missing, a level that the gene lacks, or tied layers that differ.
        """
        known = {site for gene in self.genes for site in gene.sites}
        if unknown := [site for site in configuration if site not in known]:
            raise UserError(f"the configuration names {unknown[0]}{more(unknown)}, which is no layer of this search")
        # What can be dropped is kept where nothing is said of it.
        given = {site: KEPT for gene in self.genes if KEPT in gene.levels for site in gene.sites} | dict(configuration)
        switched = [
            gene.members and {given.get(site) for site in gene.sites} == {gene.levels[0]} for gene in self.genes
        ]
        silent = [owner >= 0 and switched[owner] for owner in self._owner]
        needed = {site for gene, off in zip(self.genes, silent, strict=True) if not off for site in gene.sites}
        if missing := [site for site in self.sites if site in needed and site not in given]:
            raise UserError(f"the configuration gives no level to {missing[0]}{more(missing)}; name every layer")
        return tuple(
            len(gene.levels) // 2 if off and not set(gene.sites) <= set(given) else self._index(gene, given)
            for gene, off in zip(self.genes, silent, strict=True)
        )

    @staticmethod
    def _index(gene: Gene, configuration: Mapping[str, str]) -> int:
        levels = [configuration[site] for site in gene.sites]
        if len(set(levels)) > 1:
            given = ", ".join(f"{site} {level}" for site, level in zip(gene.sites, levels, strict=True))
            raise UserError(f"layers tied to one level differ: {given}; give them one level, or search with --tie none")
        if levels[0] not in gene.levels:
            raise UserError(
                f"{gene.sites[0]} has no level {levels[0]!r} in this search; choose {', '.join(gene.levels)}"
            )
        return gene.levels.index(levels[0])

    def rows(self, genotypes: Sequence[Sequence[int]]) -> NDArray[np.int8]:
        """What evaluators take.

        Args:
            genotypes: N of them.

        Returns:
            int8 [N, L]: index into the site's labels, or -1 (as in the base model) where no gene decides, where the
            gene is silent, and for a site that is kept.
        """
        genotypes_NG = np.asarray(genotypes, dtype=np.int64).reshape(len(genotypes), len(self.genes))
        gene_L, table_LK = self._row_table
        owner_G = np.array(self._owner, dtype=np.int64)
        silent_NG = (owner_G >= 0) & (genotypes_NG[:, owner_G] == 0)
        # The table's last column is -1 for every site. Sites without a gene point at gene 0, with -1 at all levels.
        chosen_NG = np.where(silent_NG, table_LK.shape[1] - 1, genotypes_NG)
        return table_LK[np.arange(len(self.sites)), chosen_NG[:, gene_L]]

    @cached_property
    def _row_table(self) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        gene_L = np.zeros(len(self.sites), dtype=np.int64)
        table_LK = np.full((len(self.sites), self.costs_GK.shape[1] + 1), -1, dtype=np.int8)
        position = {site: number for number, site in enumerate(self.sites)}
        for number, gene in enumerate(self.genes):
            for name in gene.sites:
                site = position[name]
                gene_L[site] = number
                table_LK[site, : len(gene.levels)] = [
                    -1 if level in AS_IN_BASE else self.labels[site].index(level) for level in gene.levels
                ]
        return gene_L, table_LK

    @cached_property
    def _owner(self) -> tuple[int, ...]:
        """For each gene the position of the switch that it is a member of, or -1."""
        owner = {member: number for number, gene in enumerate(self.genes) for member in gene.members}
        return tuple(owner.get(gene.name, -1) for gene in self.genes)

    @cached_property
    def owner_G(self) -> NDArray[np.int64]:
        """int64 [G], read-only: the position of the switch that each gene is a member of, or -1."""
        return _frozen(np.array(self._owner, dtype=np.int64))

    @cached_property
    def switches_G(self) -> NDArray[np.bool_]:
        """bool [G], read-only: the genes that have members."""
        switches_G = np.array([bool(gene.members) for gene in self.genes])
        switches_G.flags.writeable = False
        return switches_G

    @cached_property
    def budget_G(self) -> NDArray[np.int64]:
        """int64 [G], read-only: which limit each gene's costs count for."""
        return _frozen(np.array([gene.budget for gene in self.genes], dtype=np.int64))

    @cached_property
    def costs_GK(self) -> NDArray[np.int64]:
        """int64 [G, K], read-only: cost of each gene's levels; -1 beyond its last."""
        costs_GK = np.full((len(self.genes), max(len(gene.levels) for gene in self.genes)), -1, dtype=np.int64)
        for number, gene in enumerate(self.genes):
            costs_GK[number, : len(gene.costs)] = gene.costs
        return _frozen(costs_GK)

    @cached_property
    def steps_GK(self) -> NDArray[np.int64]:
        """int64 [G, K+1], read-only: `[g, k]` is what gene g pays from level k-1 to k; 0 where there is no such step.

        What members add to a switch's step is not in it; see `steps`.
        """
        costs_GK = self.costs_GK
        steps_GK = np.zeros((costs_GK.shape[0], costs_GK.shape[1] + 1), dtype=np.int64)
        steps_GK[:, 1:-1] = np.where(costs_GK[:, 1:] >= 0, costs_GK[:, 1:] - costs_GK[:, :-1], 0)
        return _frozen(steps_GK)

    def steps(self, levels_G: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What each gene frees by one level down, and pays for one level up, from where the genotype is.

        Returns:
            int64 [G] each, 0 where there is no such step. Silent genes have none. Where what is dropped frees its
            cost, a switch's step has the costs of its members.
        """
        numbers_G = np.arange(len(levels_G))
        down_G, up_G = self.steps_GK[numbers_G, levels_G], self.steps_GK[numbers_G, levels_G + 1]
        if (self.owner_G < 0).all():
            return down_G, up_G
        member_G = self.owner_G >= 0
        silent_G = member_G & (levels_G[self.owner_G] == 0)
        down_G, up_G = np.where(silent_G, 0, down_G), np.where(silent_G, 0, up_G)
        if self.freed:
            held_G = self._held(self.costs_GK[numbers_G, levels_G])
            down_G += np.where(levels_G > 0, held_G, 0)
            up_G += np.where(levels_G == 0, held_G, 0)
        return down_G, up_G

    def least_up(self, levels_G: NDArray[np.int64]) -> NDArray[np.int64]:
        """The least total of its budget with each gene one level up and all others as low as they go.

        Returns:
            int64 [G]; of use only where there is a step up.
        """
        numbers_G = np.arange(len(levels_G))
        floor_G = self.costs_GK[:, 0]
        higher_G = self.costs_GK[numbers_G, levels_G] + self.steps_GK[numbers_G, levels_G + 1]
        freed_G = (self.owner_G >= 0) if self.freed else np.zeros(len(levels_G), dtype=np.bool_)
        floors_R = np.zeros(len(self.limits), dtype=np.int64)
        np.add.at(floors_R, self.budget_G, np.where(freed_G, 0, floor_G))
        least_G = floors_R[self.budget_G] - floor_G + higher_G
        if freed_G.any():
            held_G = self._held(floor_G)
            least_G += np.where(held_G > 0, held_G, 0)
            # A member needs its switch on, and with it the others at their lowest.
            switch_G = np.where(freed_G, self.owner_G, 0)
            on_G = self.costs_GK[switch_G, 1] - floor_G[switch_G] + held_G[switch_G] - floor_G + higher_G
            least_G = np.where(freed_G, floors_R[self.budget_G] + on_G, least_G)
        return least_G

    def _held(self, costs_G: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each switch the sum over its members, 0 for other genes."""
        held_G = np.zeros(len(costs_G), dtype=np.int64)
        member_G = self.owner_G >= 0
        np.add.at(held_G, self.owner_G[member_G], costs_G[member_G])
        return held_G

    @cached_property
    def step_groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Groups of equal steps of one budget.

        Returns:
            int64 [S] each: their budgets rising, their costs rising in each, and in how many genes each occurs.
        """
        pairs = [
            (int(budget), int(cost))
            for budget, steps in zip(self.budget_G, self.steps_GK, strict=True)
            for cost in np.unique(steps[steps > 0])
        ]
        counted = {pair: pairs.count(pair) for pair in sorted(set(pairs))}
        table = np.array([(*pair, count) for pair, count in counted.items()], dtype=np.int64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]

    def summary(self, genotype: Sequence[int]) -> Costs:
        """Bits, bpw, bytes, size and sparsity of a genotype."""
        totals, other_bytes = self.fixed, self.other_bytes
        for gene, index, silent in zip(self.genes, genotype, self.silent(genotype), strict=True):
            if not silent:
                totals += Totals(gene.code_bits[index], gene.bytes[index], gene.zeros[index])
                other_bytes += gene.other[index]
        return costs_from_totals(totals, weights=self.weights, other_bytes=other_bytes)


def _frozen(array: NDArray[np.int64]) -> NDArray[np.int64]:
    array.flags.writeable = False
    return array
