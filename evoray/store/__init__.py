"""Compressed weights of every layer at every level, in a folder or on object storage.

`Location` (a place), `Manifest` (what a store holds), `VariantStore` (reads), `StoreWriter` (builds), `TRANSFERS` (what
came over the network).
"""

from evoray.store.location import Location
from evoray.store.manifest import FileEntry, LayerEntry, LevelCost, Manifest, StoreHeader
from evoray.store.transfers import TRANSFERS, Transfers
from evoray.store.variants import Buffer, Variant, VariantStore
from evoray.store.writer import StoreWriter

__all__ = [
    "TRANSFERS",
    "Buffer",
    "FileEntry",
    "LayerEntry",
    "LevelCost",
    "Location",
    "Manifest",
    "StoreHeader",
    "StoreWriter",
    "Transfers",
    "Variant",
    "VariantStore",
]
