"""Samples: their clips, and what is refused when one is made."""

from dataclasses import replace
from pathlib import Path

import pytest

from modulate.errors import DataError
from modulate.interfaces.sample import Sample, SampleClip
from tests.samples import one_clip_sample

GAZE = {"gaze": Path("g.csv")}


def test_the_only_clip_is_given_and_asked_of_several_refused():
    one = one_clip_sample("one", "a.mp4", (1.0, 2.0))
    assert one.clip == SampleClip(Path("a.mp4"), (1.0, 2.0))
    both = replace(one, id="both", clips=(one.clip, SampleClip(Path("b.png"), is_image=True)))
    assert both.files == {Path("a.mp4"), Path("b.png")}
    with pytest.raises(DataError, match="Sample both has 2 clips, where one is needed"):
        _ = both.clip


@pytest.mark.parametrize("clips", [(), [SampleClip(Path("a"))], (Path("a.mp4"),), Path("a.mp4")])
def test_clips_are_a_tuple_of_clips(clips):
    with pytest.raises(DataError, match="Sample s: its clips must be a tuple of one or more Samp"):
        Sample("s", "task", clips, "?")


@pytest.mark.parametrize("answer", [-1, 2, "one", 0.5])
def test_the_right_answer_is_the_index_of_an_option(answer):
    with pytest.raises(DataError, match=r"of which there are 2; got"):
        one_clip_sample("s", answer=answer)
    with pytest.raises(DataError, match=r"of which there are 0; got 0"):
        one_clip_sample("s", options=(), answer=0)


def test_a_question_without_options_is_free_text():
    assert one_clip_sample("s", options=(), answer=None, answers=("a cup",)).is_free_text
    assert not one_clip_sample("s").is_free_text


def test_one_of_several_clips_may_have_no_signal_but_not_all():
    bare = SampleClip(Path("a.mp4"))
    gazed = SampleClip(Path("b.mp4"), signals=GAZE)
    one = one_clip_sample("s")
    assert one.has_signals(one.clip)
    both = replace(one, clips=(bare, gazed))
    assert [both.has_signals(clip) for clip in both.clips] == [False, True]
    # None has any: reading them says which are missing.
    neither = replace(one, clips=(bare, bare))
    assert [neither.has_signals(clip) for clip in neither.clips] == [True, True]
