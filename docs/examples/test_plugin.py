"""test_loudness.py: `python -m pytest` runs the contract of its kind on each component above."""

from modulate import (
    BackboneContract,
    DatasetContract,
    EncoderContract,
    InputContract,
    ModulatorContract,
    SignalContract,
)

EVENTS = "time,level\n0.5,0.2\n1.5,0.9\n2.5,0.4\n"


class TestLoudness(SignalContract):
    kind = "loudness"
    example = EVENTS


class TestLoudnessEncoder(EncoderContract):
    name = "loudness"
    example = EVENTS


class TestLoudnessModulator(ModulatorContract):
    name = "loudness"
    params = {"dim": 8}


class TestMeanColor(BackboneContract):
    name = "mean_color"


class TestLoudQuestions(DatasetContract):
    name = "loud_questions"

    def make(self, folder):
        for split in ("train", "val", "test"):
            video = self.write_video(folder / split / f"{split}.mp4")
            video.with_suffix(".csv").write_text(EVENTS)
        return {"root": folder}


class TestTold(InputContract):
    name = "loudness_told"
    example = EVENTS
