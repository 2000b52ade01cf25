"""Signals of samples: each file is read once, cut to the sample's clip, and missed by name."""

from dataclasses import replace
from pathlib import Path

import pytest

from modulate.data.signal_reader import SignalReader
from modulate.errors import DataError, MissingFileError, SignalWarning
from modulate.interfaces.sample import SampleClip
from modulate_gaze.scanpath import Scanpath
from tests.samples import one_clip_sample, with_clip
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
        signal = reader.read(sample, sample.clip)
        start, end = sample.clip.window
        assert all(f[2] + f[3] / 2 > start and f[2] - f[3] / 2 < end for f in signal.fixations)
        fixations += len(signal)
    assert fixations and len(calls) < len(samples)
    assert sorted(calls) == sorted({sample.clip.signals["gaze"] for sample in samples})


def test_a_sample_without_the_kind_or_without_its_file_is_refused(pipeline):
    sample = pipeline.samples("test")[0]
    with pytest.raises(DataError, match=r"\.mp4 has no 'gaze' signal; the sample has none"):
        bare = with_clip(sample, signals={})
        pipeline.signals.read(bare, bare.clip)
    nowhere = with_clip(sample, signals={"gaze": Path("nowhere.csv")})
    with pytest.raises(MissingFileError, match=r"nowhere\.csv does not exist"):
        pipeline.signals.read(nowhere, nowhere.clip)


def test_a_file_on_another_clock_than_its_video_is_warned_of_once(pipeline, tmp_path):
    samples = pipeline.samples("test")
    sample = samples[0]
    reader = SignalReader(pipeline.recipe, pipeline.extractor)
    header, *rows = sample.clip.signals["gaze"].read_text("utf-8").splitlines()
    columns = header.split(",")
    late = []
    for row in rows:
        values = dict(zip(columns, row.split(","), strict=True))
        for name in columns:
            if name.startswith(("start_time", "end_time")):
                values[name] = str(float(values[name]) + 1000)
        late.append(",".join(values.values()))
    path = tmp_path / "late.csv"
    path.write_text("\n".join([header, *late]) + "\n", "utf-8")
    wrong = with_clip(sample, signals={"gaze": path})
    message = r"late\.csv: none of the .* at 10..\.\d+ to 10.* lies within 0\.00 to .* clock\?"
    with pytest.warns(SignalWarning, match=message) as caught:
        for _ in range(2):
            assert len(reader.read(wrong, wrong.clip)) == 0
    assert len(caught) == 1
    assert reader.off_clock(wrong.clip).startswith(str(path))
    # A file with events in its video, but none in the window, and an empty one, are usual.
    for usual in (sample, *samples[1:3]):
        early = with_clip(usual, window=(0.0, 0.01))
        reader.read(early, early.clip)
        assert reader.off_clock(early.clip) is None
    path.write_text(header + "\n", "utf-8")
    empty = SignalReader(pipeline.recipe, pipeline.extractor)
    empty.read(wrong, wrong.clip)
    assert empty.off_clock(wrong.clip) is None


def test_a_picture_without_a_window_lasts_as_long_as_all_its_signals(pipeline, tmp_path):
    whole = pipeline.samples("test")[0].clip.signals["gaze"]
    picture = SampleClip(tmp_path / "p.png", signals={"gaze": whole}, is_image=True)
    end = Scanpath.read(whole).span()[1]
    reader = pipeline.signals
    assert reader.window(picture) == (0.0, end)
    assert reader.window(replace(picture, window=(1.0, 2.0))) == (1.0, 2.0)
    assert reader.window(replace(picture, signals={})) == (0.0, 0.0)
    sample = one_clip_sample("p", signals={"gaze": whole})
    assert reader.read(sample, picture) == Scanpath.read(whole)
    empty = tmp_path / "empty.csv"
    empty.write_text(whole.read_text().splitlines()[0] + "\n")
    assert reader.window(replace(picture, signals={"gaze": empty})) == (0.0, 0.0)


def test_a_kind_that_does_not_know_its_end_needs_a_picture_s_window(
    pipeline, tmp_path, monkeypatch
):
    whole = pipeline.samples("test")[0].clip.signals["gaze"]
    picture = SampleClip(tmp_path / "p.png", signals={"gaze": whole}, is_image=True)
    monkeypatch.setattr(Scanpath, "span", lambda self: None)
    with pytest.raises(DataError, match=r"p\.png has no window, and .* 'gaze' do not know where"):
        pipeline.signals.window(picture)


def test_one_of_several_clips_may_have_no_signal(pipeline):
    own = pipeline.samples("test")[0]
    bare = replace(own.clip, signals={})
    both = replace(own, clips=(own.clip, bare))
    assert pipeline.signals.read(both, bare) is None
    neither = replace(own, clips=(bare, bare))
    with pytest.raises(DataError, match="has no 'gaze' signal"):
        pipeline.signals.read(neither, bare)
