"""A table once, written as Markdown or LaTeX (as HTML in :mod:`modulate.report.html`); numbers as
they are printed in all of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "–"
_MINUS = "−"


@dataclass(frozen=True)
class Table:
    """Rows of texts, none of them escaped.

    A row that is a text is a heading over those that follow it.

    ``text_columns``: how many columns, from the left, hold words; the others hold numbers. The
    first column names its row.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...] | str, ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 1

    def __post_init__(self) -> None:
        wrong = [
            row for row in self.rows if not isinstance(row, str) and len(row) != len(self.columns)
        ]
        assert not wrong, (
            f"{self.name}: {len(self.columns)} columns, but a row of {len(wrong[0])}: {wrong[0]}"
        )


# --- numbers


def percent(share: float | None) -> str:
    """Return a share as per cent, without the sign: ``0.9559`` → ``95.6``."""
    return NONE if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """Return a difference of shares in points, signed."""
    return NONE if difference is None else f"{100 * difference:+.1f}".replace("-", _MINUS)


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """Return an interval in per cent or points: ``[94.2, 96.9]``; a dash where there is none."""
    form = points if signed else percent
    return NONE if low is None or high is None else f"[{form(low)}, {form(high)}]"


def p_value(p: float | None) -> str:
    """Return a p-value with two digits; tiny ones as a bound."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


# --- Markdown


def markdown(table: Table) -> str:
    """Return the table as GitHub's Markdown, with title and notes."""
    lines = [f"**{plain(table.title)}**", "", _line(table.columns)]
    lines.append(
        "|"
        + "|".join(
            " --- " if i < table.text_columns else " ---: " for i in range(len(table.columns))
        )
        + "|"
    )
    for row in table.rows:
        lines.append(
            f"| **{plain(row)}** |" + " |" * (len(table.columns) - 1)
            if isinstance(row, str)
            else _line(row)
        )
    for note in table.notes:
        lines += ["", plain(note)]
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def plain(text: str) -> str:
    """Return ``text`` so that Markdown, and the HTML that it may hold, show it as it is, on one
    line.
    """
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
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
    """Return ``text`` with everything escaped that LaTeX would read as a command."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def latex(table: Table) -> str:
    """Return the table as a LaTeX float; it needs the package booktabs."""
    columns = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    body = []
    for i, row in enumerate(table.rows):
        if isinstance(row, str):
            body += [
                *([r"\midrule"] if i else []),
                rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\emph{{{tex(row)}}}}} \\",
            ]
        else:
            guard = (
                "{}" if row[0].startswith("[") else ""
            )  # \\ of the row before would take a bracket for its own
            body.append(guard + " & ".join(tex(cell) for cell in row) + r" \\")
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}. Written by `modulate report`.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(tex(c) for c in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {tex(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )
