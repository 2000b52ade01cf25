"""Findings of a check and their report."""

import pytest

from modulate.checks.findings import CheckReport, Finding


@pytest.mark.parametrize(
    ("levels", "ok"),
    [
        ([], True),
        (["info"], True),
        (["warning", "info"], True),
        (["error"], False),
        (["info", "error", "info"], False),
    ],
)
def test_a_report_is_ok_unless_it_has_an_error(levels, ok):
    report = CheckReport("r")
    for index, level in enumerate(levels):
        report.add(level, str(index))
    assert report.ok is ok


def test_a_finding_is_added_once():
    report = CheckReport("r")
    for level, text in (("info", "a"), ("info", "a"), ("warning", "a"), ("info", "b")):
        report.add(level, text)
    assert report.findings == [Finding("info", "a"), Finding("warning", "a"), Finding("info", "b")]
    assert report.cache == 0
