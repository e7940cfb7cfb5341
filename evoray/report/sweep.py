"""What a sweep found, budget by budget, and what one would take.

Holds: `sweep_table`, `sweep_of_folder`, `sweep_estimate`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evoray.run.budgets import SweepRecord, spelled
from evoray.run.named import read_best
from evoray.settings import SweepSettings
from evoray.sizes import human_bytes

if TYPE_CHECKING:
    from evoray.run.sweep import Sweep


def sweep_table(found: "Sweep") -> RenderableType:
    """Every budget with what was found for it and what it had to beat, on held-out text."""
    return _table(found.budget, {value: result.best for value, result in found.results.items()}, found.run)


def sweep_of_folder(record: SweepRecord) -> tuple[RenderableType, dict[str, Any]]:
    """What the folder of a sweep holds, finished or not, for people and for programs.

    Raises:
        UserError: a damaged best.json.
    """
    found = {value: read_best(record.run(value)) for value in record.ordered()}
    judged = {value: best for value, best in found.items() if best is not None and "held_out" in best}
    parts: list[RenderableType] = [_table(record.budget, judged, str(record.folder))] if judged else []
    left = ", ".join(record.name(value) for value in found if value not in judged)
    if left:
        parts.append(Text(f"not finished: {left}; the same evoray sweep goes on with it"))
    searches = [
        {record.budget: value, "run": str(record.run(value)), "finished": value in judged, **(best or {})}
        for value, best in found.items()
    ]
    return Group(*parts), {"run": str(record.folder), "budget": record.budget, "searches": searches}


def _table(budget: str, results: Mapping[float, Mapping[str, Any]], folder: str) -> RenderableType:
    beaten = [
        name for name in ("uniform", "dp") if any(name in best["held_out"]["candidates"] for best in results.values())
    ]
    table = Table(title="KL to the base model on held-out text [nats/token]", title_justify="left")
    names = (budget.replace("_", " "), "bits", "bpw", "size", "sparsity", "found", *beaten)
    for column in (*names, "candidate tokens"):
        table.add_column(column, justify="right")
    doubts: list[RenderableType] = []
    for value, best in results.items():
        judged = best["held_out"]["candidates"]
        table.add_row(
            spelled(value),
            f"{best['bits']:.4f}",
            f"{best['bpw']:.4f}",
            human_bytes(best["size"]),
            f"{best['sparsity']:.4f}",
            f"{judged['found']['kl']:.5f}",
            *[f"{judged[name]['kl']:.5f}" if name in judged else "" for name in beaten],
            f"{best['candidate_tokens']:,}",
        )
        doubts += [Text(f"note: {spelled(value)}: {doubt}") for doubt in best["held_out"].get("doubts", ())]
    return Group(table, *doubts, Text(f"each has a run directory in {folder}"))


def sweep_estimate(settings: SweepSettings) -> tuple[Table, dict[str, Any]]:
    """Candidate tokens of each budget, for people and for programs; starts no worker.

    Raises:
        UserError: one of the searches could not work.
    """
    # Here, because they load torch, and `evoray inspect` answers at once.
    from evoray.report.dry_run import search_estimate
    from evoray.run.sweep import planned

    table = Table(title="candidate tokens at most", title_justify="left")
    for column in ("budget", "seeded by", "candidate tokens"):
        table.add_column(column, justify="right")
    figures: list[dict[str, Any]] = []
    for value, (search, seed) in planned(settings).items():
        if value not in getattr(settings, settings.swept):
            continue  # of an earlier call, and not gone on with
        found = search_estimate(search)[1] | {settings.swept: value, "seeded_by": seed}
        figures.append(found)
        table.add_row(spelled(value), "" if seed is None else spelled(seed), f"{found['candidate_tokens']:,}")
    total = sum(found["candidate_tokens"] for found in figures)
    table.add_row("all", "", f"{total:,}")
    return table, {"candidate_tokens": total, "searches": figures}
