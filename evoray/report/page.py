"""The page of a report: one HTML file that needs nothing else, neither network nor scripts.

All text of users is escaped. A policy in its head forbids what the page does without.

Holds: `page`.
"""

import base64
import struct
from collections.abc import Sequence
from html import escape
from typing import Any

from evoray.report.drawing import DPI
from evoray.report.numbers import RunNumbers
from evoray.report.pictures import Picture, judged_head, judged_row
from evoray.report.spelled import duration, exact, flat, whole
from evoray.report.style import STYLE
from evoray.sizes import human_bytes

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_SHOWN_DPI = 100
"""CSS pixels of an inch of a figure: its letters of 10 points are then about as large as those of the page."""

_WIDE = 640
"""CSS pixels from which a figure has a row of its own."""

_LONG = 18
"""Letters from which a fact takes two columns: a phone shows two beside each other."""

_TEXT = ' class="text"'


def page(runs: Sequence[RunNumbers], pictures: Sequence[Sequence[Picture]], beside: Sequence[Picture] = ()) -> str:
    """The whole page.

    Args:
        runs: at least one.
        pictures: of each run.
        beside: that compare several.
    """
    several = len(runs) > 1
    title = f"{len(runs)} runs side by side" if several else runs[0].name
    parts = [_comparison(runs, beside)] if several else []
    for place, (run, own) in enumerate(zip(runs, pictures, strict=True), start=1):
        parts.append(_run(run, own, place if several else None))
    links = "".join(f'<li><a href="#run-{place}">{escape(run.name)}</a></li>' for place, run in enumerate(runs, 1))
    nav = f'<nav aria-label="Runs"><ul>{links}</ul></nav>' if several else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)} – evoray report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><p class="soft">evoray report</p><h1>{escape(title)}</h1>{nav}</header>\n'
        f"<main>\n{''.join(parts)}</main>\n"
        "<footer><p>Losses are in nats per token. bits are code bits per compressible weight; bpw counts all that is "
        "stored for them; size is the whole checkpoint.</p></footer>\n</body>\n</html>\n"
    )


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table in a box of its own that scrolls, so that the page need not. The first column heads its rows."""
    texts = [_TEXT if column < words else "" for column in range(len(head))]
    heads = "".join(f'<th scope="col"{text}>{escape(name)}</th>' for name, text in zip(head, texts, strict=True))
    body = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [f"<td{text}>{escape(cell)}</td>" for cell, text in zip(row[1:], texts[1:], strict=True)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _words(caption: str, values: dict[str, Any]) -> str:
    """A table of names and texts, which wrap."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(flat(value))}</td></tr>' for name, value in values.items()
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="words">'
        f"<caption><span>{escape(caption)}</span></caption><tbody>{rows}</tbody></table></div>"
    )


