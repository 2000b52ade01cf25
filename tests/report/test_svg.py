"""Plots are to scale."""

import pytest

from modulate.report import svg
from tests.report.helpers import ParsedPage


def test_bars_and_whiskers_are_to_scale():
    bars = [svg.Bar(0, 0.5, 0.4, 0.6), svg.Bar(1, 1.0, None, None)]
    page = ParsedPage(svg.bars([("task", bars)], ["a", "b"], "alt"))
    widths = [float(rectangle["width"]) for rectangle in page.all("rect")]
    half, whole = [width for width in widths if width > 12]  # without the legend's squares
    assert whole == pytest.approx(2 * half, abs=0.2)
    (whisker,) = [
        line
        for line in page.all("line")
        if line.get("class") == "whisker" and line["y1"] == line["y2"]
    ]
    length = float(whisker["x2"]) - float(whisker["x1"])
    assert length == pytest.approx(0.2 * whole, abs=0.2)
    assert "50.0 [40.0, 60.0]" in page.text


def test_a_single_point_is_drawn_as_a_dot():
    page = ParsedPage(svg.curves("loss", [svg.Curve("seed 0", ((1.0, 2.0),))]))
    assert len(page.all("circle")) == 1


def test_thinning_keeps_means():
    assert svg.thinned([(1, 2), (2, 4), (3, 9)], most=2) == (((1.5, 3.0), (3.0, 9.0)), 2)
