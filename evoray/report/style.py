"""How the page of a report looks: on a desk, on a phone, at night, and on paper.

Holds: `STYLE`.

No font, script or picture is fetched. Figures are white in the dark, too: they are PNG files that people pass on.
Closed details are opened in print by `::details-content`; browsers that don't know it print what is open.
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --tint: #f6f8fa;
  --warn: #9a3412; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e6e9ee; --soft: #9da7b3; --line: #343b45; --tint: #1d2229; --warn: #fdba74;
    --link: #79b8ff; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 78rem; margin: 0 auto; padding: 0 clamp(1rem, 3vw, 2.5rem); }
header { padding-top: 1.5rem; }
footer { padding-bottom: 2rem; color: var(--soft); font-size: .875rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0; max-width: 70ch; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
nav a { display: inline-block; padding: .25rem 0; }
.soft { color: var(--soft); }
.doubt { color: var(--warn); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.5rem), 1fr)); gap: .75rem 1.5rem;
  margin: 1rem 0; }
dl.facts div { min-width: 0; }
dl.facts .long { grid-column: span 2; }
dt { color: var(--soft); font-size: .8125rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem;
  margin: 1.5rem 0; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .375rem; }
figcaption { margin: 0 0 .5rem; }
figcaption b { display: block; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .35rem 0; color: var(--link); }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: .375rem; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; padding: .5rem .625rem; color: var(--soft); }
caption span { display: block; max-width: calc(100vw - 3.5rem); overflow-wrap: anywhere; }
th, td { padding: .3rem .625rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { font-weight: 600; }
thead th { background: var(--tint); border-top: 0; }
th:first-child, .text { text-align: left; }
table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
table.words th { vertical-align: top; }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #f2f2f2; --warn: #7a2a0c;
    --link: #000; }
  body { font-size: 9.5pt; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  nav { display: none; }
  .figures { display: block; }
  figure { margin: 0 0 1rem; }
  figure img { break-inside: avoid; max-height: 13cm; width: auto; }
  figcaption { break-inside: avoid; }
  figcaption, h2, h3, summary, caption { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; block-size: auto; }
  summary { list-style: none; color: var(--soft); }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7pt; }
  th, td { padding: .1rem .3rem; }
  th { white-space: normal; overflow-wrap: anywhere; }
  tr { break-inside: avoid; }
}
"""
