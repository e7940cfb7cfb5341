"""What a store holds: `StoreHeader` (how it was made), `LayerEntry` and `LevelCost` (shapes and exact costs),
`FileEntry` (what a reader trusts), `Manifest` (all of it, in `manifest.json`), `BuildState` (the same, unfinished).

Names and costs are all that a space needs, so this file knows neither weights nor Arrow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evoray.errors import EvorayError, UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BUILDING = "building.json"
LAYERS = "layers"

# A layer's name becomes a file's name; a manifest from a stranger must not lead out of the store's folder.
_LAYER_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$"

_Document = TypeVar("_Document", bound=BaseModel)


class CorruptError(EvorayError):
    """A file is not what the manifest says. The text says what is wrong, without naming file or layer."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LevelCost(_Frozen):
    """Exact cost of one layer at one level.

    Attributes:
        code_bits: bits of the codes alone (bits * weights that are kept), as papers count them.
        bytes: codes, scales and zero points, or mask and values, as the store's cost format counts them.
        kept: weights that a mask keeps, those that happen to be zero among them; None without a mask: all.
    """

    code_bits: int = Field(ge=0)
    bytes: int = Field(ge=0)
    kept: int | None = Field(None, ge=0)


class LayerEntry(_Frozen):
    """One layer of a store.

    Attributes:
        name: module path.
        block: index of its block.
        out_features: rows of the weight.
        in_features: columns of the weight.
        dense_bytes: bytes of the base weight in the checkpoint's dtype.
        record_bytes: bytes that the cost format adds to a compressed layer at any level.
        costs: cost of each level; their order is the order of this layer's level list.
        outliers: M -> share of the layer's weights that score above M times their mean (see `compress.outliers`).
    """

    name: str = Field(pattern=_LAYER_NAME)
    block: int = Field(ge=0)
    out_features: int = Field(gt=0)
    in_features: int = Field(gt=0)
    dense_bytes: int = Field(ge=0)
    record_bytes: int = Field(ge=0)
    costs: dict[str, LevelCost] = Field(min_length=1)
    outliers: dict[str, float] = {}

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels this layer has, in the order of `costs`."""
        return tuple(self.costs)


class FileEntry(_Frozen):
    """One layer's file: what readers compare with what they find.

    Attributes:
        size: bytes of the whole file.
        sha256: of the whole file, compared when it is fetched from object storage.
        rows: checksum of each level's row, compared when it is first read.
        errors: layer error of each level, so that they are known without the file; empty in older stores.
    """

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: dict[str, str]
    errors: dict[str, float] = {}


class StoreHeader(_Frozen):
    """How a store is made: everything in the manifest except its layers. A build goes on only under an equal header.

    Attributes:
        format_version: of store and manifest.
        model: id or folder of the base model.
        revision: of the model on the hub.
        weights_digest: of the base weights.
        dtype: of the checkpoint, such as "bfloat16".
        kind: what levels mean, such as "quantization".
        method: of compression, such as "gptq".
        levels: every level that layers may have, smallest cost first.
        group_size: input columns per scale.
        symmetric: without zero points.
        scale_dtype: of the stored scales.
        cost_format: how bytes are counted.
        text_digest: of the text the Hessians come from.
        documents: digests of that text's documents.
        dense_bytes: bytes of all tensors of the checkpoint that are no layer, in its dtype.
        settings: whatever else decides the result.
    """

    format_version: int = FORMAT_VERSION
    model: str
    revision: str | None = None
    weights_digest: str
    dtype: str
    kind: str
    method: str
    levels: tuple[str, ...] = Field(min_length=1)
    group_size: int
    symmetric: bool
    scale_dtype: str
    cost_format: str
    text_digest: str | None = None
    documents: tuple[str, ...] = ()
    dense_bytes: int = Field(ge=0)
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _levels_differ(self) -> Self:
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"a level stands twice in {list(self.levels)}")
        return self

    @property
    def header(self) -> StoreHeader:
        """This header alone, without layers and files."""
        return StoreHeader(**{key: getattr(self, key) for key in StoreHeader.model_fields})

    def differences(self, other: StoreHeader) -> dict[str, tuple[Any, Any]]:
        """Key -> (this value, the other's value) of every header key that differs, `settings` key by key.

        Where a model was found does not count when its weights are the same.
        """
        here, there = _flat(self.header), _flat(other.header)
        if here["weights_digest"] == there["weights_digest"]:
            here |= {key: there[key] for key in ("model", "revision")}
        keys = [*here, *(key for key in there if key not in here)]
        return {key: (here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)}


class Manifest(StoreHeader):
    """A finished store.

    Attributes:
        layers: in the order of blocks, and inside a block in the order of the model.
        files: layer name -> its file.
    """

    layers: tuple[LayerEntry, ...] = Field(min_length=1)
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _layers_fit(self) -> Self:
        _check_layers(self.layers, self.files, self.levels)
        return self

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON: the identity of the store and of every byte in it."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()

    def layer(self, name: str) -> LayerEntry:
        """The entry of one layer.

        Raises:
            UserError: when the store has no such layer.
        """
        for entry in self.layers:
            if entry.name == name:
                return entry
        raise UserError(
            f"layer '{name}' is not in the store, which has {len(self.layers)} layers; see `evoray inspect`"
        )

    def check_made_from(self, model: str, weights_digest: str) -> None:
        """Sees that this store was made from these base weights.

        Args:
            model: as the user named it, for the message.
            weights_digest: of its weights.

        Raises:
            UserError: it was made from others.
        """
        if self.weights_digest != weights_digest:
            raise UserError(
                f"the store was made from other base weights ({self.model}, {self.weights_digest[:12]}) than "
                f"{model} has ({weights_digest[:12]}); give that model, or build another store"
            )


class BuildState(_Frozen):
    """A store that is still being built: its header and the layers that are finished, in the order of writing."""

    header: StoreHeader
    layers: tuple[LayerEntry, ...] = ()
    files: dict[str, FileEntry] = {}

    @model_validator(mode="after")
    def _layers_fit(self) -> Self:
        _check_layers(self.layers, self.files, self.header.levels)
        return self


def _check_layers(layers: tuple[LayerEntry, ...], files: dict[str, FileEntry], levels: tuple[str, ...]) -> None:
    names = [entry.name for entry in layers]
    if len(set(names)) != len(names):
        raise ValueError("a layer stands twice")
    if set(names) != set(files):
        raise ValueError("layers and files do not name the same layers")
    for entry in layers:
        unknown = [level for level in entry.costs if level not in levels]
        if unknown:
            raise ValueError(f"layer {entry.name} has the level '{unknown[0]}', which is not among {list(levels)}")
        if list(files[entry.name].rows) != list(entry.costs):
            raise ValueError(f"the file of layer {entry.name} does not hold the levels {list(entry.costs)}")
        if files[entry.name].errors and list(files[entry.name].errors) != list(entry.costs):
            raise ValueError(f"the file of layer {entry.name} has errors of other levels than {list(entry.costs)}")
        for level, cost in entry.costs.items():
            if cost.kept is not None and cost.kept > entry.out_features * entry.in_features:
                raise ValueError(f"layer {entry.name}, level '{level}' keeps {cost.kept} weights, more than it has")


def _flat(header: StoreHeader) -> dict[str, Any]:
    values: dict[str, Any] = header.model_dump(mode="json")
    settings: dict[str, Any] = values.pop("settings")
    return {**values, **{f"settings.{key}": value for key, value in settings.items()}}


def write_document(document: BaseModel) -> bytes:
    """A manifest or build state as JSON for people and programs; the order of levels is kept."""
    return (json.dumps(document.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_state(header: StoreHeader, layers: Sequence[str], files: Mapping[str, str]) -> bytes:
    """A build state as `write_document` gives it, from parts that are JSON already: while a store is built it is
    written again and again, and only a layer or two are new each time.

    Args:
        header: of the store.
        layers: `json_part` of each `LayerEntry`.
        files: layer -> `json_part` of its `FileEntry`.
    """
    head = _indented(header, 1)
    named = (f"  {json.dumps(name, ensure_ascii=False)}: {part}" for name, part in files.items())
    listed = "[\n" + ",\n".join(f"  {part}" for part in layers) + "\n ]" if layers else "[]"
    held = "{\n" + ",\n".join(named) + "\n }" if files else "{}"
    return f'{{\n "header": {head},\n "layers": {listed},\n "files": {held}\n}}\n'.encode()


def json_part(part: LayerEntry | FileEntry) -> str:
    """A part of a build state, as it stands there."""
    return _indented(part, 2)


def _indented(document: BaseModel, depth: int) -> str:
    text = json.dumps(document.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    return text.replace("\n", "\n" + " " * depth)


def read_document(model: type[_Document], text: bytes, where: object) -> _Document:
    """Reads a manifest or build state.

    Args:
        model: `Manifest` or `BuildState`.
        text: the file's bytes.
        where: the file, for messages.

    Raises:
        UserError: not JSON, a newer format version, unknown or missing keys, values that do not fit; in one line.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); build the store again into another folder") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no JSON object; build the store again into another folder")
    header = value.get("header", value)
    version = header.get("format_version", FORMAT_VERSION) if isinstance(header, dict) else FORMAT_VERSION
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{where} has format version {version}, this evoray reads up to {FORMAT_VERSION}; use a newer evoray"
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"{where}: {key}: {what}; build the store again with this evoray") from None
