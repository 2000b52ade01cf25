"""Signals of samples: each file is read once, cut to the sample's clip, and missed by name."""

import dataclasses
from pathlib import Path

import pytest

from modulate.errors import DataError, MissingFileError
from tests.tiny import small_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return small_pipeline(tmp_path_factory.mktemp("signals"))


def test_a_file_is_read_once_and_cut_to_each_samples_window(pipeline, monkeypatch):
    reader = pipeline.signals
    kind = reader.kinds["gaze"]
    calls = []
    read = kind.read
    monkeypatch.setattr(kind, "read", lambda path: (calls.append(path), read(path))[1])
    samples = pipeline.samples("test")
    fixations = 0
    for sample in samples:
        signal = reader.read(sample)
        start, end = sample.window
        assert all(f[2] + f[3] / 2 > start and f[2] - f[3] / 2 < end for f in signal.fixations)
        fixations += len(signal)
    assert fixations and len(calls) < len(samples)
    assert sorted(calls) == sorted({sample.signals["gaze"] for sample in samples})


def test_a_sample_without_the_kind_or_without_its_file_is_refused(pipeline):
    sample = pipeline.samples("test")[0]
    with pytest.raises(DataError, match="there is no 'gaze' signal; the sample has none"):
        pipeline.signals.read(dataclasses.replace(sample, signals={}))
    nowhere = dataclasses.replace(sample, signals={"gaze": Path("nowhere.csv")})
    with pytest.raises(MissingFileError, match=r"nowhere\.csv does not exist"):
        pipeline.signals.read(nowhere)
