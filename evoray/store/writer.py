"""Builds a store, layer by layer, and goes on where it was killed: `StoreWriter`.

The order of steps makes it safe: a layer's file is written aside, read back, published, and only then named in
`building.json`; `manifest.json` comes last. Whatever is not named does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evoray.errors import EvorayError, UserError
from evoray.store.location import Location
from evoray.store.manifest import (
    BUILDING,
    LAYERS,
    MANIFEST,
    BuildState,
    FileEntry,
    LayerEntry,
    Manifest,
    StoreHeader,
    read_document,
    write_document,
)
from evoray.store.variants import Variant, layer_path, write_layer


class StoreWriter:
    """Writes one store. One process at a time may build a store.

    A store under the same header goes on: its finished layers stay, and layers whose file is missing or has another
    size are to be made again, in a finished store too.

    Args:
        uri: folder or `pyarrow.fs` URI.
        header: how the store is made.

    Raises:
        UserError: when the place holds a store made otherwise, naming the keys that differ.

    Example:
        >>> writer = StoreWriter("my-store", header)                    # doctest: +SKIP
        >>> if entry.name not in writer.finished_layers():              # doctest: +SKIP
        ...     writer.write(entry, variants)
        >>> manifest = writer.finish()                                  # doctest: +SKIP
    """

    def __init__(self, uri: str | Path | Location, header: StoreHeader) -> None:
        self.location = Location.parse(uri)
        self.header = header.header
        self._layers: dict[str, LayerEntry] = {}
        self._files: dict[str, FileEntry] = {}
        self._manifest: Manifest | None = None
        found = self._found()
        if found is None:
            return
        self._check_header(found.header)
        whole = {entry.name for entry in found.layers if self._size(entry.name) == found.files[entry.name].size}
        self._layers = {entry.name: entry for entry in found.layers if entry.name in whole}
        self._files = {name: found.files[name] for name in self._layers}
        if isinstance(found, Manifest):
            if len(whole) == len(found.layers):
                self._manifest = found
                (self.location / BUILDING).delete()
            else:
                # From here on the store is unfinished again: its state first, so that no moment knows neither.
                self._save()
                (self.location / MANIFEST).delete()
        (self.location / LAYERS).remove_temporary()

    def finished_layers(self) -> set[str]:
        """Names of the layers that need not be made again."""
        return set(self._layers)

    def write(self, entry: LayerEntry, variants: Iterable[Variant]) -> None:
        """Writes all levels of one layer; when it returns, the layer is finished and survives a crash.

        Args:
            entry: the layer with the cost of each level.
            variants: one per level of `entry.costs`, in any order.

        Raises:
            ValueError: when levels and variants do not match, or the layer is finished already.
            UserError, EvorayError: when it cannot be written.
        """
        if entry.name in self._layers:
            raise ValueError(f"layer {entry.name} is finished already")
        strange = [level for level in entry.costs if level not in self.header.levels]
        if strange:
            raise ValueError(f"layer {entry.name} has the level '{strange[0]}', the store {list(self.header.levels)}")
        given = list(variants)
        by_level = {variant.level: variant for variant in given if variant.layer == entry.name}
        if len(by_level) != len(given) or set(by_level) != set(entry.costs):
            raise ValueError(
                f"layer {entry.name} takes one variant for each of {list(entry.costs)}; "
                f"given are {[(variant.layer, variant.level) for variant in given]}"
            )
        ordered = [by_level[level] for level in entry.costs]
        with (self.location / layer_path(entry.name)).staged() as path:
            file = write_layer(path, entry.name, ordered)
        file = file.model_copy(update={"errors": {variant.level: float(variant.error) for variant in ordered}})
        self._layers[entry.name] = entry
        self._files[entry.name] = file
        self._save()

    def finish(self, order: Sequence[str] | None = None) -> Manifest:
        """Names the store finished.

        Args:
            order: every layer, in the order of the manifest; by default by block, then as they were written.

        Returns:
            The manifest.

        Raises:
            EvorayError: when layers of `order` are not written yet.
        """
        if self._manifest is not None:
            return self._manifest
        names = list(order) if order is not None else [entry.name for entry in self._by_block()]
        missing = [name for name in names if name not in self._layers]
        if missing or not names:
            raise EvorayError(
                f"the store at {self.location} lacks {len(missing) or 'all'} layers ({', '.join(missing[:3])}); "
                "it cannot be finished"
            )
        manifest = Manifest(
            **{key: getattr(self.header, key) for key in StoreHeader.model_fields},
            layers=tuple(self._layers[name] for name in names),
            files={name: self._files[name] for name in names},
        )
        (self.location / MANIFEST).write_bytes(write_document(manifest))
        (self.location / BUILDING).delete()
        self._manifest = manifest
        return manifest

    def _by_block(self) -> list[LayerEntry]:
        return sorted(self._layers.values(), key=lambda entry: entry.block)

    def _found(self) -> Manifest | BuildState | None:
        try:
            return read_document(Manifest, (self.location / MANIFEST).read_bytes(), self.location / MANIFEST)
        except FileNotFoundError:
            pass
        try:
            return read_document(BuildState, (self.location / BUILDING).read_bytes(), self.location / BUILDING)
        except FileNotFoundError:
            return None

    def _check_header(self, found: StoreHeader) -> None:
        differences = found.differences(self.header)
        if differences:
            listed = ", ".join(
                f"{key} ({_short(there)} there, {_short(here)} now)" for key, (there, here) in differences.items()
            )
            raise UserError(f"{self.location} holds a store made otherwise: {listed}; give another folder by --store")

    def _size(self, layer: str) -> int | None:
        return (self.location / layer_path(layer)).size()

    def _save(self) -> None:
        state = BuildState(header=self.header, layers=tuple(self._layers.values()), files=self._files)
        (self.location / BUILDING).write_bytes(write_document(state))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
