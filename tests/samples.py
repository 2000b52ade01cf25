"""Samples for tests, and what changes of their only clip."""

from dataclasses import replace
from pathlib import Path

from modulate.interfaces.sample import Sample, SampleClip


def one_clip_sample(id_, video="v.mp4", window=(0.0, 1.0), *, signals=None, **changes):
    """Return a question with two options about a window of a video."""
    fields = {"task": "task", "question": "Which?", "options": ("one", "two"), "answer": 0}
    clip = SampleClip(Path(video), window, dict(signals or {}))
    return Sample(id_, clips=(clip,), **{**fields, **changes})


def with_clip(sample, **changes):
    """Return ``sample`` with fields of its only clip changed."""
    return replace(sample, clips=(replace(sample.clip, **changes),))
