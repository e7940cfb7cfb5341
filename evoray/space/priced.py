"""What spaces ask of a store's manifest: names, shapes and prices. Any object with these attributes serves.

Holds: `PricedLevel`, `PricedLayer`, `PricedManifest`, `PricedDroppable`, `BareLayer`, `BareManifest` (a model without
a store), `layer_levels`, `MOST_LEVELS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from evoray.errors import UserError

MOST_LEVELS = 127
"""Levels a layer may have: rows for the evaluator are int8, and -1 is the base weight."""


class PricedLevel(Protocol):
    """What one layer costs at one level."""

    @property
    def code_bits(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def kept(self) -> int | None:
        """Weights that the level leaves; None for all."""
        ...


class PricedLayer(Protocol):
    """One compressible layer."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    @property
    def dense_bytes(self) -> int: ...

    @property
    def record_bytes(self) -> int: ...

    @property
    def costs(self) -> Mapping[str, PricedLevel]: ...


class PricedManifest(Protocol):
    """All layers, with the bytes of everything else in the checkpoint."""

    @property
    def kind(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def levels(self) -> tuple[str, ...]: ...

    @property
    def dense_bytes(self) -> int: ...

    @property
    def layers(self) -> tuple[PricedLayer, ...]: ...


class PricedDroppable(Protocol):
    """A sublayer or block that can be dropped."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int: ...

    @property
    def kind(self) -> str:
        """attn, mlp or block."""
        ...

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def other_bytes(self) -> int:
        """Bytes of what goes with it and is no layer: biases, norms inside."""
        ...


@dataclass(frozen=True)
class BareLayer:
    """A layer of a model without a store: it has no level but its base weight."""

    name: str
    block: int
    out_features: int
    in_features: int
    dense_bytes: int
    record_bytes: int = 0
    costs: Mapping[str, PricedLevel] = field(default_factory=dict)


@dataclass(frozen=True)
class BareManifest:
    """A model without a store, for searches that only drop.

    Attributes:
        layers: of the model.
        dense_bytes: of everything else in its checkpoint.
    """

    layers: tuple[BareLayer, ...]
    dense_bytes: int
    levels: tuple[str, ...] = ()
    kind: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def layer_levels(manifest: PricedManifest) -> tuple[tuple[str, ...], ...]:
    """The list of levels that a row's entry points into, for each layer of the manifest in its order.

    A layer's list is the order of its `costs`, which the store keeps.

    Raises:
        UserError: a layer with more than 127 levels.
    """
    lists = tuple(tuple(layer.costs) for layer in manifest.layers)
    for layer, levels in zip(manifest.layers, lists, strict=True):
        if len(levels) > MOST_LEVELS:
            raise UserError(
                f"{layer.name} has {len(levels)} levels; a store may hold {MOST_LEVELS} a layer: build fewer levels"
            )
    return lists
