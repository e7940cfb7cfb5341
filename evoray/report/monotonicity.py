"""How a run shows that sums of layer errors mislead: a table and a picture.

Holds: `monotonicity_table`, `monotonicity_figures`, `check_plot`, `monotonicity_figure`, `monotonicity_plot`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evoray.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evoray.run.monotonicity import Monotonicity, Pair

PLOTS = (".png", ".svg", ".pdf")
"""Kinds of pictures, by the name of the file."""

LOSSES = {"kl": "KL", "perplexity": "log perplexity"}
"""What a loss in nats per token is called, where that is not the fitness's own name."""


def monotonicity_figures(found: "Monotonicity") -> dict[str, Any]:
    """The same numbers as the table, for programs."""
    counts = found.counts
    return {
        "fitness": found.fitness,
        "groups": len(found.groups),
        "left_out": found.left_out,
        "pairs": counts.pairs,
        "turned": counts.turned,
        "clear": counts.clear,
        "clear_turned": counts.clear_turned,
        "worst": _pair(found, found.worst) if found.worst is not None else None,
    }


def _pair(found: "Monotonicity", pair: "Pair") -> dict[str, Any]:
    group, configurations = pair.group, {}
    for role, number in (("less_error", pair.less), ("more_error", pair.more)):
        configurations[role] = {
            "sum_of_layer_errors": float(group.errors_N[number]),
            "loss": float(group.loss_N[number]),
            "configuration": found.space.configuration(group.genotypes[number]),
        }
    return {
        "generation": group.generation,
        "rung": group.rung,
        "tokens": int(group.counted_B.sum()),
        "difference": pair.difference,
        "interval_95": pair.interval,
        **configurations,
    }


def monotonicity_table(found: "Monotonicity") -> RenderableType:
    """Counts, and the worst pair with the layers in which it differs."""
    counts = found.counts
    table = Table(title="pairs of candidates, measured on the same batches", title_justify="left")
    for column in ("", "pairs", f"less error in the layers, more {_loss(found)}", "share"):
        table.add_column(column, justify="left" if not column else "right")
    for name, pairs, turned in (
        ("all", counts.pairs, counts.turned),
        ("losses that differ beyond 95%", counts.clear, counts.clear_turned),
    ):
        table.add_row(name, f"{pairs:,}", f"{turned:,}", f"{turned / pairs:.1%}" if pairs else "")
    parts: list[RenderableType] = [table]
    if found.left_out:
        parts.append(
            Text(f"{found.left_out:,} measurements are left out: of candidates that drop something, or failed")
        )
    if found.worst is None:
        parts.append(Text("no pair is turned around: in this run less error in the layers was never more loss"))
    else:
        parts += [_worst(found, found.worst)]
    return Group(*parts)


def _worst(found: "Monotonicity", pair: "Pair") -> RenderableType:
    group = pair.group
    table = Table(
        title=f"the worst pair: generation {group.generation}, rung {group.rung + 1}, "
        f"{int(group.counted_B.sum()):,} tokens",
        title_justify="left",
    )
    for column in ("", "sum of layer errors", f"{_loss(found)} [nats/token]"):
        table.add_column(column, justify="left" if not column else "right")
    for name, number in (("less error", pair.less), ("more error", pair.more)):
        table.add_row(name, f"{group.errors_N[number]:.6g}", f"{group.loss_N[number]:.6f}")
    table.add_row("difference", "", f"{pair.difference:.6f} ± {pair.interval:.6f}")
    one, other = (found.space.configuration(group.genotypes[number]) for number in (pair.less, pair.more))
    apart = [f"{site} {one.get(site)} / {other.get(site)}" for site in one if one[site] != other.get(site)]
    return Group(table, Text(f"they differ in {len(apart)} of {len(one)} layers: {', '.join(apart)}"))


def _loss(found: "Monotonicity") -> str:
    return LOSSES.get(found.fitness, found.fitness)


def check_plot(file: str) -> Path:
    """Sees that a picture can be drawn there, before anything is read for it.

    Raises:
        UserError: a file of another kind or without a folder, or matplotlib is missing.
    """
    place = Path(file).expanduser()
    if place.suffix.lower() not in PLOTS:
        raise UserError(f"--plot {file}: a picture is one of {', '.join(PLOTS)}; give such a name")
    if not place.parent.is_dir():
        raise UserError(f"--plot {file} can't be written: there is no folder {place.parent}; give another file")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("--plot draws with matplotlib, which is missing: pip install 'evoray[plots]'") from None
    return place


def monotonicity_figure(found: "Monotonicity") -> "Figure":
    """The group of the worst pair: sum of layer errors against loss, a point for each candidate."""
    # Not pyplot, which would look for a screen, and keep every figure.
    from matplotlib.figure import Figure

    group = found.shown
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(group.errors_N, group.loss_N, s=18, color="#56789a", label="candidate")
    if (pair := found.worst) is not None:
        ends = [pair.less, pair.more]
        axes.plot(group.errors_N[ends], group.loss_N[ends], "o-", color="#c05020", label="the worst pair")
    axes.set_xlabel("sum of layer errors")
    axes.set_ylabel(f"{_loss(found)} [nats/token]")
    axes.set_title(
        f"generation {group.generation}, rung {group.rung + 1}: {len(group.genotypes)} candidates, "
        f"{int(group.counted_B.sum()):,} tokens"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def monotonicity_plot(found: "Monotonicity", file: str) -> Path:
    """Draws `monotonicity_figure` into a file.

    Raises:
        UserError: see `check_plot`; or the file can't be written.
    """
    place = check_plot(file)
    try:
        monotonicity_figure(found).savefig(place)
    except OSError as error:
        raise UserError(f"--plot {file} can't be written: {error.strerror}; give another file") from None
    return place
