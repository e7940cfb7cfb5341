"""Tables for the terminal, each with the same numbers for programs.

Holds: `comparison`, `certificate`, `inspect`, `evaluation_table`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evoray.configuration import BASE, DROPPED, KEPT, Configuration, needs_variants
from evoray.errors import UserError
from evoray.report.allocation import place_of
from evoray.run.budgets import SweepRecord
from evoray.run.directory import BEST, IDENTITY
from evoray.run.journal import Journal
from evoray.run.named import configuration_of, read_best, resolve_sites
from evoray.sizes import human_bytes
from evoray.space import Costs, configuration_costs
from evoray.store import LayerEntry, Location, Manifest, VariantStore
from evoray.store.manifest import BUILDING, MANIFEST

if TYPE_CHECKING:
    from evoray.run.evaluate import Evaluation

IMPORTED = "evopress"
"""The method of stores that were made from a folder of EvoPress."""

BLOCKS_BESIDE = 16
"""Most blocks in one table of levels."""

TERMINAL = 80
"""Columns that a table of levels may take; wide levels, such as 4x0.5, leave room for fewer blocks."""

MARKS = {DROPPED: "x", KEPT: "."}
"""In a table of levels, for what can be dropped."""

WHOLE_BLOCK = "block"
"""The row of blocks that can be dropped whole."""

MIXERS, FEED_FORWARDS = ("att",), ("mlp", "ffn", "fc", "feed_forward", "moe", "experts")
"""Parts of names by which sublayers are counted: without the model's facts, a name is all there is."""


