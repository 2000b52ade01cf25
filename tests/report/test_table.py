"""Numbers, Markdown and LaTeX of tables."""

import re

import pytest

from modulate.report.page import as_markdown, build_report
from modulate.report.table import Table, latex, markdown, p_value, plain, points, tex


def test_numbers_are_printed_alike_everywhere():
    assert (points(-0.031), points(0.0), points(None)) == ("−3.1", "+0.0", "–")
    assert [p_value(p) for p in (0.00004, 0.0123, 1.0, None)] == ["< 0.0001", "0.012", "1", "–"]


def test_a_row_of_another_width_is_a_mistake_in_the_code():
    with pytest.raises(AssertionError, match="t: 2 columns, but a row of 1"):
        Table("t", "T", ("a", "b"), (("x",),))


def test_markdown_keeps_its_columns_and_its_text(hostile_run):
    text = as_markdown(build_report([hostile_run]))
    assert "<script" not in text and "<img" not in text and r"\|" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        bars_per_line = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars_per_line) == 1
    assert plain("a_b _c_ | <d> `e`") == r"a_b \_c\_ \| &lt;d&gt; \`e\`"


def test_latex_is_escaped_and_balanced(hostile_run):
    for table in build_report([hostile_run]).tables:
        body = latex(table).partition("\n")[2]
        assert body.count(r"\begin{") == body.count(r"\end{")
        assert not re.search(r"(?<!\\)[%#_]", re.sub(r"\\label\{[^}]*\}", "", body))
        unescaped = body.replace(r"\{", "").replace(r"\}", "")
        assert unescaped.count("{") == unescaped.count("}")
    assert tex("50 % of {a_b} & −3 $") == r"50 \% of \{a\_b\} \& $-$3 \$"
    assert "\n{}[x] & 1" in latex(Table("t", "T", ("a", "b"), (("[x]", "1"),)))


def test_latex_numbers_tables_itself(hostile_run):
    table = Table("table2", "Ablations", ("a",), (), number=2)
    assert r"\caption{Ablations}" in latex(table)
    assert "**Table 2: ablations**" in markdown(table)
    for table in build_report([hostile_run]).tables:
        assert not re.search(r"\\caption\{Table", latex(table)), table.name


def test_headings_span_all_columns():
    table = Table("t", "T", ("a", "b"), ("group", ("x", "1")))
    assert r"\multicolumn{2}{l}{\emph{group}} \\" in latex(table) and r"x & 1 \\" in latex(table)
    assert "| **group** | |" in markdown(table)
