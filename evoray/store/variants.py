"""One layer at one level (`Variant`), the Arrow file of one layer (`write_layer`, `LayerFile`), and a finished
store (`VariantStore`).

A layer's file is uncompressed Arrow IPC with one record batch of one row per level, so a row is read from mapped
memory without a copy. Nothing is believed that the manifest does not name with its checksum.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from evoray.errors import EvorayError, UserError
from evoray.store.cache import NodeCache
from evoray.store.location import Location
from evoray.store.manifest import (
    BUILDING,
    LAYERS,
    MANIFEST,
    BuildState,
    CorruptError,
    FileEntry,
    LayerEntry,
    Manifest,
    canonical_json,
    read_document,
)

Buffer: TypeAlias = bytes | memoryview
"""Bytes of one column."""

_FIXED = ("level", "error", "checksum", "meta")
_LAYER_KEY = b"layer"


@dataclass(frozen=True)
class Variant:
    """The compressed weight of one layer at one level.

    Attributes:
        layer: module path.
        level: label of the level, such as "4".
        columns: name -> bytes, such as codes, scales and zeros. From a store they lie in mapped, read-only memory.
        meta: what the format needs to decode the columns; `meta["format"]` names it. Only JSON values.
        error: layer error of this variant, as the compressor measures it.
    """

    layer: str
    level: str
    columns: Mapping[str, Buffer]
    meta: Mapping[str, Any]
    error: float

    @property
    def checksum(self) -> str:
        """sha256 over layer, level, error, meta and the columns by their names, hexadecimal.

        Not in their order: where levels of one layer have several formats, they share the columns of a file.
        """
        head = [self.layer, self.level, float(self.error).hex(), dict(self.meta)]
        columns = sorted(self.columns.items())
        digest = hashlib.sha256(canonical_json([head, [[name, len(column)] for name, column in columns]]).encode())
        for _, column in columns:
            digest.update(column)
        return digest.hexdigest()


def layer_path(layer: str) -> str:
    """A layer's file, relative to the store."""
    return f"{LAYERS}/{layer}.arrow"


def _one(value: Buffer | None) -> pa.Array:
    """An Arrow array of one large_binary, over the caller's memory."""
    if value is None:
        return pa.array([None], type=pa.large_binary())
    offsets = pa.py_buffer(b"".join(offset.to_bytes(8, "little") for offset in (0, len(value))))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(value)])


def write_layer(path: Path, layer: str, variants: Sequence[Variant]) -> FileEntry:
    """Writes one layer's file and proves it by reading it back.

    Args:
        path: local file to write.
        layer: module path.
        variants: one per level, in the order of the layer's levels.

    Returns:
        Size and checksums of what was written.

    Raises:
        EvorayError: when what is read back is not what was written.
    """
    names = list(dict.fromkeys(name for variant in variants for name in variant.columns))
    clash = [name for name in names if name in _FIXED]
    if clash:
        raise ValueError(f"a column must not be called '{clash[0]}'")
    fields = [pa.field("level", pa.string()), pa.field("error", pa.float64())]
    fields += [pa.field("checksum", pa.string()), pa.field("meta", pa.string())]
    fields += [pa.field(name, pa.large_binary()) for name in names]
    schema = pa.schema(fields, metadata={_LAYER_KEY: layer.encode()})
    rows = {variant.level: variant.checksum for variant in variants}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for variant in variants:
            fixed = [pa.array([variant.level]), pa.array([float(variant.error)], type=pa.float64())]
            fixed += [pa.array([rows[variant.level]]), pa.array([canonical_json(dict(variant.meta))])]
            columns = [_one(variant.columns.get(name)) for name in names]
            file.write_batch(pa.record_batch([*fixed, *columns], schema=schema))
    with path.open("rb") as written:
        entry = FileEntry(
            size=path.stat().st_size, sha256=hashlib.file_digest(written, "sha256").hexdigest(), rows=rows
        )
    try:
        back = LayerFile(path, layer, entry)
        for level in rows:
            back.read(level)
    except CorruptError as error:
        raise EvorayError(
            f"layer {layer}: the file just written reads back wrong ({error}); is the disk sound?"
        ) from error
    return entry


