"""Who got which level, by block and kind of layer.

Holds: `place_of`, `goes_with`, `Cell`, `Allocation`, `allocation_of`, `ordered_levels`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evoray.configuration import BASE, DROPPED, KEPT
from evoray.space.costs import weights_of
from evoray.store import Manifest

WHOLE_BLOCK = "block"
"""The kind of a site that is a whole block."""

FIRST, LAST = (DROPPED,), (BASE, KEPT)
"""Where levels that no store has stand in the order from the cheapest to the dearest."""


@dataclass(frozen=True)
class Cell:
    """One site and its level.

    Attributes:
        site: module path of a layer, sublayer or block.
        block: index of its block.
        kind: its name inside the block.
        level: what the configuration says, or `dropped` where it goes with what is dropped.
    """

    site: str
    block: int
    kind: str
    level: str


@dataclass(frozen=True)
class Allocation:
    """A configuration as a grid.

    Attributes:
        kinds: of layers, in the order of the model.
        blocks: rising.
        levels: those that occur, from the cheapest to the dearest.
        cells: by block, then kind.
    """

    kinds: tuple[str, ...]
    blocks: tuple[int, ...]
    levels: tuple[str, ...]
    cells: tuple[Cell, ...]

    def rows(self) -> dict[int, dict[str, str]]:
        """Block -> kind -> level."""
        grid: dict[int, dict[str, str]] = {block: {} for block in self.blocks}
        for cell in self.cells:
            grid[cell.block][cell.kind] = cell.level
        return grid


def place_of(site: str) -> tuple[int, str]:
    """Block and kind of a site, by its name: the first number in its path is the block.

    >>> place_of("model.layers.3.mlp.up_proj")
    (3, 'mlp.up_proj')
    """
    parts = site.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            return int(part), ".".join(parts[place + 1 :]) or WHOLE_BLOCK
    return 0, site


def goes_with(layer: str, site: str) -> bool:
    """Whether a layer lies in a sublayer or block. Loose layers are one sublayer, named `layers.3.fc1+fc2`."""
    head, dot, last = site.rpartition(".")
    parts = [f"{head}{dot}{each}" for each in last.split("+")]
    return any(layer == part or layer.startswith(f"{part}.") for part in parts)


def ordered_levels(levels: Sequence[str], manifest: Manifest | None) -> tuple[str, ...]:
    """Levels from the cheapest to the dearest: by what they cost in the store, else by their numbers.

    Args:
        levels: in any order; each is kept once.
        manifest: of the store they are of, if there is one.
    """
    price: dict[str, float] = {}
    for level in manifest.levels if manifest is not None else ():
        layers = [layer for layer in manifest.layers if level in layer.costs] if manifest is not None else []
        if layers:
            price[level] = sum(layer.costs[level].bytes for layer in layers) / sum(map(weights_of, layers))

    def rank(level: str) -> tuple[int, float, str]:
        if level in FIRST:
            return 0, 0.0, level
        if level in LAST:
            return 3, LAST.index(level), level
        if level in price:
            return 1, price[level], level
        try:
            return 2, float(level), level
        except ValueError:
            return 2, float("inf"), level

    return tuple(sorted(dict.fromkeys(levels), key=rank))


def allocation_of(configuration: Mapping[str, str], manifest: Manifest | None = None) -> Allocation:
    """A configuration as a grid. Layers of what is dropped are shown as dropped; what is kept shows by its layers.

    Args:
        configuration: site -> level.
        manifest: of its store; it knows the layers of what is dropped, which a configuration does not name.
    """
    layers = [layer.name for layer in manifest.layers] if manifest is not None else []
    layers += [site for site, level in configuration.items() if level not in (DROPPED, KEPT) and site not in layers]
    level_of = {layer: configuration[layer] for layer in layers if layer in configuration}
    for site, level in configuration.items():
        if level not in (DROPPED, KEPT):
            continue
        inside = [layer for layer in layers if goes_with(layer, site)]
        if level == DROPPED:
            level_of |= dict.fromkeys(inside, DROPPED)
        if not inside:
            level_of[site] = level
    kinds = tuple(dict.fromkeys(place_of(site)[1] for site in (*layers, *configuration) if site in level_of))
    cells = sorted(
        (Cell(site, *place_of(site), level) for site, level in level_of.items()),
        key=lambda cell: (cell.block, kinds.index(cell.kind)),
    )
    return Allocation(
        kinds=kinds,
        blocks=tuple(sorted({cell.block for cell in cells})),
        levels=ordered_levels([cell.level for cell in cells], manifest),
        cells=tuple(cells),
    )