def _details(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _figures(pictures: Sequence[Picture], prefix: str) -> str:
    if not pictures:
        return ""
    shown = []
    for picture in pictures:
        width, height = (round(side * _SHOWN_DPI / DPI) for side in struct.unpack(">II", picture.png[16:24]))
        data = base64.b64encode(picture.png).decode("ascii")
        form = "wide" if width > _WIDE else "plain"
        shown.append(
            f'<figure id="{prefix}{picture.key}" class="{form}">'
            f"<figcaption><b>{escape(picture.title)}</b> {escape(picture.about)}</figcaption>"
            f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
            f'alt="{escape(picture.title)}. {escape(picture.about)} The numbers are in the table below.">'
            + _details("the numbers", _table(picture.title, picture.head, picture.rows, picture.words))
            + "</figure>\n"
        )
    return f'<div class="figures">\n{"".join(shown)}</div>\n'


def _facts(rows: dict[str, str]) -> str:
    inside = ""
    for name, value in rows.items():
        form = "long" if len(value) > _LONG else "short"
        inside += f'<div class="{form}"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
    return f'<dl class="facts">{inside}</dl>\n'


def _run(run: RunNumbers, pictures: Sequence[Picture], place: int | None) -> str:
    head = f"<h2>{escape(run.name)}</h2>" if place is not None else ""
    prefix = f"run-{place}" if place is not None else "run"
    facts = {"what": "search" if run.baseline is None else "baseline", "state": run.state}
    costs = run.costs
    if costs:
        facts |= {"bits": exact(costs["bits"]), "bpw": exact(costs["bpw"]), "size": human_bytes(costs["size"])}
        facts |= {"sparsity": exact(costs["sparsity"])} if costs.get("sparsity") else {}
    known = run.facts
    if "candidate_tokens" in known:
        facts["candidate tokens"] = whole(known["candidate_tokens"])
    if "seconds" in known:
        facts["time"] = duration(known["seconds"])
    if "tokens_per_second" in known:
        facts["candidate tokens a second"] = whole(round(known["tokens_per_second"]))
    for name in ("accepted", "workers_lost", "seed", "model", "text"):
        if name in known:
            facts[name.replace("_", " ")] = flat(known[name])
    told = "".join(f'<p class="doubt">Note: {escape(note)}.</p>' for note in run.notes)
    if known.get("set_aside"):
        told += f'<p class="doubt">Set aside because they kill workers: {escape("; ".join(known["set_aside"]))}.</p>'
    return (
        f'<section id="{prefix}">{head}{_facts(facts)}{told}{_certificate(run)}'
        f"{_figures(pictures, prefix + '-')}{_provenance(run)}</section>\n"
    )


def _certificate(run: RunNumbers) -> str:
    if not run.judged:
        return '<p class="soft">Not judged on held-out text yet: the same command goes on with the run.</p>\n'
    caption = f"judged on {whole(run.held_out['tokens'])} held-out tokens of {run.held_out['data']}"
    sparse = any(each.sparsity for each in run.judged)
    rows = [[each.name, *judged_row(each, sparse=sparse)] for each in run.judged]
    doubts = "".join(f'<p class="doubt">Note: {escape(doubt)}.</p>' for doubt in run.doubts)
    return (
        f"<h3>What was found, and what it has to beat</h3>{_table(caption, ['', *judged_head(sparse)], rows)}{doubts}\n"
    )


def _provenance(run: RunNumbers) -> str:
    known = {"run": run.place, **{key: run.facts[key] for key in ("model", "revision", "store") if key in run.facts}}
    command = (
        f"<p>It is made again by <code>{escape(run.facts['command'])}</code></p>" if "command" in run.facts else ""
    )
    tables = [
        _words("place", known),
        _words("digests", run.digests),
        _words("versions", run.versions),
        _words("device", run.device),
    ]
    settings = _details("all settings", _words("settings, as resolved", run.settings)) if run.settings else ""
    return (
        f"<h3>Where it comes from</h3>{command}"
        + _details("digests, versions, device", "".join(f"{table}<br>" for table in tables))
        + settings
    )


def _comparison(runs: Sequence[RunNumbers], beside: Sequence[Picture]) -> str:
    rows, sparse = [], any(run.costs.get("sparsity") for run in runs)
    for run in runs:
        found, known = run.found, run.facts
        rows.append(
            [
                run.name,
                run.state,
                whole(known.get("candidate_tokens")),
                duration(known.get("seconds")),
                *(judged_row(found, sparse=sparse)[:-1] if found is not None else _unjudged(run, sparse)),
            ]
        )
    head = ["run", "state", "candidate tokens", "time", *judged_head(sparse)[:-1]]
    notes = []
    for key, what in (("judge_text", "judged on different texts"), ("model", "of different models")):
        if len({run.digests.get(key) for run in runs if run.judged}) > 1:
            notes.append(f'<p class="doubt">Note: these runs are {what}; their losses do not compare.</p>')
    return (
        f'<section id="side-by-side">{_table("what each run found", head, rows, words=2)}{"".join(notes)}\n'
        f"{_figures(beside, 'all-')}</section>\n"
    )


def _unjudged(run: RunNumbers, sparse: bool) -> list[str]:
    """What a table of judged runs says of one that is not."""
    costs = run.costs
    if not costs:
        return ["–"] * (len(judged_head(sparse)) - 1)
    priced = [exact(costs["bits"]), exact(costs["bpw"]), human_bytes(costs["size"])]
    return [*priced, *([exact(costs["sparsity"])] if sparse else []), "–", "–"]
