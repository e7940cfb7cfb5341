"""Builds a store, layer by layer, and goes on where it was killed: `StoreWriter`.

The order of steps makes it safe: a layer's file is written aside, read back, published, and only then named in
`building.json`; `manifest.json` comes last. Whatever is not named does not exist. Layers that are made faster than
they are named are named together.
"""

from __future__ import annotations

import json
import math
import time
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
    json_part,
    read_document,
    write_document,
    write_state,
)
from evoray.store.variants import Variant, layer_path, write_layer

NAMING = 1.0
"""Seconds of work that a killed build may have to do again, so that small layers are not each named by themselves: that
takes longer than to make them."""


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
        # What stands of each in `building.json`.
        self._parts: dict[str, tuple[str, str]] = {}
        self._unnamed = False
        self._named_at = -math.inf
        found = _found(self.location)
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

    @staticmethod
    def begun(uri: str | Path | Location) -> StoreHeader | None:
        """How the store at a place is made, finished or not; None where there is none.

        Raises:
            UserError, EvorayError: when it cannot be read.
        """
        found = _found(Location.parse(uri))
        return found.header if found is not None else None

    def finished_layers(self) -> set[str]:
        """Names of the layers that need not be made again."""
        return set(self._layers)

    def write(self, entry: LayerEntry, variants: Iterable[Variant], *, name: bool = True) -> None:
        """Writes all levels of one layer; when it returns, the layer is finished and survives a crash.

        Args:
            entry: the layer with the cost of each level.
            variants: one per level of `entry.costs`, in any order.
            name: False to leave it to `name_finished` that it survives a crash.

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
        self._unnamed = True
        if name:
            self.name_finished()

    def name_finished(self, *, after: float = 0.0) -> None:
        """Lets all layers that were written survive a crash.

        Called with `NAMING` whenever a piece of work is written, it leaves no more than that many seconds of finished
        work to be done again, and work that takes longer is named as soon as it is written.

        Args:
            after: do so only if it is so many seconds since the last time.

        Raises:
            UserError, EvorayError: when it cannot be written.
        """
        if self._unnamed and time.monotonic() >= self._named_at + after:
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
        for name, entry in self._layers.items():
            if name not in self._parts:
                self._parts[name] = json_part(entry), json_part(self._files[name])
        layers, files = ({name: self._parts[name][part] for name in self._layers} for part in (0, 1))
        (self.location / BUILDING).write_bytes(write_state(self.header, list(layers.values()), files))
        self._unnamed = False
        self._named_at = time.monotonic()


def _found(place: Location) -> Manifest | BuildState | None:
    try:
        return read_document(Manifest, (place / MANIFEST).read_bytes(), place / MANIFEST)
    except FileNotFoundError:
        pass
    try:
        return read_document(BuildState, (place / BUILDING).read_bytes(), place / BUILDING)
    except FileNotFoundError:
        return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
