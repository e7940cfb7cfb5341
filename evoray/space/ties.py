"""Layers that must share a level because inference engines run them as one matrix.

Holds: `Tie`, `tie`.
"""

from collections.abc import Sequence
from enum import StrEnum


class Tie(StrEnum):
    """How layers are gathered into genes."""

    FUSED = "fused"
    """Those that vLLM and its like load as one matrix share a gene, so the result can be served."""
    NONE = "none"
    """Every layer for itself, as in the paper."""


_FUSED: tuple[frozenset[str], ...] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),
    frozenset({"gate_proj", "up_proj"}),
    frozenset({"w1", "w3"}),
)
"""Last parts of the names of siblings that engines fuse. Names are the right test here, not structure:
engines go by these names too (`packed_modules_mapping` in vLLM)."""


def tie(layers: Sequence[str], mode: Tie = Tie.FUSED) -> tuple[tuple[str, ...], ...]:
    """Gathers layers into groups that share a level.

    Args:
        layers: distinct module paths.
        mode: see `Tie`.

    Returns:
        Groups in the order of their first layer, layers of a group in the given order. Each layer is in one group.

    >>> tie(["m.0.q_proj", "m.0.o_proj", "m.0.k_proj", "m.1.q_proj"])
    (('m.0.q_proj', 'm.0.k_proj'), ('m.0.o_proj',), ('m.1.q_proj',))
    """
    groups: dict[tuple[str, frozenset[str]], list[str]] = {}
    for layer in layers:
        parent, _, last = layer.rpartition(".")
        fused = next((names for names in _FUSED if last in names), None) if mode is Tie.FUSED else None
        groups.setdefault((parent, fused if fused is not None else frozenset({last})), []).append(layer)
    return tuple(tuple(group) for group in groups.values())
