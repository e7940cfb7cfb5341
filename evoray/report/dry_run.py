"""What a verb would take, before it takes it.

Holds: `build_estimate`, `search_estimate`.
"""

import math
from typing import Any

from rich.table import Table

from evoray.model import Facts
from evoray.run.build import build_memory, plan_build
from evoray.run.plan import plan_search
from evoray.settings import BuildSettings, SearchSettings
from evoray.sizes import human_bytes

# Rough sustained rates in floating-point operations per second, only to tell minutes from days.
_CPU_CORE_RATE = 3e10
_GPU_RATE = 3e14


def _table(rows: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _hours(operations: float) -> dict[str, float]:
    """The same for programs."""
    return {
        "hours_on_cpu_core": operations / _CPU_CORE_RATE / 3600,
        "hours_on_large_gpu": operations / _GPU_RATE / 3600,
    }


def _times(operations: float) -> str:
    def spelled(seconds: float) -> str:
        return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(seconds / 60, 0.1):.1f} min"

    on_core, on_gpu = spelled(operations / _CPU_CORE_RATE), spelled(operations / _GPU_RATE)
    return f"about {on_core} on one CPU core, {on_gpu} on one large GPU (rough)"


def build_estimate(settings: BuildSettings) -> tuple[Table, dict[str, Any]]:
    """Layers, tokens, time and disk of a build, for people and for programs; reads no weight.

    Raises:
        UserError: the build could not work.
    """
    from evoray.compress import layer_entry
    from evoray.compress.evopress import EvopressFolder

    plan = plan_build(settings)
    layers = plan.facts.layers
    weights = sum(layer.out_features * layer.in_features for layer in layers)
    rows = {
        "layers": f"{len(layers)} in {plan.facts.n_blocks} blocks, {weights:,} weights",
        "levels": ", ".join(plan.header.levels),
    }
    figures: dict[str, Any] = {
        "layers": len(layers),
        "blocks": plan.facts.n_blocks,
        "weights": weights,
        "levels": list(plan.header.levels),
        "base_model_bytes": plan.facts.parameter_bytes,
    }
    figures["worker_memory_bytes"] = build_memory(plan, settings)
    memory = human_bytes(figures["worker_memory_bytes"])
    memory += " of this process at most" if settings.workers == 0 else " of each worker at most"
    memory += f", {human_bytes(plan.facts.parameter_bytes)} for the base model in its own dtype"
    if isinstance(plan.source, EvopressFolder):
        figures["disk_bytes"] = plan.source.disk_bytes
        return _table(rows | {"disk": human_bytes(plan.source.disk_bytes), "memory": memory}), figures
    entries = [
        layer_entry(layer.name, layer.block, layer.out_features, layer.in_features, plan.header) for layer in layers
    ]
    tokens = plan.text.tokens if plan.text is not None else 0
    columns = sum(entry.out_features * entry.in_features**2 * len(entry.costs) for entry in entries)
    operations = 2.0 * tokens * (2 * weights + sum(entry.in_features**2 for entry in entries)) + columns
    disk = sum(cost.bytes for entry in entries for cost in entry.costs.values())
    rows |= {
        "Hessian text": f"{tokens:,} tokens",
        "disk": human_bytes(disk),
        "memory": memory,
        "time": _times(operations) + ("" if settings.workers == 0 else ", over the workers"),
    }
    return _table(rows), figures | {"hessian_tokens": tokens, "disk_bytes": disk, **_hours(operations)}


def search_estimate(settings: SearchSettings) -> tuple[Table, dict[str, Any]]:
    """Genes, tokens, time and disk of a search, for people and for programs; starts no worker.

    Raises:
        UserError: the search could not work.
    """
    plan = plan_search(settings)
    ground, held_out = plan.ground, plan.ground.judge_text
    tokens = plan.generation_tokens * (plan.settings.generations or 0)
    choices = sum(math.log10(len(gene.levels)) for gene in ground.space.genes)
    facts = ground.facts
    hidden = _hidden_size(ground.facts)
    teacher = ground.text.tokens * (4 * hidden + 8)
    operations = 2.0 * tokens * facts.parameter_bytes / (4 if facts.dtype == "float32" else 2)
    figures = {
        "genes": len(ground.space.genes),
        "layers": len(ground.manifest.layers),
        "genotypes_log10": choices,
        "candidate_tokens": tokens,
        "candidate_tokens_per_generation": plan.generation_tokens,
        "search_tokens": ground.text.tokens,
        "search_documents": len(ground.text.document_digests),
        "held_out_tokens": held_out.tokens,
        "held_out_documents": len(held_out.document_digests),
        "teacher_bytes": teacher,
        "worker_memory_bytes": int(ground.memory),
        **_hours(operations),
    }
    table = _table(
        {
            "genes": f"{len(ground.space.genes)} over {len(ground.manifest.layers)} layers, 10^{choices:.0f} genotypes",
            "candidate tokens": f"{tokens:,} at most, {plan.generation_tokens:,} a generation",
            "search text": f"{ground.text.tokens:,} tokens, {len(ground.text.document_digests):,} documents",
            "held-out text": f"{held_out.tokens:,} tokens, {len(held_out.document_digests):,} documents",
            "teacher": human_bytes(teacher) + " of disk at most",
            "memory": human_bytes(ground.memory) + " of each worker",
            "time": _times(operations),
        }
    )
    return table, figures


def _hidden_size(facts: Facts) -> int:
    return int(getattr(facts.config.get_text_config(), "hidden_size", 0))
