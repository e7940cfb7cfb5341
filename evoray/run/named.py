"""What a user's path names: a configuration, and a run with what it was made from.

Imports nothing heavy, so that `evoray inspect` answers at once.

Holds: `configuration_of`, `resolve_sites`, `as_blocks`, `read_best`, `run_of`, `with_sources`.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from evoray.configuration import DROPPED, KEPT, Configuration, alias_of, needs_variants, parse_configuration
from evoray.errors import UserError
from evoray.run.budgets import refuse_sweep
from evoray.run.directory import BEST
from evoray.settings import EvalSettings, ExportSettings
from evoray.space import PricedDroppable
from evoray.space.depth import BLOCK
from evoray.store import Location, VariantStore

_S = TypeVar("_S", EvalSettings, ExportSettings)


def configuration_of(place: str) -> Configuration:
    """The configuration in a file of `layer: level` lines, a best.json, or a run directory.

    Raises:
        UserError: there is none.
    """
    location = Location.parse(place)
    if (location / BEST).exists():
        location = location / BEST
    else:
        refuse_sweep(location)
    if location.local_path is not None and location.local_path.is_dir():
        raise UserError(
            f"{place} has no {BEST}; give a run directory with a finished generation, or a configuration file"
        )
    try:
        # Some editors put a byte order mark first.
        return parse_configuration(location.read_bytes().decode("utf-8-sig"), str(location))
    except FileNotFoundError:
        raise UserError(
            f"no configuration at {place}; give a file of `layer: level` lines or a run directory"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the configuration {place} is no text; give a file of `layer: level` lines") from None


def resolve_sites(configuration: Configuration, droppable: Sequence[PricedDroppable]) -> Configuration:
    """The same with the model's own names in the place of aliases (see `evoray.configuration`).

    Args:
        configuration: site -> level.
        droppable: the model's sublayers and blocks.

    Raises:
        UserError: it speaks of more or fewer blocks than there are, or drops of a block what that has not.
    """
    known = {site.name for site in droppable}
    aliases = {site: found for site in configuration if site not in known and (found := alias_of(site)) is not None}
    if not aliases:
        return configuration
    blocks = {site.block for site in droppable}
    spoken = {block for block, _ in aliases.values()}
    if spoken != blocks:
        raise UserError(
            f"the configuration speaks of {len(spoken)} blocks up to number {max(spoken)}, the model has {len(blocks)}"
            "; give one with a line for each block of this model"
        )
    resolved: Configuration = {}
    for site, level in configuration.items():
        if site not in aliases:
            resolved[site] = level
            continue
        block, kind = aliases[site]
        names = [each.name for each in droppable if (each.block, each.kind) == (block, kind)]
        if not names and level != KEPT:
            there = ", ".join(each.name for each in droppable if each.block == block)
            raise UserError(f"the configuration says {level} of {kind} in block {block}, which has none but {there}")
        resolved |= dict.fromkeys(names, level)
    return resolved


def as_blocks(configuration: Configuration, droppable: Sequence[PricedDroppable]) -> Configuration:
    """The same for spaces of whole blocks: a block whose sublayers are all dropped, or all kept, is that itself.

    Args:
        configuration: site -> level, in the model's own names.
        droppable: the model's sublayers and blocks.

    Returns:
        Blocks of which a part is dropped stay as they are: no space of whole blocks takes them.
    """
    found = dict(configuration)
    for block in (site for site in droppable if site.kind == BLOCK):
        parts = [site.name for site in droppable if site.block == block.block and site.kind != BLOCK]
        levels = {found.get(name) for name in parts}
        if levels in ({DROPPED}, {KEPT}):
            found[block.name] = DROPPED if found.get(block.name) == DROPPED else str(levels.pop())
            found = {site: level for site, level in found.items() if site not in parts}
    return found


def read_best(run: Location) -> dict[str, Any] | None:
    """What the best.json of a run directory holds; None before the first generation is finished.

    Raises:
        UserError: it is damaged.
    """
    if not (run / BEST).exists():
        return None
    best = _sound((run / BEST).read_bytes())
    if best is None:
        raise UserError(f"{run / BEST} is damaged; run the same `evoray search`, or sweep, again, which writes it")
    return best


def run_of(place: str) -> dict[str, Any]:
    """What the best.json says that a configuration's place is or holds; nothing for a plain configuration.

    Raises:
        UserError: there is no such place, or a run directory's best.json is damaged.
    """
    location = Location.parse(place)
    try:
        return read_best(location) or _sound(location.read_bytes()) or {}
    except FileNotFoundError:
        raise UserError(
            f"no configuration at {place}; give a file of `layer: level` lines or a run directory"
        ) from None


def with_sources(settings: _S) -> _S:
    """The same with what is not given of model, revision and store: those of the run, or the model of the store.

    Raises:
        UserError: a configuration that needs a store and has none, or no model anywhere.
    """
    run = run_of(settings.configuration) if settings.configuration is not None else {}
    store, model, revision = settings.store or run.get("store"), settings.model, settings.revision
    if (
        store is None
        and settings.configuration is not None
        and needs_variants(configuration_of(settings.configuration))
    ):
        raise UserError("--store is missing: a configuration file does not say where its variants are")
    if model is None and "model" in run:
        # Model and revision belong together: a revision of one model says nothing of another.
        model, revision = run["model"], revision or run.get("revision")
    elif model is None and store is not None:
        manifest = VariantStore.open(store).manifest
        model, revision = manifest.model, revision or manifest.revision
    elif model is None:
        raise UserError("--model is missing; give one, or a --configuration or --store that names it")
    return settings.model_copy(update={"model": model, "revision": revision, "store": store})


def _sound(data: bytes) -> dict[str, Any] | None:
    """A best.json's content; None where it is none."""
    try:
        best: dict[str, Any] = json.loads(data)
        if best["configuration"].keys() and "nats_per_token" in best["fitness"]:
            return best
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None
