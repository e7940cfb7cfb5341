"""The model card of an exported checkpoint: README.md, as hubs show it.

It says what was done to which model, what it costs, what a run proved of it, and how to load it. Figures of costs are
counted anew; what was judged stands in the run's best.json, and is told only of the very configuration, model and
variants that were judged.

Holds: `Card`, `model_card`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evoray.cluster.worker import versions
from evoray.configuration import BASE, configuration_text
from evoray.embedded import EMBEDDED
from evoray.export.source import Depth, ExportSource
from evoray.model import model_folder
from evoray.run.bare import bare_manifest
from evoray.sizes import human_bytes
from evoray.space import Costs, configuration_costs
from evoray.space.costs import dropped_layers
from evoray.space.depth import BLOCK

_GONE = "–"

_FORMS = {
    Depth.zeros: "Their weights are zero: the model has the form of its base model.",
    Depth.removed: "Dropped blocks are gone and the rest are renumbered; sublayers dropped alone have zero weights.",
    Depth.no_op: "They are gone, and `block_configs` in config.json says so.",
}

_SPARSE = (
    "The weights are dense and hold zeros. The packed size above is that of masks and kept values, as the search "
    "counts; no engine stores it smaller than dense weights today."
)


@dataclass(frozen=True)
class Card:
    """What the format says of itself.

    Attributes:
        format: its name.
        warnings: sentences for who uses the checkpoint.
        loading: markdown that says how to load it; empty where there is nothing to say.
        library: of hubs, that loads it; empty: none.
    """

    format: str
    warnings: Sequence[str] = ()
    loading: str = ""
    library: str = "transformers"


def model_card(source: ExportSource, card: Card, checkpoint: Path) -> str:
    """The text of README.md.

    Args:
        source: what was exported.
        card: what the format says.
        checkpoint: folder that was written.
    """
    manifest = source.variants.manifest if source.variants is not None else None
    costs = configuration_costs(manifest or bare_manifest(source.facts), source.configuration, source.facts.droppable)
    parts = [
        _front_matter(source, card, costs),
        f"# {_title(source)}",
        f"{_what(source)} Made by evoray, after EvoPress ([arXiv 2410.14649](https://arxiv.org/abs/2410.14649)).",
        _figures(source, card, costs, checkpoint),
        *([_SPARSE] if _is_sparse(source) else []),
        *_dropped(source),
        *_certificate(source),
        *(["## Loading", card.loading.strip()] if card.loading else []),
        *(["## Mind", "\n".join(f"- {warning}" for warning in card.warnings)] if card.warnings else []),
        "## Levels by block",
        _levels(source),
        "`evoray-configuration.txt` holds it as `layer: level` lines."
        if (checkpoint / "evoray-configuration.txt").exists()
        else f"```\n{configuration_text(source.configuration)}```",
        "## Where it comes from",
        _provenance(source),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(source: ExportSource, card: Card, costs: Costs) -> str:
    kind = source.variants.manifest.kind if source.variants is not None and source.layers else ""
    found: dict[str, Any] = {}
    if _is_hub_id(source.model):
        found["base_model"] = source.model
        if kind == "quantization" and not source.dropped:
            found["base_model_relation"] = "quantized"
    if card.library:
        found["library_name"] = card.library
    found["pipeline_tag"] = "text-generation"
    tags = ["evoray", "evopress", *([kind] if kind else []), *(["depth-pruning"] if source.dropped else [])]
    if costs.sparsity and kind in ("sparsity", "joint"):
        tags.append("pruned")
    found["tags"] = list(dict.fromkeys(tags))
    return f"---\n{yaml.safe_dump(found, sort_keys=False)}---"


def _is_hub_id(model: str) -> bool:
    return model != EMBEDDED and model_folder(model) is None


def _name(place: str | None) -> str:
    """A place as strangers may read it: without the folders of the machine that it is on."""
    if not place:
        return "none"
    return Path(place).name if place.startswith(("/", "~", ".")) or Path(place).exists() else place


def _title(source: ExportSource) -> str:
    return f"{_name(source.model)}, compressed layer by layer"


def _what(source: ExportSource) -> str:
    base = _name(source.model)
    if _is_hub_id(source.model):
        base = f"[{base}](https://huggingface.co/{base})"
    revision = source.facts.revision or source.revision
    at = f" (revision `{revision}`)" if revision else ""
    done = []
    if source.variants is not None and any(level != BASE for level in source.layers.values()):
        manifest = source.variants.manifest
        groups = f" in groups of {manifest.group_size}" if manifest.group_size > 0 else ""
        zeros = "" if manifest.kind == "sparsity" else ", symmetric" if manifest.symmetric else ", with zero points"
        done.append(f"{manifest.kind} by {manifest.method}{groups if manifest.kind != 'sparsity' else ''}{zeros}")
    if source.dropped:
        done.append("dropped sublayers or blocks")
    return f"{base}{at}: {' and '.join(done) or 'unchanged'}."


def _figures(source: ExportSource, card: Card, costs: Costs, checkpoint: Path) -> str:
    files = sum(file.stat().st_size for file in checkpoint.iterdir() if file.suffix in (".safetensors", ".bin"))
    packed = f"packed as {source.variants.manifest.cost_format}" if source.variants is not None else "of what is kept"
    rows = [
        ("average bits of the weights' codes", f"{costs.bits:.4f}"),
        ("bits per weight, all counted", f"{costs.bpw:.4f}"),
        (f"size of the checkpoint, {packed}", f"{human_bytes(costs.size)} ({costs.size} bytes)"),
        (f"weights in this folder (`{card.format}`)", f"{human_bytes(files)} ({files} bytes)"),
        ("share of the layers' weights that are zero or dropped", f"{costs.sparsity:.4f}"),
    ]
    return _table(("", ""), rows)


def _is_sparse(source: ExportSource) -> bool:
    return (
        source.variants is not None
        and source.variants.manifest.kind in ("sparsity", "joint")
        and any(level != BASE for level in source.layers.values())
    )


def _dropped(source: ExportSource) -> list[str]:
    if not source.dropped:
        return []
    kinds = {site.name: str(site.kind) for site in source.facts.droppable}
    blocks = [name for name in source.dropped if kinds[name] == BLOCK]
    sublayers = [name for name in source.dropped if kinds[name] != BLOCK]
    n_blocks = sum(kind == BLOCK for kind in kinds.values())
    told = [
        f"{what}: " + ", ".join(f"`{name}`" for name in names)
        for what, names in (
            (f"whole blocks ({len(blocks)} of {n_blocks})", blocks),
            (f"sublayers ({len(sublayers)} of {len(kinds) - n_blocks})", sublayers),
        )
        if names
    ]
    form = _FORMS[source.options.depth]
    if source.options.depth is Depth.removed:
        form += " Names and numbers on this card are those of the base model."
    return ["## What is dropped", "\n".join(f"- {line}" for line in told), form]


def _certificate(source: ExportSource) -> list[str]:
    """What the run proved of this very configuration; nothing without a run."""
    best = source.best
    if not best:
        return []
    title = "## What it was judged against"
    if "held_out" not in best:
        return [title, "The search that found it has not judged it yet."]
    digests = best.get("digests", {})
    store = source.variants.manifest.digest if source.variants is not None else None
    for what, same in (
        ("configuration", dict(best["configuration"]) == source.configuration),
        ("base model", digests.get("model") == source.facts.weights_digest),
        ("store of variants", digests.get("store") in (store, None)),
    ):
        if not same:
            return [title, f"The run judged another {what} than the one in this checkpoint; its figures are left out."]
    judged = best["held_out"]
    rows = []
    for name, row in judged["candidates"].items():
        better = "" if name == "found" else f"{-row['found_minus_this_kl']:.5f} ± {row['interval_95']:.5f}"
        rows.append(
            (
                "**found** (this one)" if name == "found" else name,
                f"{row['bits']:.4f}",
                f"{row['bpw']:.4f}",
                human_bytes(row["size"]),
                f"{row['kl']:.5f}",
                f"{row['perplexity']:.4f}",
                better,
            )
        )
    columns = ("", "bits", "bpw", "size", "KL to the base model [nats/token]", "perplexity", "found better by")
    return [
        title,
        f"Judged on {judged['tokens']} held-out tokens of `{_name(judged['data'])}`, which no decision saw. ± is the "
        "paired 95% interval of the difference in KL. What was judged are the dequantized weights.",
        _table(columns, rows),
        *(f"Note: {doubt}." for doubt in judged.get("doubts", ())),
    ]


def _levels(source: ExportSource) -> str:
    """Blocks down, layers across; blocks that are alike share a line."""
    configuration, facts = source.configuration, source.facts
    gone = dropped_layers(configuration, facts.droppable)
    names = {site.block: site.name for site in facts.droppable if str(site.kind) == BLOCK}
    levels: dict[int, dict[str, str]] = {block: {} for block in range(facts.n_blocks)}
    for layer in facts.layers:
        kind = layer.name.removeprefix(f"{names[layer.block]}.")
        levels[layer.block][kind] = _GONE if layer.name in gone else configuration.get(layer.name, BASE)
    kinds = list(dict.fromkeys(kind for row in levels.values() for kind in row))
    lines: list[tuple[int, int, tuple[str, ...]]] = []
    for block, row in levels.items():
        cells = tuple(row.get(kind, "") for kind in kinds)
        if lines and lines[-1][2] == cells:
            lines[-1] = (lines[-1][0], block, cells)
        else:
            lines.append((block, block, cells))
    rows = [(f"{first}" if first == last else f"{first}-{last}", *cells) for first, last, cells in lines]
    shown = {cell for row in rows for cell in row[1:]}
    legend = [
        text
        for level, text in ((BASE, f"`{BASE}`: the base model's weight."), (_GONE, f"{_GONE}: dropped."))
        if level in shown
    ]
    return _table(("block", *kinds), rows) + ("\n\n" + " ".join(legend) if legend else "")


def _provenance(source: ExportSource) -> str:
    best = source.best
    found: dict[str, Any] = {
        "base model": _name(source.model),
        "revision": source.facts.revision or source.revision,
        "digest of the base weights": source.facts.weights_digest,
        "digest of the variants": source.variants.manifest.digest if source.variants is not None else None,
    }
    if best:
        digests = best.get("digests", {})
        found |= {
            "digest of the search text": digests.get("search_text"),
            "digest of the held-out text": digests.get("judge_text"),
            "seed": best.get("seed"),
            "generation": best.get("generation"),
            "candidate tokens": best.get("candidate_tokens"),
            "versions of the search": _pairs(best.get("versions", {})),
        }
    found["versions of the export"] = _pairs(versions())
    text = "\n".join(f"- {name}: `{value}`" for name, value in found.items() if value is not None)
    if command := best.get("command"):
        text += f"\n\n```\n{_anywhere(command)}\n```"
    return text


def _anywhere(command: str) -> str:
    """The command with places of this machine by their last names only."""
    words = [",".join(_name(part) for part in word.split(",")) for word in shlex.split(command)]
    return shlex.join(words)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)])