def comparison(candidates: Mapping[str, Mapping[str, Any]], tokens: int) -> Table:
    """Found beside what it has to beat.

    Args:
        candidates: name -> bits, bpw, size, kl, perplexity and the paired difference, as best.json holds them.
        tokens: held-out tokens they were judged on.
    """
    table = Table(title=f"judged on {tokens:,} held-out tokens", title_justify="left")
    # Only where there is some: most searches make no zeros.
    sparse = any(row.get("sparsity", 0) for row in candidates.values())
    costs = ("bits", "bpw", "size", *(["sparsity"] if sparse else []))
    for column in ("", *costs, "KL [nats/token]", "perplexity", "found better by (95%)"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in candidates.items():
        difference, width = -row["found_minus_this_kl"], row["interval_95"]
        better = (
            "" if name == "found" else "the same" if difference == width == 0 else f"{difference:.5f} ± {width:.5f}"
        )
        table.add_row(
            name,
            f"{row['bits']:.4f}",
            f"{row['bpw']:.4f}",
            human_bytes(row["size"]),
            *([f"{row['sparsity']:.4f}"] if sparse else []),
            f"{row['kl']:.5f}",
            f"{row['perplexity']:.4f}",
            better,
        )
    return table


def certificate(held_out: Mapping[str, Any]) -> RenderableType:
    """`comparison` with what a reader must not overlook.

    Args:
        held_out: of a best.json.
    """
    doubts = [Text(f"note: {doubt}") for doubt in held_out.get("doubts", ())]
    return Group(comparison(held_out["candidates"], held_out["tokens"]), *doubts)


def evaluation_table(evaluation: "Evaluation") -> Table:
    """What eval found."""
    table = Table(
        title=f"judged on {evaluation.tokens:,} tokens of {evaluation.documents:,} documents", title_justify="left"
    )
    costs = evaluation.costs
    sparse = costs is not None and costs.sparsity > 0
    for column in ("", "bits", "bpw", "size", *(["sparsity"] if sparse else []), "KL [nats/token]", "perplexity"):
        table.add_column(column, justify="left" if not column else "right")
    if costs is not None:
        table.add_row(
            "configuration",
            f"{costs.bits:.4f}",
            f"{costs.bpw:.4f}",
            human_bytes(costs.size),
            *([f"{costs.sparsity:.4f}"] if sparse else []),
            f"{evaluation.kl:.5f}",
            f"{evaluation.perplexity:.4f}",
        )
    table.add_row("base model", *[""] * (4 if sparse else 3), "0", f"{evaluation.base_perplexity:.4f}")
    return table


def inspect(place: str, store: str | None = None, model: str | None = None) -> tuple[RenderableType, dict[str, Any]]:
    """What is in a store, a run, a sweep or a configuration, for people and for programs.

    Args:
        place: a store, a run directory, the folder of a sweep, or a file of `layer: level` lines.
        store: prices a configuration.
        model: prices what a configuration drops.

    Raises:
        UserError: it is none of these.
    """
    location = Location.parse(place)
    if (location / MANIFEST).exists():
        return _store(VariantStore.open(place).manifest, place)
    if (location / BUILDING).exists():
        VariantStore.open(place)  # says that it is unfinished, and what to do
    if (location / IDENTITY).exists():
        return _run(location)
    if (record := SweepRecord.read(location)) is not None:
        from evoray.report.sweep import sweep_of_folder

        return sweep_of_folder(record)
    if location.local_path is not None and location.local_path.is_dir():
        raise UserError(f"{place} is neither a store (no {MANIFEST}) nor a run directory (no {IDENTITY})")
    return _configuration(place, store, model)


def _facts(rows: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name.replace("_", " "), shown)
    return table


def _store(manifest: Manifest, place: str) -> tuple[RenderableType, dict[str, Any]]:
    weights = sum(layer.out_features * layer.in_features for layer in manifest.layers)
    blocks = len({layer.block for layer in manifest.layers})
    facts = {
        "store": place,
        "model": f"{manifest.model} ({manifest.dtype}, weights {manifest.weights_digest[:12]})",
        "kind": _made(manifest),
        **_levels_of(manifest),
        "layers": f"{len(manifest.layers)} in {blocks} blocks, {weights:,} weights",
        **({} if manifest.kind == "sparsity" else {"scales": manifest.scale_dtype}),
        "cost_format": manifest.cost_format,
        "digest": manifest.digest[:12],
    }
    levels = {}
    for level in manifest.levels:
        if all(level in layer.costs for layer in manifest.layers):
            costs = configuration_costs(manifest, {layer.name: level for layer in manifest.layers})
            levels[level] = {"bits": costs.bits, "bpw": costs.bpw, "size": costs.size, "sparsity": costs.sparsity}
    sparse = any(row["sparsity"] for row in levels.values())
    table = Table(title="the whole model at one level", title_justify="left")
    for column in ("level", "bits", "bpw", "size", *(["sparsity"] if sparse else [])):
        table.add_column(column, justify="right")
    for level, row in levels.items():
        sparsity = [f"{row['sparsity']:.4f}"] if sparse else []
        table.add_row(level, f"{row['bits']:.4f}", f"{row['bpw']:.4f}", human_bytes(int(row["size"])), *sparsity)
    found = manifest.model_dump(mode="json", exclude={"layers", "files", "documents"})
    found |= {"store": place, "digest": manifest.digest, "layers": len(manifest.layers), "blocks": blocks}
    return Group(_facts(facts), table), {**found, "weights": weights, "whole": levels}


def _made(manifest: Manifest) -> str:
    if manifest.method == IMPORTED:
        return f"{manifest.kind} imported from EvoPress: weights without codes, so no packed exports"
    if manifest.kind == "sparsity":
        return f"sparsity by {manifest.method}, kept as masks and values"
    symmetry = "symmetric" if manifest.symmetric else "asymmetric"
    groups = f"groups of {manifest.group_size}" if manifest.group_size > 0 else "one group per row"
    return f"{manifest.kind} by {manifest.method}, {groups}, {symmetry}"


def _levels_of(manifest: Manifest) -> dict[str, str]:
    """The levels, what steps among them mean, and which of them some layers lack."""
    facts = {"levels": ", ".join(manifest.levels)}
    if (step := manifest.settings.get("step_weights")) is not None:
        facts["levels"] += (
            f": steps of {step:,} weights in every layer away from sparsity {manifest.settings['target_sparsity']}"
        )
        shares = dict.fromkeys(f"{step / (each.out_features * each.in_features):.2%}" for each in _by_size(manifest))
        facts["a_step"] = f"{' to '.join(shares)} of a layer; those above 0 are sparser"
    lacking = [level for level in manifest.levels if any(level not in layer.costs for layer in manifest.layers)]
    if lacking:
        facts["not_in_all_layers"] = ", ".join(lacking)
    return facts


def _by_size(manifest: Manifest) -> tuple[LayerEntry, LayerEntry]:
    """The layers of most and of fewest weights."""
    rising = sorted(manifest.layers, key=lambda layer: layer.out_features * layer.in_features)
    return rising[-1], rising[0]


def _run(location: Location) -> tuple[RenderableType, dict[str, Any]]:
    journal = Journal(location)
    best = read_best(location)
    rows = journal.rows
    facts: dict[str, Any] = {
        "run": str(location),
        "generations": rows[-1].generation if rows else 0,
        "candidate_tokens": journal.tokens,
        "seconds": round(journal.seconds, 1),
        "accepted": sum(row.accepted for row in rows),
        "workers_lost": sum(row.lost_workers for row in rows),
    }
    parts: list[RenderableType] = [_facts(facts)]
    aside = sorted({name for row in rows for name in row.set_aside})
    if aside:
        parts.append(Text(f"set aside because they kill workers: {'; '.join(aside)}"))
    if best is None:
        missing = f"{BEST} is missing: run the same search again, which writes it"
        parts.append(Text(missing if rows else "no generation is finished yet"))
    elif "held_out" in best:
        parts.append(certificate(best["held_out"]))
    else:
        parts.append(Text(f"fitness {best['fitness']['nats_per_token']}, not judged yet: run the search to its end"))
    if best is not None:
        parts.append(_levels(best["configuration"]))
    return Group(*parts), {**facts, "best": best}


def _configuration(place: str, store: str | None, model: str | None) -> tuple[RenderableType, dict[str, Any]]:
    configuration = configuration_of(place)
    found: dict[str, Any] = {"layers": len(configuration), "levels": dict(Counter(configuration.values()))}
    parts: list[RenderableType] = [_levels(configuration)]
    if store is not None or model is not None:
        costs = _priced(configuration, store, model)
        found |= {"bits": costs.bits, "bpw": costs.bpw, "size": costs.size}
        parts.insert(
            0, _facts({"bits": f"{costs.bits:.4f}", "bpw": f"{costs.bpw:.4f}", "size": human_bytes(costs.size)})
        )
    return Group(*parts), found


def _priced(configuration: Configuration, store: str | None, model: str | None) -> Costs:
    manifest = VariantStore.open(store).manifest if store is not None else None
    if model is None:
        assert manifest is not None
        if dropped := [site for site, level in configuration.items() if level == DROPPED]:
            raise UserError(f"{dropped[0]} is dropped, and only the model knows what goes with it; give --model, too")
        # What is kept costs nothing of its own.
        return configuration_costs(manifest, {site: level for site, level in configuration.items() if level != KEPT})
    # Here, because it loads torch, and the rest answers at once.
    from evoray.model import checkpoint_facts
    from evoray.run.bare import bare_manifest

    facts = checkpoint_facts(model, allow_partial=True)
    configuration = resolve_sites(configuration, facts.droppable)
    if manifest is None:
        if needs_variants(configuration):
            raise UserError("the configuration has levels of a store; give the --store that prices them")
        return configuration_costs(bare_manifest(facts), configuration, facts.droppable)
    manifest.check_made_from(model, facts.weights_digest)
    return configuration_costs(manifest, configuration, facts.droppable)


def _levels(configuration: Mapping[str, str]) -> RenderableType:
    """Kinds of layers as rows, blocks as columns: the allocation at a glance. A dropped sublayer or block is an x, a
    kept one a dot. Rows in which all is as in the base model are left out."""
    dropped = [site for site, level in configuration.items() if level == DROPPED]
    said = [Text(f"dropped: {_counted(dropped)}: {', '.join(dropped)}")] if dropped else []
    configuration = {site: MARKS.get(level, level) for site, level in configuration.items()}
    grid: dict[str, dict[int, str]] = {}
    for layer, level in configuration.items():
        block, kind = place_of(layer)
        grid.setdefault(kind, {})[block] = level
    grid = {kind: row for kind, row in grid.items() if not set(row.values()) <= {BASE, MARKS[KEPT]}}
    if not grid:
        return Text("nothing is compressed or dropped")
    blocks = sorted({block for row in grid.values() for block in row})
    widest = max(len(cell) for row in grid.values() for cell in (*row.values(), str(blocks[-1])))
    # A cell has a space on each side.
    beside = (TERMINAL - max(map(len, (*grid, WHOLE_BLOCK)))) // (widest + 2)
    beside = max(1, min(beside, BLOCKS_BESIDE))
    tables = []
    for first in range(0, len(blocks), beside):
        shown = blocks[first : first + beside]
        table = Table(title=None if first else "levels by block", title_justify="left", box=None, pad_edge=False)
        table.add_column("block", no_wrap=True)
        for block in shown:
            table.add_column(str(block), justify="right", no_wrap=True)
        for kind, row in grid.items():
            if any(block in row for block in shown):
                table.add_row(kind or WHOLE_BLOCK, *[row.get(block, "") for block in shown])
        tables.append(table)
    return Group(*tables, *said)


def _counted(dropped: Sequence[str]) -> str:
    """`2 attention, 1 MLP sublayers`, by the names of what is dropped."""
    blocks, counts = 0, Counter[str]()
    for site in dropped:
        parts = site.lower().split(".")
        number = next((place for place, part in enumerate(parts) if part.isdecimal()), -1)
        if inside := ".".join(parts[number + 1 :]):
            mixes, feeds = (any(word in inside for word in words) for words in (MIXERS, FEED_FORWARDS))
            counts["attention" if mixes else "MLP" if feeds else "other"] += 1
        else:
            blocks += 1
    said = [f"{counts[kind]} {kind}" for kind in ("attention", "MLP", "other") if counts[kind]]
    groups = [f"{', '.join(said)} sublayer{'s' if counts.total() > 1 else ''}"] if said else []
    groups += [f"{blocks} block{'s' if blocks > 1 else ''}"] if blocks else []
    return " and ".join(groups)
