"""loudness.py: a plugin in one file. Its entry point in pyproject.toml:

[project.entry-points.modulate]
loudness = "loudness"
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from modulate import (
    Backbone,
    Dataset,
    EncodedPrompt,
    FrameFeatures,
    Host,
    HostInput,
    HostParams,
    InputTransform,
    Inspection,
    LocalPath,
    Memory,
    Message,
    Mixture,
    Modulator,
    Params,
    Projection,
    Sample,
    SampleClip,
    Signal,
    SignalEncoder,
    SignalError,
    SignalFeatures,
    Writer,
    hookimpl,
)


@dataclass(frozen=True)
class Loudness(Signal):
    """Sound level over time: (seconds, level from 0 to 1) events."""

    events: tuple[tuple[float, float], ...]
    kind = "loudness"

    @classmethod
    def read(cls, path):
        try:
            with path.open(newline="") as file:
                rows = csv.DictReader(file)
                return cls(tuple((float(row["time"]), float(row["level"])) for row in rows))
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise SignalError(f"{path} has no numbers `time` and `level`: {error!r}") from error

    def within(self, start, end):
        return replace(self, events=tuple(e for e in self.events if start <= e[0] <= end))

    def moved(self, seconds):
        return replace(self, events=tuple((t + seconds, level) for t, level in self.events))

    def blank(self):
        return replace(self, events=())

    def __len__(self):
        return len(self.events)


class Width(Params):
    """Parameters of the encoder and the modulator."""

    dim: int = Field(16, description="width, channels")


class LoudnessEncoder(SignalEncoder):
    """Every token of a step gets the step's mean level times one learned vector."""

    Params = Width
    signal_kind = "loudness"

    def __init__(self, params):
        super().__init__()
        self.d_signal = params.dim
        self.direction = torch.nn.Parameter(torch.randn(params.dim))

    def forward(self, signals, grids):
        levels, active, tokens = [], [], grids[0].tokens_per_step
        for signal, grid in zip(signals, grids, strict=True):
            for start, end in grid.spans:
                events = signal.within(start, end).events
                levels.append(sum(level for _, level in events) / max(1, len(events)))
                active.append(bool(events))
        values = self.direction.new_tensor(levels)[:, None, None] * self.direction
        return SignalFeatures(values.expand(-1, tokens, -1), torch.tensor(active))


class GatedWriter(Writer):
    """A projection that each position's own hidden state opens or closes."""

    def __init__(self, d_latent, d_model):
        super().__init__()
        self.projection = Projection(d_latent, d_model)  # zero at first
        self.gate = torch.nn.Linear(d_model, 1)

    def forward(self, latents, hidden, memory: Memory):
        return self.gate(hidden.float()).sigmoid() * self.projection(latents, hidden, memory)


class LoudnessModulator(Modulator):
    """One latent a step, the same for all of its tokens and all layers."""

    Params = Width

    def __init__(self, params, d_features, d_signal, n_layers):
        super().__init__()
        self.d_latent, self.n_layers = params.dim, n_layers
        self.map = torch.nn.Linear(d_features + d_signal, params.dim)

    def forward(self, features, signal):
        seen = torch.cat([features, signal.values], dim=-1).mean(dim=1, keepdim=True)
        weights = seen.new_ones(seen.shape[0], features.shape[1], 1)
        return [Mixture(weights, self.map(seen))] * self.n_layers

    def writer(self, layer, d_model):
        return GatedWriter(self.d_latent, d_model)


class MeanColor(Backbone):
    """The mean color of each cell of an 8 × 8 grid."""

    Params = Params
    d_features = 3

    def __init__(self, params):
        super().__init__()

    def forward(self, frames, frame_times):
        cells = torch.nn.functional.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2) / 255.0, 8)
        return FrameFeatures(cells.permute(0, 2, 3, 1), tuple(frame_times))

    def fingerprint(self):
        return "mean-color-1"


class Folder(Params):
    """Parameters of the data set."""

    # Marked, a relative path leads there from any directory once a run has begun.
    root: Annotated[Path, LocalPath()] = Field(
        description="folder of the folders train, val and test"
    )


class LoudQuestions(Dataset):
    """One question about each video of a folder."""

    Params = Folder

    def __init__(self, params):
        self.root = params.root

    def samples(self, split):
        return [
            Sample(
                id=video.stem,
                task="loud",
                clips=(SampleClip(video, (0.0, 4.0), {"loudness": video.with_suffix(".csv")}),),
                question="Is it loud?",
                options=("yes", "no"),
                answer=0,
            )
            for video in sorted((self.root / split).glob("*.mp4"))
        ]

    def fingerprint(self):
        return "-".join(sorted(path.name for path in self.root.rglob("*.mp4")))

    def inspect(self, inspection: Inspection):
        """Add to `modulate data check` what only this data set can know."""
        others = [str(path) for path in self.root.rglob("*.avi")]
        if others:
            inspection.add("warning", f"{len(others)} videos are no MP4 and not read.", others)


class Told(InputTransform):
    """The baseline without modulation: the level is written into the question."""

    Params = Params
    signal_kind = "loudness"

    def __init__(self, params):
        pass

    def __call__(self, given: HostInput, signal, window):
        loudest = max((level for _, level in signal.events), default=0.0)
        return replace(given, text=f"(The loudest sound is {loudest:.1f}.)\n{given.text}")


class QuietHost(Host):
    """A family that encodes a clip's prompt in its own way."""

    Params = HostParams

    def encode(self, processor, messages, *, add_generation_prompt=True) -> EncodedPrompt:
        brief = Message("system", ("Answer with one letter.",))
        return super().encode(
            processor, [brief, *messages], add_generation_prompt=add_generation_prompt
        )


@hookimpl
def register_signals(register):
    register("loudness", "loudness:Loudness")


@hookimpl
def register_signal_encoders(register):
    register("loudness", "loudness:LoudnessEncoder")


@hookimpl
def register_modulators(register):
    register("loudness", "loudness:LoudnessModulator")


@hookimpl
def register_backbones(register):
    register("mean_color", "loudness:MeanColor")


@hookimpl
def register_datasets(register):
    register("loud_questions", "loudness:LoudQuestions")


@hookimpl
def register_inputs(register):
    register("loudness_told", "loudness:Told")


@hookimpl
def register_hosts(register):
    register("quiet_host", "loudness:QuietHost")
