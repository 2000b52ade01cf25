"""Plots of one run."""

import pytest

from modulate.report.page import as_html, build_report
from tests.report.helpers import ParsedPage


def test_curves_continue_over_the_stages(three_runs):
    page = ParsedPage(as_html(build_report(three_runs[:1])))
    labels = [picture["aria-label"] for picture in page.all("svg")]
    assert "loss over training steps: seed 0 ends at 1" in labels
    assert "validation accuracy over training steps: seed 0 ends at 0.75" in labels
    points = page.all("polyline")[0]["points"].split()
    first, second, third = (float(point.split(",")[0]) for point in points)
    # Step 1 of the second stage is step 3 of all.
    assert third - second == pytest.approx(second - first, abs=0.2) and "3 steps" in page.text


def test_bars_show_the_run_its_companions_and_one_control(three_runs):
    page = ParsedPage(as_html(build_report(three_runs)))
    legend = ("ours-0, signal", "LoRA-only run: lora-0", "blank-trained run: free-0")
    assert all(name in page.text for name in (*legend, "control: shuffled"))
    assert "control: none" not in page.text.partition("free-0Trained")[0]
