"""What the figures of a report draw, looked at before they become files, and the files' colours."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from evoray.report import figures
from evoray.report.allocation import Allocation, allocation_of, goes_with, ordered_levels, place_of
from evoray.report.drawing import COLOURS, ink_on, level_colours, short_count
from evoray.report.numbers import Generation, Judged, LevelError, Part, Rung, RunNumbers

Drawn = Callable[..., Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Calls a function of `figures` and gives the figure that it would have made a file of."""
    made: list[Figure] = []
    png = figures.png

    def kept(figure: Figure) -> bytes:
        made.append(figure)
        return png(figure)

    monkeypatch.setattr(figures, "png", kept)

    def draw(function: Callable[..., bytes], *arguments: object) -> Figure:
        data = function(*arguments)
        pixels = imread(io.BytesIO(data))
        # White to the rim: nothing is cut off, and the page's colour does not shine through.
        rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (rim == 1.0).all()
        return made[-1]

    return draw


def generation(number: int, fitness: float, parent: float | None, *, accepted: bool) -> Generation:
    busy = (30.0, 30.0 / max(1, number))
    spent = (1000 * number, 30.0 * number)
    return Generation(number, *spent, fitness, parent, accepted, 8, 1000, 30.0, 0, busy, 3.0, 3.25, 99)


GENERATIONS = (
    generation(1, 0.5, 0.6, accepted=True),
    generation(2, math.inf, None, accepted=False),
    generation(3, 0.02, 0.3, accepted=False),
    generation(4, 0.015, 0.02, accepted=True),
)