class LayerFile:
    """One layer's file, mapped into memory.

    Args:
        source: local file, or its bytes.
        layer: the layer it must hold.
        entry: what the manifest says of it.

    Raises:
        CorruptError: where it is not that file.
    """

    def __init__(self, source: Path | bytes, layer: str, entry: FileEntry) -> None:
        try:
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
        except FileNotFoundError:
            raise CorruptError("it is missing") from None
        if size != entry.size:
            raise CorruptError(f"it has {size} bytes instead of {entry.size}")
        self._layer = layer
        self._entry = entry
        self._variants: dict[str, Variant] = {}
        self._batches: dict[str, pa.RecordBatch] = {}
        try:
            # The map outlives the file object: record batches hold it, and a store of hundreds of layers must not
            # hold hundreds of open file descriptors.
            with pa.BufferReader(source) if isinstance(source, bytes) else pa.memory_map(str(source), "r") as file:
                reader = pa.ipc.open_file(file)
                found = (reader.schema.metadata or {}).get(_LAYER_KEY, b"?").decode(errors="replace")
                batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)
                self._batches[batch.column("level")[0].as_py()] = batch
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            raise CorruptError(f"it is no sound Arrow file ({_first_line(error)})") from error
        if found != layer:
            raise CorruptError(f"it holds the layer {found}")

    def read(self, level: str) -> Variant:
        """The row of one level; its checksum is compared the first time.

        Raises:
            CorruptError: where the row is missing or its checksum is wrong.
        """
        known = self._variants.get(level)
        if known is not None:
            return known
        batch = self._batches.get(level)
        if batch is None:
            raise CorruptError("the row is missing")
        try:
            columns: dict[str, Buffer] = {}
            for field in batch.schema:
                scalar = batch.column(field.name)[0] if field.name not in _FIXED else None
                if scalar is not None and scalar.is_valid:
                    columns[field.name] = memoryview(scalar.as_buffer()).toreadonly()
            meta: dict[str, Any] = json.loads(batch.column("meta")[0].as_py())
            error: float = batch.column("error")[0].as_py()
            variant = Variant(layer=self._layer, level=level, columns=columns, meta=meta, error=error)
            if variant.checksum != self._entry.rows.get(level):
                raise CorruptError("its checksum is wrong")
        except (pa.ArrowException, ValueError, TypeError, KeyError, AttributeError) as wrong:
            raise CorruptError(f"the row does not read ({_first_line(wrong)})") from wrong
        self._variants[level] = variant
        return variant


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class VariantStore:
    """A finished store, opened for reading. Threads may share it.

    Args:
        location: the store's folder.
        manifest: its manifest.
        cache: where files of a remote store are kept on this node.

    Example:
        >>> store = VariantStore.open("my-store")                        # doctest: +SKIP
        >>> variant = store.read("model.layers.0.mlp.up_proj", "4")      # doctest: +SKIP
    """

    def __init__(self, location: Location, manifest: Manifest, cache: NodeCache) -> None:
        self.location = location
        self.manifest = manifest
        self._cache = cache
        self._layers: dict[str, LayerEntry] = {entry.name: entry for entry in manifest.layers}
        self._files: dict[str, LayerFile] = {}
        self._uncached: tuple[str, LayerFile] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, uri: str | Path | Location, cache: str | Path | None = None, cache_bytes: int | None = None
    ) -> VariantStore:
        """Opens a finished store.

        Args:
            uri: folder or `pyarrow.fs` URI.
            cache: folder on this node for files of a remote store; by default one per user under the folder for
                temporary files.
            cache_bytes: that such files may take on this node; by default half of what they take and what is free.

        Raises:
            UserError: when there is no store, it is still being built, or its manifest cannot be read.
        """
        location = Location.parse(uri)
        try:
            manifest = read_document(Manifest, (location / MANIFEST).read_bytes(), location / MANIFEST)
        except FileNotFoundError:
            try:
                state = read_document(BuildState, (location / BUILDING).read_bytes(), location / BUILDING)
            except FileNotFoundError:
                raise UserError(
                    f"no store at {location} (there is no {MANIFEST}); make one with `evoray build --store {location}`"
                ) from None
            raise UserError(
                f"the store at {location} is still being built ({len(state.layers)} layers are finished); "
                "run the same `evoray build` again to finish it"
            ) from None
        return cls(location, manifest, NodeCache(cache, cache_bytes))

    def read(self, layer: str, level: str) -> Variant:
        """One variant.

        Args:
            layer: module path.
            level: one of the layer's levels.

        Returns:
            The variant; its columns lie in mapped, read-only memory and are not copied.

        Raises:
            UserError: for a layer or level that the store does not have, or a corrupt file.
        """
        entry = self._layers.get(layer) or self.manifest.layer(layer)
        if level not in entry.costs:
            raise UserError(f"layer '{layer}' has no level '{level}'; the store has {', '.join(entry.costs)}")
        try:
            with self._lock:
                try:
                    return self._file(layer).read(level)
                except CorruptError:
                    # A file in the cache may have been spoilt after it was fetched, or just have made room for another
                    # one; the store's own may be sound.
                    self._files.pop(layer, None)
                    if self.location.is_local:
                        raise
                    self._cache.discard(self.manifest.files[layer].sha256)
                    try:
                        return self._file(layer).read(level)
                    except CorruptError:
                        # On a small disk that others fill as well, it may have made room again before it was mapped.
                        self._files.pop(layer, None)
                        return self._without_cache(layer).read(level)
        except CorruptError as error:
            file = self.location / layer_path(layer)
            raise UserError(
                f"layer {layer}, level {level}: {file} is corrupt: {error}; "
                "delete that file and run the same `evoray build` again, which makes that layer anew"
            ) from error

    def _file(self, layer: str) -> LayerFile:
        entry, source = self.manifest.files[layer], self.location / layer_path(layer)
        opened, path = self._files.get(layer), source.local_path
        if opened is not None and (path is not None or self._cache.touch(entry.sha256)):
            return opened
        if path is None:
            if self._uncached is not None and self._uncached[0] == layer:
                return self._uncached[1]
            path = self._cache.fetch(source, size=entry.size, sha256=entry.sha256)
            self._let_go()
        if path is None:
            return self._without_cache(layer)
        opened = self._files[layer] = LayerFile(path, layer, entry)
        return opened

    def _without_cache(self, layer: str) -> LayerFile:
        """A layer's file in this process's memory."""
        entry = self.manifest.files[layer]
        try:
            data = (self.location / layer_path(layer)).read_bytes(entry.sha256)
        except FileNotFoundError:
            raise CorruptError("it is missing") from None
        # The last one only: whoever has no disk may not have the memory for a whole store either.
        opened = LayerFile(data, layer, entry)
        self._uncached = layer, opened
        return opened

    def _let_go(self) -> None:
        """Closes files that made room in the cache for others: the disk has their bytes until nobody maps them."""
        for layer in [name for name in self._files if not self._cache.has(self.manifest.files[name].sha256)]:
            del self._files[layer]
