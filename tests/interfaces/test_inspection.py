"""What a check of data finds."""

from pathlib import Path

from modulate.config.sections import Sampling
from modulate.data.sampled_steps import SampledSteps
from modulate.interfaces.inspection import Inspection, place_of
from modulate.interfaces.sample import Sample, SampleClip


def test_only_errors_fail_and_nothing_is_told_twice():
    inspection = Inspection(SampledSteps(Sampling()))
    inspection.add("warning", "odd", ["row 1"])
    inspection.add("warning", "odd", ["row 1"])
    assert inspection.ok and len(inspection.findings) == 1
    inspection.add("error", "bad")
    inspection.figures["rows"] = 3
    assert inspection.as_json() == {
        "ok": False,
        "rows": 3,
        "findings": [
            {"level": "warning", "text": "odd", "rows": ["row 1"]},
            {"level": "error", "text": "bad", "rows": []},
        ],
    }


def test_a_sample_is_named_by_its_place_if_it_has_one():
    clips = (SampleClip(Path("a.mp4"), (0.0, 1.0)),)
    assert place_of(Sample("1", "t", clips, "?")) == "1"
    placed = Sample("1", "t", clips, "?", extra={"source": "q.csv, line 2"})
    assert place_of(placed) == "q.csv, line 2"
