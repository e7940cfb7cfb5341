"""How all figures of a report look: one hand, for eyes that see colours differently, on white.

Needs matplotlib (the extra `plots`).

Holds: `looks`, `blank`, `explain`, `png`; `COLOURS`, `MARKERS`, `line_style`, `level_colours`, `ink_on`; `plain_log`,
`short_count`.
"""

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import matplotlib
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from evoray.configuration import BASE, DROPPED, KEPT

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's, without the yellow that vanishes on white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":")

WIDTH = 5.8
"""Inches. Letters of 10 points are then still read where a phone shows the figure 330 pixels wide."""

DPI = 160

_LOOKS = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "legend.frameon": False,
    "legend.fontsize": 9,
    # Names of runs and layers are text, whatever dollars stand in them.
    "text.parse_math": False,
}

LOG_SPAN = 5.0
"""Largest over smallest value from which on an axis counts in factors."""


def looks() -> AbstractContextManager[None]:
    """A context in which figures are made and drawn; settings of the user's own are left out, and left alone."""
    return matplotlib.style.context(["default", _LOOKS])


def blank(height: float, width: float = WIDTH) -> Figure:
    """An empty white figure; height and width in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    # Wider than usual, because marks and numbers on the last tick stick out of the axes.
    figure.set_layout_engine("constrained", w_pad=0.09, h_pad=0.06)
    return figure


def explain(figure: Figure, handles: Sequence[Artist], *, above: bool = False, title: str | None = None) -> None:
    """Adds a legend outside the axes, in as many columns as fit, and makes the figure higher by it."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches()
    place = "outside upper center" if above else "outside lower center"
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc=place, ncols=columns, title=title)
        taken = legend.get_window_extent(renderer)
        if taken.width / figure.dpi <= width - 0.1 or columns == 1:
            figure.set_size_inches(width, height + taken.height / figure.dpi)
            return
        legend.remove()


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # A name with letters that the font lacks gets boxes; the page beside it has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def line_style(number: int) -> dict[str, object]:
    """Colour, marker and dashes of the so-manieth line; 252 differ."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def level_colours(levels: Sequence[str]) -> dict[str, str]:
    """A colour for each level: from dark for the cheapest to light for the dearest, by a map that all eyes order alike.

    What is dropped is white, what stays as it is in the base model a light grey.
    """
    searched = [level for level in levels if level not in (BASE, DROPPED, KEPT)]
    shades = matplotlib.colormaps["viridis"]
    steps = max(len(searched) - 1, 1)
    colours = {DROPPED: "#ffffff", BASE: "#d9d9d9", KEPT: "#d9d9d9"}
    for number, level in enumerate(searched):
        colours[level] = matplotlib.colors.to_hex(shades(0.08 + 0.87 * number / steps))
    return {level: colours[level] for level in levels}


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour (WCAG's relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"


def short_count(value: float) -> str:
    """`1.2M`: tokens and bytes on an axis."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def plain_log(axes: Axes, values: Iterable[float], *, always: bool = False) -> None:
    """Lets the y axis count in factors, with numbers as people write them, where the values span enough."""
    seen = [value for value in values if math.isfinite(value)]
    if not seen or min(seen) <= 0 or (max(seen) < LOG_SPAN * min(seen) and not always):
        return
    axes.set_yscale("log")
    subs = (1.0, 2.0, 5.0) if max(seen) < 1000 * min(seen) else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
