"""One table for all formats, its Markdown and LaTeX, and the format of printed numbers.

:mod:`modulate.report.html` writes tables as HTML.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "–"
_MINUS = "−"


@dataclass(frozen=True)
class Table:
    """Rows of unescaped text cells.

    A row that is a single text is a heading over the rows below it. The first column names its row.
    ``text_columns``: number of columns, from the left, that hold words; the others hold numbers.
    ``number``: the table's number in the report, None for one without; never part of ``title``.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...] | str, ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 1
    number: int | None = None

    @property
    def heading(self) -> str:
        """The title after the number, where nothing else counts tables: ``Table 2: ablations``."""
        if self.number is None:
            return self.title
        return f"Table {self.number}: {self.title[:1].lower()}{self.title[1:]}"

    def __post_init__(self) -> None:
        width = len(self.columns)
        for row in self.rows:
            assert isinstance(row, str) or len(row) == width, (
                f"{self.name}: {width} columns, but a row of {len(row)}: {row}"
            )


# --- numbers


def percent(share: float | None) -> str:
    """Return a share in percent, without the percent sign: ``0.9559`` → ``95.6``."""
    return NONE if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points, signed."""
    return NONE if difference is None else f"{100 * difference:+.1f}".replace("-", _MINUS)


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """Return an interval in percent, or signed points: ``[94.2, 96.9]``; a dash for None."""
    if low is None or high is None:
        return NONE
    form = points if signed else percent
    return f"[{form(low)}, {form(high)}]"


def p_value(p: float | None) -> str:
    """Return a p-value with two digits, or a bound below 0.0001."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


# --- Markdown


def markdown(table: Table) -> str:
    """Return the table as GitHub's Markdown, with title and notes."""
    width = len(table.columns)
    text_columns = table.text_columns
    rule = [" --- "] * text_columns + [" ---: "] * (width - text_columns)
    lines = [
        f"**{plain(table.heading)}**",
        "",
        _markdown_row(table.columns),
        "|" + "|".join(rule) + "|",
    ]
    for row in table.rows:
        if isinstance(row, str):
            lines.append(f"| **{plain(row)}** |" + " |" * (width - 1))
        else:
            lines.append(_markdown_row(row))
    for note in table.notes:
        lines += ["", plain(note)]
    return "\n".join([*lines, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def plain(text: str) -> str:
    """Return ``text`` on one line, escaped so that Markdown shows it literally."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is literal already; escaping it would only clutter the source.
    return re.sub(r"[\\`*\[\]|]|(?<!\w)_|_(?!\w)", lambda found: "\\" + found.group(), flat)


# --- LaTeX

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "→": r"$\rightarrow$",
    "α": r"$\alpha$",
    "Δ": r"$\Delta$",
    "‖": r"$\Vert$",
}


def tex(text: str) -> str:
    """Return ``text`` on one line, with LaTeX special characters escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def latex(table: Table) -> str:
    """Return the table as a LaTeX float; it needs the package booktabs.

    LaTeX numbers floats itself, so the caption is the bare title.
    """
    columns = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}. Written by `modulate report`.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(tex, table.columns)) + r" \\",
            r"\midrule",
            *_latex_rows(table),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {tex(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def _latex_rows(table: Table) -> list[str]:
    lines = []
    for i, row in enumerate(table.rows):
        if isinstance(row, str):
            if i:
                lines.append(r"\midrule")
            heading = rf"\emph{{{tex(row)}}}"
            lines.append(rf"\multicolumn{{{len(table.columns)}}}{{l}}{{{heading}}} \\")
        else:
            # The \\ of the row above would read a leading bracket as its optional argument.
            guard = "{}" if row[0].startswith("[") else ""
            lines.append(guard + " & ".join(map(tex, row)) + r" \\")
    return lines
