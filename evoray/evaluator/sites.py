"""What the columns of a candidate's row mean, and how a model becomes that candidate.

Holds: `Sites`.

Legend: N candidates, L columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evoray.errors import EvorayError
from evoray.evaluator.cache import VariantCache
from evoray.model import DropKind, Droppable, ModelAdapter


@dataclass(frozen=True)
class _Variants:
    """A column of a row that chooses among the variants of a layer."""

    layer: str
    levels: tuple[str, ...]


@dataclass(frozen=True)
class _Drop:
    """A column of a row that says whether a sublayer or block is dropped."""

    site: Droppable


class Sites:
    """The layers of a store and the droppable sites of a model, and what the model has in each of them just now.

    Args:
        adapter: the model. Its base weights are put in place, and nothing is dropped.
        cache: its variants.
        droppable: sublayers and blocks that candidates may do without: one more column each, behind the layers'.

    Raises:
        EvorayError: the store is another model's, or a droppable site is none.
    """

    def __init__(self, adapter: ModelAdapter, cache: VariantCache, droppable: Sequence[str]) -> None:
        self.adapter, self.cache = adapter, cache
        for name in adapter.layers:
            adapter.restore(name)
        for name in adapter.droppable:
            adapter.drop(name, False)
        entries = () if cache.store is None else cache.store.manifest.layers
        unknown = [layer.name for layer in entries if layer.name not in adapter.layers]
        if unknown:
            raise EvorayError(f"the store has a layer {unknown[0]} that the model lacks")
        unknown = [name for name in droppable if name not in adapter.droppable]
        if unknown:
            raise EvorayError(f"{unknown[0]} is no sublayer or block of the model")
        sites: list[_Variants | _Drop] = [_Variants(layer.name, layer.levels) for layer in entries]
        sites += [_Drop(adapter.droppable[name]) for name in droppable]
        block_of = np.array(
            [site.site.block if isinstance(site, _Drop) else adapter.layers[site.layer].block for site in sites],
            dtype=np.int64,
        )
        # Sites stand in the order of their blocks, whatever the order in the manifest.
        self._columns = np.argsort(block_of, kind="stable")
        self._block_of = block_of[self._columns]
        self._sites = [sites[column] for column in self._columns]
        self._covered = _covered(self._sites)
        self._installed = np.full(len(self._sites), -1, dtype=np.int8)

    def ordered(self, rows_NL: np.ndarray) -> np.ndarray:
        """Rows in the order of the blocks, int8 [N, L]: one form for candidates that differ only inside what they drop.

        Args:
            rows_NL: as an evaluator is given them.
        """
        rows_NL = np.asarray(rows_NL, dtype=np.int8).reshape(len(rows_NL), len(self._sites))[:, self._columns]
        # The picking of columns has copied.
        for column, covered in self._covered.items():
            rows_NL[np.ix_(rows_NL[:, column] == 0, covered)] = -1
        return rows_NL

    def first_differing_blocks(self, sorted_NL: np.ndarray) -> np.ndarray:
        """Per neighbouring pair the first block where they differ, int64 [N-1]; the number of blocks for equal rows."""
        unequal = sorted_NL[1:] != sorted_NL[:-1]
        if not unequal.shape[1]:
            return np.full(len(unequal), self.adapter.n_blocks)
        return np.where(unequal.any(1), self._block_of[unequal.argmax(1)], self.adapter.n_blocks)

    def variants(self, row_L: np.ndarray) -> list[tuple[str, str]]:
        """The variants (layer, level) that `install` would have to get for an ordered row."""
        differing = np.flatnonzero((row_L != self._installed) & (row_L >= 0))
        sites = [(self._sites[site], row_L[site]) for site in differing]
        return [(site.layer, site.levels[index]) for site, index in sites if isinstance(site, _Variants)]

    def install(self, row_L: np.ndarray) -> None:
        """Makes the model the candidate of an ordered row; nothing is copied for a variant that is ready.

        Raises:
            UserError: a variant is missing or corrupt. What was installed before it stays.
        """
        for number in np.flatnonzero(row_L != self._installed):
            site = self._sites[number]
            if isinstance(site, _Drop):
                self.adapter.drop(site.site.name, bool(row_L[number] == 0))
            elif row_L[number] < 0:
                self.adapter.restore(site.layer)
            else:
                self.adapter.swap(site.layer, self.cache.get(site.layer, site.levels[row_L[number]]))
            self._installed[number] = row_L[number]

    def install_base(self) -> None:
        """Makes the model the base model."""
        self.install(np.full(len(self._sites), -1, dtype=np.int8))


def _covered(sites: Sequence[_Variants | _Drop]) -> dict[int, list[int]]:
    """Column of a droppable site -> columns of what lies inside it: layers, and sublayers of a block."""
    covered: dict[int, list[int]] = {}
    for column, drop in enumerate(sites):
        if isinstance(drop, _Drop):
            whole = drop.site.kind is DropKind.block
            covered[column] = [
                number
                for number, site in enumerate(sites)
                if (isinstance(site, _Variants) and site.layer in drop.site.layers)
                or (whole and isinstance(site, _Drop) and site.site.block == drop.site.block and number != column)
            ]
    return covered
