"""HTML by construction: text is escaped unless :func:`tag` made it. No scripts, no requests."""

import html
import re
from collections.abc import Iterable, Sequence

from modulate.report.table import Table


class Html(str):
    """Text that is markup already, so it is not escaped again."""

    __slots__ = ()


Child = str | None | Iterable["Child"]

_VOID = frozenset({"meta", "img", "br", "hr"})
"""Elements without content and without an end tag."""


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """Return one element; children are escaped unless they are :class:`Html`.

    Attributes are escaped always. Their names lose a trailing ``_`` (``class_``), and other ``_``
    become hyphens. None leaves an attribute out; True writes it without a value.
    """
    parts = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(attribute)
        elif value is not None:
            parts.append(f'{attribute}="{html.escape(str(value), quote=True)}"')
    start = f"<{' '.join(parts)}>"
    return Html(start if name in _VOID else f"{start}{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Html:
    """Return the children one after the other, plain text escaped."""
    parts = []
    for child in children:
        # Html is a str, so it has to be recognized first.
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(html.escape(child, quote=False))
        elif child is not None:
            parts.append(joined(child))
    return Html("".join(parts))


def breakable(text: str) -> Html:
    """Return ``text`` with break opportunities in long names, so that they do not widen tables."""
    parts = re.split(r"(?<=[_/.=])(?=\w{3})", text)
    return Html("<wbr>".join(html.escape(part, quote=False) for part in parts))


def table(content: Table, bold: Sequence[int] = ()) -> Html:
    """Return a table with caption, column and row headers, and notes below.

    ``bold``: indices of rows to highlight.
    """
    header = [
        tag("th", name, scope="col", class_=_cell_class(content, column))
        for column, name in enumerate(content.columns)
    ]
    rows = [_row(content, row, i in bold) for i, row in enumerate(content.rows)]
    body = tag(
        "table",
        tag("caption", content.heading),
        tag("thead", tag("tr", *header)),
        tag("tbody", *rows),
    )
    notes = None
    if content.notes:
        notes = tag("ul", *(tag("li", note) for note in content.notes), class_="notes")
    return tag(
        "div",
        # Wide tables scroll inside their own box, which must be reachable by keyboard.
        tag("div", body, class_="wide", tabindex=0, role="region", aria_label=content.heading),
        notes,
        class_="table",
        id=content.name,
    )


def _cell_class(content: Table, column: int) -> str | None:
    return "n" if column >= content.text_columns else None


def _row(content: Table, row: tuple[str, ...] | str, highlighted: bool) -> Html:
    if isinstance(row, str):
        heading = tag("th", row, colspan=len(content.columns), scope="colgroup")
        return tag("tr", heading, class_="group")
    cells = [tag("th", breakable(row[0]), scope="row")]
    for column, text in enumerate(row[1:], 1):
        class_ = _cell_class(content, column)
        cells.append(tag("td", text if class_ else breakable(text), class_=class_))
    return tag("tr", *cells, class_="own" if highlighted else None)


def figure(picture: Html, caption: Child) -> Html:
    """Return a picture with its caption."""
    return tag("figure", tag("div", picture, class_="wide"), tag("figcaption", caption))


def page(title: str, *children: Child) -> str:
    """Return one self-contained page.

    Its content security policy forbids scripts and every request, so opening a page on a stranger's
    run is safe.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *children)), lang='en')}\n"


STYLE = """
:root {
  color-scheme: light dark; --ink: #1b1b1b; --soft: #555; --paper: #fff; --line: #c9c9c9;
  --band: #f3f4f6; --own: #e8f0fb; --warn: #8a3b00; --s0: #0b63b0; --s1: #c2500a; --s2: #12805c;
  --s3: #7a7a7a; --s4: #8d3f97;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8e8e8; --soft: #b3b3b3; --paper: #16181b; --line: #454950; --band: #202429;
    --own: #1d2c40; --warn: #f2a65a; --s0: #6db3f2; --s1: #f2955c; --s2: #5fcfa6; --s3: #a5a5a5;
    --s4: #cf9bd8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 {
  font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .6rem;
  border-top: 2px solid var(--line);
}
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p, li { max-width: 52rem; }
p { margin: .5rem 0; }
a { color: var(--s0); }
code { font-size: .9em; overflow-wrap: anywhere; }
.soft, figcaption, .notes { color: var(--soft); font-size: .88rem; }
.warn { color: var(--warn); }
.wide { overflow-x: auto; }
table {
  border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums;
  margin: .3rem 0;
}
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td {
  padding: .22rem .45rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 5.5rem; }
td { overflow-wrap: break-word; }
.n { text-align: right; white-space: nowrap; }
thead .n { white-space: normal; }
.group th { background: var(--band); font-weight: 600; }
.own th, .own td { background: var(--own); }
.notes { margin: .3rem 0 1rem; padding-left: 1.1rem; }
figure { margin: 1rem 0; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.small text { font-size: 11px; }
.grid { stroke: var(--line); }
.whisker { stroke: var(--ink); stroke-width: 1.2; }
.stage { stroke: var(--soft); stroke-dasharray: 3 3; }
.f0 { fill: var(--s0); }
.f1 { fill: var(--s1); }
.f2 { fill: var(--s2); }
.f3 { fill: var(--s3); }
.f4 { fill: var(--s4); }
.l0 { stroke: var(--s0); }
.l1 { stroke: var(--s1); }
.l2 { stroke: var(--s2); }
.l3 { stroke: var(--s3); }
.l4 { stroke: var(--s4); }
polyline { fill: none; stroke-width: 1.6; }
.panels, .steps { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
.panels > * { flex: 0 1 20rem; }
.sample {
  border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem 1rem; margin: 1rem 0;
}
.sample h4 { margin: 0 0 .3rem; font-size: 1rem; }
.steps figure { margin: 0; width: 10.5rem; }
.steps figcaption { font-size: .8rem; }
.strip { margin: .7rem 0; }
.strip > p { margin: .2rem 0; font-size: .88rem; }
nav ul { columns: 2; padding-left: 1.1rem; margin: .4rem 0; font-size: .95rem; }
.yes { font-weight: 700; }
@media (max-width: 640px) { nav ul { columns: 1; } body { padding: 1rem .7rem 3rem; } }
@media print {
  @page { size: A4; margin: 14mm 12mm; }
  :root {
    --ink: #000; --soft: #333; --paper: #fff; --line: #aaa; --band: #eee; --own: #e8f0fb;
    --warn: #7a3300; --s0: #0b63b0; --s1: #c2500a; --s2: #12805c; --s3: #7a7a7a; --s4: #8d3f97;
  }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 9.5pt; }
  body { font-size: 1rem; max-width: none; padding: 0; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: .8rem; }
  th, td { padding: .12rem .35rem; }
  h2, h3, h4, caption { break-after: avoid; }
  h2.new { break-before: page; }
  tr, figure, .strip, .panels > * { break-inside: avoid; }
  figure.curves { break-inside: auto; }
  tbody th { min-width: 4rem; }
  .panels > * { flex-basis: 30%; }
  .sample { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: .5rem 0; }
  thead { display: table-header-group; }
  a { color: inherit; text-decoration: none; }
}
"""
"""The page's style. ``f0``–``f4`` fill bars and ``l0``–``l4`` stroke curves with series colors."""