def run_of(name: str, generations: tuple[Generation, ...] = (), judged: tuple[Judged, ...] = ()) -> RunNumbers:
    return RunNumbers(
        name, name, None, "", "kl", generations, (), None, (), (), (), judged, {}, (), {}, {}, {}, {}, {}, {}, ()
    )


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return [(x, y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if math.isfinite(y)]


def test_loss_against_tokens_and_time(drawn: Drawn) -> None:
    above, below = drawn(figures.loss_figure, GENERATIONS, "kl").axes
    assert points(above, "a child won") == [(1000, 0.5), (4000, 0.015)]
    assert points(above, "the parent stayed") == [(3000, 0.02)]
    assert points(above, "parent on the same tokens") == [(1000, 0.6), (3000, 0.3), (4000, 0.02)]
    assert points(below, "a child won") == [(30, 0.5), (120, 0.015)]
    assert below.get_xlabel() == "seconds"
    assert above.get_yscale() == below.get_yscale() == "log"
    assert above.get_ylabel() == "KL [nats/token]"


@pytest.mark.parametrize(("factor", "unit", "last"), [(2, "minutes", 4.0), (100, "hours", 120 * 100 / 3600)])
def test_long_searches_are_drawn_in_larger_units(drawn: Drawn, factor: int, unit: str, last: float) -> None:
    rows = [replace(each, total_seconds=each.total_seconds * factor) for each in GENERATIONS]
    below = drawn(figures.loss_figure, rows, "kl").axes[1]
    assert (below.get_xlabel(), points(below, "a child won")[-1][0]) == (unit, pytest.approx(last))


def test_losses_that_hardly_differ_or_are_not_positive_stay_linear(drawn: Drawn) -> None:
    for losses in ((1.0, 1.1), (-0.001, 0.5), (math.nan, math.nan)):
        rows = [generation(number, loss, None, accepted=True) for number, loss in enumerate(losses)]
        assert drawn(figures.loss_figure, rows, None).axes[0].get_yscale() == "linear"


def cells(figure: Figure, allocation: Allocation) -> dict[tuple[str, str], tuple[str, str]]:
    """(row's label, column's label) -> text inside and colour, of all panels."""
    found = {}
    for axes in figure.axes:
        columns, rows = [
            [tick.get_text() for tick in ticks] for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
        ]
        boxes = {
            (round(box.get_x() + 0.5), round(box.get_y() + 0.5)): to_hex(box.get_facecolor())
            for box in axes.patches
            if isinstance(box, Rectangle)
        }
        for text in axes.texts:
            x, y = (round(place) for place in text.get_position())
            found[rows[y], columns[x]] = (text.get_text(), boxes[x, y])
    return found


@pytest.mark.parametrize(("blocks", "kinds", "panels"), [(3, 4, 1), (83, 2, 3), (2, 30, 1)])
def test_every_site_has_its_cell(drawn: Drawn, blocks: int, kinds: int, panels: int) -> None:
    levels = ("2", "4x0.5", "0.5", "base", "3")
    configuration = {
        f"model.layers.{block}.m{kind}.p": levels[(block + 3 * kind) % 5]
        for block in range(blocks)
        for kind in range(kinds)
    }
    configuration["model.layers.1"] = "dropped"
    allocation = allocation_of(configuration)
    figure = drawn(figures.allocation_figure, allocation)
    assert len(figure.axes) == panels
    colours = level_colours(allocation.levels)
    turned = kinds > figures.MOST_COLUMNS
    expected = {}
    for block in range(blocks):
        for kind in range(kinds):
            level = "dropped" if block == 1 else configuration[f"model.layers.{block}.m{kind}.p"]
            place = (f"m{kind}.p", str(block)) if turned else (str(block), f"m{kind}.p")
            expected[place] = ("×" if level == "dropped" else level, colours[level])
    assert cells(figure, allocation) == expected
    (legend,) = figure.legends
    counts = {level: sum(cell.level == level for cell in allocation.cells) for level in allocation.levels}
    assert [text.get_text() for text in legend.texts] == [f"{level} ({count})" for level, count in counts.items()]


def luminance(colour: str) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("count", range(1, 10))
def test_levels_differ_without_colour_and_their_names_are_read(count: int) -> None:
    levels = [str(level) for level in range(count)]
    colours = level_colours(["dropped", *levels, "base"])
    greys = [luminance(colours[level]) for level in levels]
    assert all(lower < higher for lower, higher in pairwise(greys))
    for colour in colours.values():
        light, dark = sorted((luminance(colour), luminance(ink_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def test_bytes(drawn: Drawn) -> None:
    parts = [Part("q", 10, 40), Part("records", 1, 0), Part("embeddings", 30, 30)]
    (axes,) = drawn(figures.bytes_figure, parts).axes
    base, held = axes.containers
    assert [bar.get_width() for bar in base] == [40, 0, 30]
    assert [bar.get_width() for bar in held] == [10, 1, 30]
    alone = drawn(figures.bytes_figure, [Part("layers", 10, None), Part("embeddings", 30, None)]).axes[0]
    assert [bar.get_width() for bar in alone.containers[0]] == [10, 30]
    assert len(alone.containers) == 1


def test_errors(drawn: Drawn) -> None:
    errors = [
        LevelError("q", "2", 2, 0.5, 0.1, 0.9),
        LevelError("q", "4", 2, 0.01, 0, 1),
        LevelError("$o$", "4", 1, 0.02, 0, 1),
    ]
    figure = drawn(figures.errors_figure, errors, ["2", "4"])
    (axes,) = figure.axes
    assert points(axes, "q") == [(0, 0.5), (1, 0.01)]
    assert points(axes, "$o$") == [(1, 0.02)]
    assert [text.get_text() for text in figure.legends[0].texts] == ["q", "$o$"]


def test_funnel_leaves_the_race_for_the_start_out(drawn: Drawn) -> None:
    rungs = [Rung(0, 0, 99, 7), Rung(1, 0, 8, 64), Rung(1, 1, 3, 256), Rung(2, 0, 6, 64)]
    figure = drawn(figures.funnel_figure, rungs)
    assert [[bar.get_width() for bar in axes.containers[0]] for axes in figure.axes] == [[7, 3], [64, 256], [448, 768]]
    assert figures.funnel_means(rungs[:1]) == [(0, 99, 7, 693)]


def judged(name: str, bpw: float, kl: float) -> Judged:
    return Judged(name, bpw, bpw, 100, 0.0, kl, 9.0, 0.0, 0.0)


def test_several_runs(drawn: Drawn) -> None:
    runs = [
        run_of("_one", GENERATIONS, (judged("found", 3, 0.1), judged("uniform", 3, 0.2))),
        run_of("dp", (), (judged("found", 3, 0.15), judged("start", 3, math.inf))),
        run_of("$two$", GENERATIONS[2:]),
    ]
    figure = drawn(figures.losses_figure, runs)
    lines = figure.axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1000, 2000, 3000, 4000], [3000, 4000]]
    assert [text.get_text().strip("\u200a") for text in figure.legends[0].texts] == ["_one", "$two$"]
    figure = drawn(figures.sizes_figure, runs)
    shown = {
        (line.get_xdata()[0], line.get_ydata()[0], line.get_color(), line.get_markerfacecolor() != "none")
        for line in figure.axes[0].lines
        if math.isfinite(line.get_ydata()[0])
    }
    assert shown == {(3, 0.1, COLOURS[0], True), (3, 0.2, COLOURS[0], False), (3, 0.15, COLOURS[1], True)}
    texts = [text.get_text().replace("\u200a", "") for text in figure.legends[0].texts]
    assert texts == ["found", "uniform", "start", "1  _one", "2  dp"]


def test_long_names_are_not_cut_off(drawn: Drawn) -> None:
    name = "a/very/long/name-of-some-folder/" * 3
    drawn(figures.losses_figure, [run_of(name + str(number), GENERATIONS) for number in range(9)])
    found = (judged("found", 3, 0.1), judged(name, 3, 0.2))
    drawn(figures.sizes_figure, [run_of(name + str(number), (), found) for number in range(9)])
    kind = "block_sparse_moe.experts.{}.shared_projection_of_the_gate"
    drawn(figures.errors_figure, [LevelError(kind.format(each), "2", 1, 0.1, 0, 1) for each in range(9)], ["2"])
    drawn(figures.bytes_figure, [Part(kind.format(each), 10**9, 10**10) for each in range(9)])
    drawn(figures.allocation_figure, allocation_of({f"h.{block}.{kind.format(1)}": "2" for block in range(3)}))


def test_settings_of_the_user_are_left_alone(drawn: Drawn) -> None:
    with matplotlib.rc_context({"font.size": 3, "axes.facecolor": "red"}):
        figure = drawn(figures.bytes_figure, [Part("q", 10, 40)])
        assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"
        assert matplotlib.rcParams["font.size"] == 3


def test_places_of_sites() -> None:
    assert place_of("model.layers.3.mlp.up_proj") == (3, "mlp.up_proj")
    assert place_of("gpt_neox.layers.12.mlp.experts.7.up") == (12, "mlp.experts.7.up")
    assert place_of("model.layers.3") == (3, "block")
    assert place_of("lm_head") == (0, "lm_head")


def test_what_goes_with_what() -> None:
    assert goes_with("model.layers.3.mlp.up", "model.layers.3.mlp")
    assert goes_with("model.layers.3.mlp.up", "model.layers.3")
    assert goes_with("model.layers.3.fc2", "model.layers.3.fc1+fc2")
    assert not goes_with("model.layers.30.mlp.up", "model.layers.3")
    assert not goes_with("model.layers.3.mlp2.up", "model.layers.3.mlp")


def test_order_of_levels() -> None:
    assert ordered_levels(["base", "10", "dropped", "2", "kept", "x", "2"], None) == (
        "dropped", "2", "10", "x", "base", "kept",
    )  # fmt: skip


def test_short_counts() -> None:
    assert [short_count(value) for value in (0, 7, 999, 1000, 8192, 1.5e6, 3e9, 2e12)] == [
        "0", "7", "999", "1k", "8.19k", "1.5M", "3G", "2T",
    ]  # fmt: skip


def test_busy_workers_are_shares_of_the_time(drawn: Drawn) -> None:
    assert figures.busy_shares(GENERATIONS[3]) == ((1 + 1 / 4) / 2, 1 / 4)
    every, least = drawn(figures.busy_figure, GENERATIONS).axes[0].lines
    assert every.get_ydata() == pytest.approx([50 * (1 + 1 / number) for number in (1, 2, 3, 4)])
    assert least.get_ydata() == pytest.approx([100 / number for number in (1, 2, 3, 4)])
    assert least.get_xdata().tolist() == [1, 2, 3, 4]
