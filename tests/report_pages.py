"""Reads the page of a report as a browser would, by Python's own parser; and the runs that are reported on.

Holds: `Page`, `Figure`, `read_page`, `column`, `near`, `assert_alone`; `Runs`, `baseline_settings`, `best_of`.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from searches import Material

from evoray.settings import BaselineSettings

# Elements that have no end.
_VOID = {"meta", "link", "img", "br"}


@dataclass
class Figure:
    """A figure: its picture, and the table beside it.

    Attributes:
        png: of the picture.
        alt: what it says instead.
        head: of the table.
        rows: of the table.
        folded: the table lies inside details.
    """

    png: bytes = b""
    alt: str = ""
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    folded: bool = False


@dataclass
class Page:
    """A page.

    Attributes:
        figures: by their ids.
        tables: caption -> rows with the head first, of tables outside figures; the last one of a caption.
        tags: all that were opened, with their attributes.
        words: text of each kind of element, such as h1, title, p, dd.
        unclosed: elements that were never ended, or ended without a begin.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)
    unclosed: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page, self.open = Page(), list[str]()
        self.figure: Figure | None = None
        self.caption, self.rows = "", list[list[str]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.page.tags.append((tag, values))
        self.page.words.setdefault(tag, []).append("")
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "figure":
            self.figure = self.page.figures[values["id"]] = Figure()
        elif tag == "img" and self.figure is not None:
            self.figure.png = base64.b64decode(values["src"].removeprefix("data:image/png;base64,"), validate=True)
            self.figure.alt = values["alt"]
        elif tag == "table":
            self.caption, self.rows = "", []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.page.unclosed.append(tag)
        if tag == "figure":
            self.figure = None
        elif tag == "table" and self.figure is not None:
            self.figure.head, self.figure.rows = self.rows[0], self.rows[1:]
            self.figure.folded = "details" in self.open
        elif tag == "table":
            self.page.tables[self.caption] = self.rows

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.page.words[tag][-1] += data
        if "caption" in self.open:
            self.caption += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read_page(text: str) -> Page:
    """A page from its text."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    reader.page.unclosed += reader.open
    return reader.page


def baseline_settings(material: Material, run: Path, method: str, **changes: Any) -> BaselineSettings:
    given = material.settings(run, **changes).model_dump(exclude_unset=True)
    common = {key: given[key] for key in given.keys() & BaselineSettings.model_fields.keys()}
    return BaselineSettings(**common | {"method": method, "tokens": 256})


@dataclass(frozen=True)
class Runs:
    bits: Path
    """Levels of a store; generation 0 races for the start."""
    drops: Path
    """Levels of a store, and sublayers that go."""
    bare: Path
    """No store: sublayers that go."""
    baseline: Path
    material: Material
    deep: Material


def best_of(run: Path) -> dict[str, Any]:
    best: dict[str, Any] = json.loads((run / "best.json").read_text())
    return best


def near(cell: str, value: float) -> bool:
    """Whether a cell spells a value, to the digits it shows."""
    return math.isclose(float(cell.replace(",", "")), value, rel_tol=1e-5, abs_tol=1e-9)


def column(figure: Figure, name: str) -> list[str]:
    return [row[figure.head.index(name)] for row in figure.rows]


def assert_alone(page: Page) -> None:
    """The page asks nobody for anything, and is sound."""
    assert page.unclosed == []
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(tags)
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("srcset", "style")}
        for name in ("src", "href"):
            target = attributes.get(name, "data:")
            assert target.startswith("data:") or (tag == "a" and target.startswith("#")), target
    assert "url(" not in page.words["style"][0]
    assert "@import" not in page.words["style"][0]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes["href"][1:] in ids for tag, attributes in page.tags if tag == "a")
    policy = next(each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
