"""The figures of a report, as PNG files.

Needs matplotlib (the extra `plots`).

Holds: `loss_figure`, `allocation_figure`, `bytes_figure`, `errors_figure`, `funnel_figure`, `busy_figure` of one run;
`losses_figure`, `sizes_figure` of several.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from evoray.configuration import DROPPED
from evoray.report.allocation import Allocation
from evoray.report.drawing import (
    COLOURS,
    MARKERS,
    WIDTH,
    blank,
    explain,
    ink_on,
    level_colours,
    line_style,
    looks,
    plain_log,
    png,
    short_count,
)
from evoray.report.numbers import Generation, LevelError, Part, Rung, RunNumbers, loss_name

NATS = "nats/token"

ROWS_TOGETHER = 40
"""Rows of the allocation in one panel; more stand in panels side by side, so that a figure fits a page."""

MOST_COLUMNS = 24
"""Kinds of layers up to which they are columns; models with more of them (experts) have them as rows."""

MOST_TICKS = 30
"""Kinds of layers that a figure of lines names; more are in the table alone."""


def _finite(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value


def loss_figure(generations: Sequence[Generation], fitness: str | None) -> bytes:
    """The winner's loss of each generation against what was spent: candidate tokens above, time below."""
    seconds, unit = _time_unit(generations[-1].total_seconds)
    with looks():
        figure = blank(5.4)
        above, below = figure.subplots(2, 1, sharey=True)
        for axes, spent in (
            (above, [each.total_tokens for each in generations]),
            (below, [each.total_seconds / seconds for each in generations]),
        ):
            losses = [_finite(each.fitness) for each in generations]
            parents = [_finite(each.parent_fitness) for each in generations]
            axes.plot(spent, parents, "_", color="#666666", markersize=8, label="parent on the same tokens")
            axes.plot(spent, losses, "-", color=COLOURS[0], linewidth=1)
            for accepted, face, label in ((True, COLOURS[0], "a child won"), (False, "white", "the parent stayed")):
                points = [
                    (at, loss)
                    for at, loss, each in zip(spent, losses, generations, strict=True)
                    if each.accepted is accepted
                ]
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        "o",
                        color=COLOURS[0],
                        markerfacecolor=face,
                        markersize=5,
                        label=label,
                    )
            axes.set_ylabel(f"{loss_name(fitness)} [{NATS}]")
            axes.set_xlim(left=0)
        plain_log(above, [each for each in (*losses, *parents) if math.isfinite(each)])
        above.set_xlabel("candidate tokens")
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        below.set_xlabel(unit)
        explain(figure, above.get_legend_handles_labels()[0], above=True)
        return png(figure)


def _time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a time is a number of few digits: its seconds, and its name."""
    if seconds < 180:
        return 1, "seconds"
    return (60, "minutes") if seconds < 3 * 3600 else (3600, "hours")


def allocation_figure(allocation: Allocation) -> bytes:
    """Blocks as rows, kinds of layers as columns, levels as colours with their names inside."""
    grid = {(cell.block, cell.kind): cell.level for cell in allocation.cells}
    turned = len(allocation.kinds) > MOST_COLUMNS
    rows: Sequence[str | int] = allocation.kinds if turned else allocation.blocks
    columns: Sequence[str | int] = allocation.blocks if turned else allocation.kinds
    colours = level_colours(allocation.levels)
    panels = [rows[first : first + ROWS_TOGETHER] for first in range(0, len(rows), ROWS_TOGETHER)]
    longest = max(len(str(column)) for column in columns)
    text = max(len(_inside(level)) for level in allocation.levels)
    cell = max(0.34, 0.1 * text + 0.12)
    width = max(WIDTH, len(panels) * (len(columns) * cell + 0.9) + 0.4)
    height = max(map(len, panels)) * 0.27 + min(0.075 * longest, 2.5) + 0.5
    with looks():
        figure = blank(height, width)
        axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(axes_of, panels, strict=True):
            _grid(axes, panel, columns)
            for y, row in enumerate(panel):
                for x, column in enumerate(columns):
                    level = grid.get((column, row) if turned else (row, column))  # type: ignore[arg-type]
                    if level is not None:
                        _cell(axes, x, y, level, colours[level])
            axes.set_ylabel("kind of layer" if turned else "block")
        handles = [
            Patch(
                facecolor=colours[level],
                edgecolor="#555555",
                hatch="////" if level == DROPPED else None,
                label=f"{level} ({sum(each.level == level for each in allocation.cells)})",
            )
            for level in allocation.levels
        ]
        explain(figure, handles, title="level (how many)")
        return png(figure)


def _grid(axes: Axes, rows: Sequence[str | int], columns: Sequence[str | int]) -> None:
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names = [str(column) for column in columns]
    if max(map(len, names)) < 4:
        axes.set_xticks(range(len(columns)), names)
    else:
        axes.set_xticks(range(len(columns)), names, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(axes: Axes, x: int, y: int, level: str, colour: str) -> None:
    dropped = level == DROPPED
    axes.add_patch(
        Rectangle(
            (x - 0.5, y - 0.5),
            1,
            1,
            facecolor=colour,
            edgecolor="#999999" if dropped else "white",
            hatch="////" if dropped else None,
            linewidth=0.8,
        )
    )
    axes.text(x, y, _inside(level), ha="center", va="center", fontsize=9, color=ink_on(colour))


def _inside(level: str) -> str:
    """What stands in a cell. A cross for what is dropped: hatching alone is hard to see on a phone."""
    return "×" if level == DROPPED else level


def bytes_figure(parts: Sequence[Part]) -> bytes:
    """Bytes of each part of the checkpoint, with those of the base model behind them where they are known."""
    with looks():
        figure = blank(0.36 * len(parts) + 1.0)
        axes = figure.add_subplot()
        places = range(len(parts))
        known = [part.base_bytes or 0 for part in parts]
        if any(part.base_bytes is not None for part in parts):
            axes.barh(places, known, height=0.72, color="#dddddd", label="base model")
        axes.barh(places, [part.bytes for part in parts], height=0.46, color=COLOURS[0], label="this configuration")
        for place, part in zip(places, parts, strict=True):
            axes.annotate(
                short_count(part.bytes) + "B",
                (part.bytes, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(places, [part.name.replace(", norms", ",\nnorms") for part in parts])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.set_xlabel("bytes")
        explain(figure, axes.get_legend_handles_labels()[0], above=True)
        return png(figure)


def errors_figure(errors: Sequence[LevelError], levels: Sequence[str]) -> bytes:
    """Mean layer error of each kind of layer at each level."""
    kinds = list(dict.fromkeys(error.kind for error in errors))[:MOST_TICKS]
    means = {(error.kind, error.level): error.mean for error in errors}
    with looks():
        figure = blank(3.6)
        axes = figure.add_subplot()
        for number, kind in enumerate(kinds):
            axes.plot(
                range(len(levels)),
                [_finite(means.get((kind, level))) for level in levels],
                label=kind,
                markersize=5,
                linewidth=1.2,
                **line_style(number),
            )
        plain_log(axes, means.values())
        axes.set_xticks(range(len(levels)), levels, rotation=0 if len(levels) <= 8 else 60)
        axes.set_xlabel("level, from the smallest to the largest")
        axes.set_ylabel("relative layer error, mean")
        explain(figure, axes.lines)
        return png(figure)


def funnel_figure(rungs: Sequence[Rung]) -> bytes:
    """What a generation's race measures on each rung, on average: candidates, tokens of each, and their product."""
    means = funnel_means(rungs)
    names = [f"rung {rung + 1}" for rung, *_ in means]
    with looks():
        figure = blank(0.5 * len(means) + 1.1)
        panels = figure.subplots(1, 3, sharey=True)
        titles = ("candidates", "tokens of each", "candidate tokens")
        for axes, title, number in zip(panels, titles, (1, 2, 3), strict=True):
            values = [mean[number] for mean in means]
            axes.barh(range(len(means)), values, height=0.6, color=COLOURS[number - 1])
            for place, value in enumerate(values):
                axes.annotate(
                    short_count(value),
                    (value, place),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
            axes.set_title(title)
            axes.margins(x=0.35)
            axes.set_xlim(left=0)
            axes.set_xticks([])
            axes.grid(False)
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(length=0)
        panels[0].set_yticks(range(len(means)), names)
        panels[0].invert_yaxis()
        return png(figure)


def funnel_means(rungs: Sequence[Rung]) -> list[tuple[int, float, float, float]]:
    """Rung, mean candidates, mean tokens of each, mean candidate tokens: over the generations that measured on it.

    The race for the start is another one; it counts only where there is no other.
    """
    raced = [rung for rung in rungs if rung.generation > 0] or list(rungs)
    found = []
    for number in sorted({rung.rung for rung in raced}):
        here = [rung for rung in raced if rung.rung == number]
        found.append(
            (
                number,
                sum(rung.candidates for rung in here) / len(here),
                sum(rung.tokens_each for rung in here) / len(here),
                sum(rung.tokens for rung in here) / len(here),
            )
        )
    return found


def busy_shares(generation: Generation) -> tuple[float, float]:
    """Share of a generation's time in which its workers had work: their mean, and the least, 0 to 1."""
    shares = [min(1.0, busy / generation.seconds) if generation.seconds else 0.0 for busy in generation.busy_seconds]
    return sum(shares) / len(shares), min(shares)


def busy_figure(generations: Sequence[Generation]) -> bytes:
    """How busy the workers were in each generation, in percent."""
    shown = [each for each in generations if each.busy_seconds]
    with looks():
        figure = blank(3.2)
        axes = figure.subplots()
        for number, (label, at) in enumerate((("all workers", 0), ("the least busy one", 1))):
            shares = [100 * busy_shares(each)[at] for each in shown]
            axes.plot([each.generation for each in shown], shares, label=label, **line_style(number))
        axes.set_ylim(0, 105)
        axes.set_ylabel("busy [%]")
        axes.set_xlabel("generation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        explain(figure, axes.get_legend_handles_labels()[0], above=True)
        return png(figure)


def losses_figure(runs: Sequence[RunNumbers]) -> bytes:
    """Loss against candidate tokens of several runs; runs that minimise something else have a panel of their own."""
    searched = [run for run in runs if run.generations]
    measures = list(dict.fromkeys(str(run.fitness) for run in searched))
    with looks():
        figure = blank(3.2 * len(measures))
        for axes, measure in zip(figure.subplots(len(measures), 1, squeeze=False)[:, 0], measures, strict=True):
            seen: list[float] = []
            for number, run in enumerate(runs):
                if not run.generations or str(run.fitness) != measure:
                    continue
                losses = [_finite(each.fitness) for each in run.generations]
                seen += losses
                tokens = [each.total_tokens for each in run.generations]
                axes.plot(tokens, losses, markersize=3.5, linewidth=1.2, **line_style(number))
            plain_log(axes, seen)
            axes.set_xlim(left=0)
            axes.set_xlabel("candidate tokens")
            axes.set_ylabel(f"{loss_name(measure)} [{NATS}]")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        handles = [
            Line2D([], [], label=_label(run.name), markersize=5, **line_style(number))
            for number, run in enumerate(runs)
            if run.generations
        ]
        explain(figure, handles)
        return png(figure)


def sizes_figure(runs: Sequence[RunNumbers]) -> bytes:
    """Stored bits per weight against held-out KL: what each run found, filled, and what it is judged beside, hollow."""
    judged = [(number, run) for number, run in enumerate(runs) if run.judged]
    others = list(dict.fromkeys(each.name for _, run in judged for each in run.judged if each.name != "found"))
    with looks():
        figure = blank(4.0)
        axes = figure.add_subplot()
        for number, run in judged:
            colour = COLOURS[number % len(COLOURS)]
            for each in run.judged:
                found = each.name == "found"
                axes.plot(
                    [each.bpw],
                    [_finite(each.kl)],
                    linestyle="none",
                    marker="o" if found else MARKERS[1 + others.index(each.name) % (len(MARKERS) - 1)],
                    color=colour,
                    markerfacecolor=colour if found else "none",
                    markersize=8 if found else 7,
                    zorder=3 if found else 2,
                )
                if found and math.isfinite(each.kl):
                    # Colours come again with the eighth run; numbers don't.
                    axes.annotate(
                        str(number + 1), (each.bpw, each.kl), xytext=(6, -3), textcoords="offset points", fontsize=9
                    )
        plain_log(axes, [each.kl for _, run in judged for each in run.judged])
        axes.set_xlabel("bits per weight, all that is stored")
        axes.set_ylabel(f"held-out KL [{NATS}]")
        grey = {"color": "#444444", "linestyle": "none", "markersize": 7}
        handles = [Line2D([], [], marker="o", label="found", **grey)]
        for number, name in enumerate(others):
            marker = MARKERS[1 + number % (len(MARKERS) - 1)]
            handles.append(Line2D([], [], marker=marker, markerfacecolor="none", label=_label(name), **grey))
        handles += [
            Patch(facecolor=COLOURS[number % len(COLOURS)], label=f"{number + 1}  {_label(run.name)}")
            for number, run in judged
        ]
        explain(figure, handles)
        return png(figure)


def _label(name: str) -> str:
    """Legends leave out names that begin with an underscore, and are no place for long ones."""
    name = " ".join(name.split())
    short = name if len(name) <= 34 else f"…{name[-33:]}"
    return f"\u200a{short}" if short.startswith("_") else short
