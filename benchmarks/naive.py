"""A plain reimplementation of the released training, the baseline of `python -m benchmarks.speed`.

It is slow in exactly the ways of GazeQwen's released code: each sample's clip is cut out of its
video and encoded again, the backbone runs for every sample and epoch, the hook calls the resampler
once per layer and step, attention is eager, logits cover the full vocabulary at every position, and
the batch size is one. Everything else equals modulate: frames by presentation time, the host's own
encoding, features aligned by time, one backward per sample, gradients only for trained parameters.
Residuals, loss and optimizer are separate code; a test compares losses and gradients with
modulate's on the same weights.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import torch
from torch import Tensor, nn
from torch.nn import functional

from modulate.data.alignment import align
from modulate.data.video import read_frames
from modulate.interfaces.components import Backbone
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import VideoClip, user_turn
from modulate.interfaces.sample import Sample
from modulate.interfaces.visual_grid import VisualGrid
from modulate_gaze.scanpath import Scanpath


def cut(video: Path, start: float, end: float, out: Path) -> float:
    """Re-encode ``video`` from ``start`` to ``end`` (s) without loss; return its first time (s)."""
    with av.open(str(video)) as source, av.open(str(out), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream(
            "libx264", rate=stream.average_rate, options={"qp": "0", "preset": "ultrafast"}
        )
        copy.width = stream.width
        copy.height = stream.height
        copy.pix_fmt = "yuv420p"
        copy.codec_context.time_base = stream.time_base
        source.seek(max(0, math.floor(start / stream.time_base) - 1), stream=stream)
        held: Any = None  # the frame on screen when the clip begins
        first: int | None = None
        for frame in source.decode(stream):
            if frame.time > end + 1e-6:
                break
            if frame.time <= start + 1e-6:
                held = frame
                continue
            for shown in [each for each in (held, frame) if each is not None]:
                first = shown.pts if first is None else first
                shown.pts = shown.pts - first
                shown.time_base = stream.time_base
                shown.pict_type = 0
                target.mux(copy.encode(shown))
            held = None
        target.mux(copy.encode())
    return float((first or 0) * Fraction(stream.time_base))


def position_code(
    x: Tensor, y: Tensor, width: int, scale: float, temperature: float = 10000.0
) -> Tensor:
    """Return DETR's sine/cosine code of points, (point, width): half for x, half for y."""
    quarter = width // 4
    angles = [p[:, None] * scale / temperature ** (torch.arange(quarter) / quarter) for p in (x, y)]
    return torch.cat([torch.stack([a.sin(), a.cos()], 2).flatten(1) for a in angles], 1)


class Resampler:
    """One layer's resampler, called with the features and the gaze code of a single step."""

    def __init__(self, weights: dict[str, Tensor], number: int, blocks: int) -> None:
        self.number = number
        self.blocks = blocks
        self.w = {
            name.removeprefix("modulator."): tensor
            for name, tensor in weights.items()
            if name.startswith("modulator.")
        }
        self.out = weights[f"out.{number}.weight"]
        self.amplitude = weights["amplitude"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Apply the linear map ``name``."""
        bias = self.w.get(f"{name}.bias")
        return functional.linear(
            x, self.w[f"{name}.weight"][self.number], None if bias is None else bias[self.number]
        )

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Apply the LayerNorm ``name``."""
        return functional.layer_norm(
            x,
            x.shape[-1:],
            self.w[f"{name}.weight"][self.number],
            self.w[f"{name}.bias"][self.number],
        )

    def __call__(self, features: Tensor, gaze: Tensor) -> Tensor:
        """Return the residual (token, d_model) of (token, d_features) and (d_signal,)."""
        return self.amplitude[self.number] * functional.linear(self.read(features, gaze), self.out)

    def read(self, features: Tensor, gaze: Tensor) -> Tensor:
        """Return what the tokens read, (token, width), before the output projection."""
        x = self.linear("proj_in", features)
        latents = self.w["latents"][self.number]
        scale = math.sqrt(x.shape[1])
        guide = torch.cat([gaze.expand(len(x), -1), gaze.new_zeros(len(latents), len(gaze))])
        for block in range(self.blocks):
            name = f"blocks.{block}."
            source = torch.cat([x, latents])
            keys = self.linear(name + "key", source) + self.linear(name + "signal", guide)
            weights = (self.linear(name + "query", latents) @ keys.T / scale).softmax(1)
            latents = latents + weights @ self.linear(name + "value", source)
            hidden = functional.gelu(
                self.linear(name + "ff_in", self.norm(name + "ff_norm", latents))
            )
            latents = self.norm(name + "norm", latents + self.linear(name + "ff_out", hidden))
        return (x @ latents.T / scale).softmax(1) @ latents


class Naive:
    """Trains a modulation's weights like the released code.

    ``model``: the host, loaded with eager attention; ``host``: its family, for encoding;
    ``weights``: a copy of the modulation's tensors, trained in place.
    """

    def __init__(
        self,
        model: nn.Module,
        host: Any,
        processor: Any,
        backbone: Backbone,
        weights: dict[str, Tensor],
        layers: Sequence[int],
        *,
        frames: int,
        scale: float,
        blocks: int,
        lr: float,
    ) -> None:
        self.model = model
        self.host = host
        self.processor = processor
        self.backbone = backbone
        self.layers = tuple(layers)
        self.weights = {
            name: value.detach().clone().requires_grad_()
            for name, value in weights.items()
            if value.dtype.is_floating_point
        }
        self.frames = frames
        self.scale = scale
        self.resamplers = [Resampler(self.weights, number, blocks) for number in range(len(layers))]
        self.optimizer = torch.optim.AdamW(list(self.weights.values()), lr=lr)

    def read(self, sample: Sample) -> Frames:
        """Cut the clip out of its video, and read its frames from the cut: one a second, ending
        with the window.
        """
        start, end = sample.clip.window
        times = [end - age for age in reversed(range(self.frames)) if end - age >= start - 1e-6]
        with TemporaryDirectory() as folder:
            shift = cut(sample.clip.file, start, end, Path(folder) / "clip.mp4")
            frames = read_frames(
                Path(folder) / "clip.mp4", [max(0.0, time - shift) for time in times]
            )
        return Frames(frames.images, tuple(time + shift for time in frames.times))

    def gaze(self, sample: Sample, grid: VisualGrid) -> Tensor:
        """Mean code of the fixations that each step's time lies in, 0 where it lies in none: (step,
        d_signal).
        """
        width = self.weights["modulator.blocks.0.signal.weight"].shape[2]
        rows = torch.tensor(Scanpath.read(sample.clip.signals["gaze"]).fixations)
        codes = []
        for time in grid.times:
            active = rows[(rows[:, 2] - time).abs() <= rows[:, 3] / 2 + 1e-6].float()
            code = position_code(active[:, 0], active[:, 1], width, self.scale)
            codes.append(code.mean(0) if len(code) else torch.zeros(width))
        return torch.stack(codes)

    def write(self, number: int, places: Tensor, features: Tensor, gaze: Tensor) -> Any:
        """Return the hook of the ``k``-th injected layer."""

        def hook(module: nn.Module, args: Any, output: Any) -> Tensor:
            residuals = [
                self.resamplers[number](features[step], gaze[step]) for step in range(len(gaze))
            ]
            changed = output.clone()
            changed[0, places] = changed[0, places] + torch.cat(residuals)
            return changed

        return hook

    def logits(self, sample: Sample, prompt: str) -> Tensor:
        """Return the logits of the letters A to D at the last position."""
        frames = self.read(sample)
        encoded = self.host.encode(
            self.processor, user_turn(VideoClip(frames, sample.clip.window), prompt)
        )
        (grid,) = encoded.grids
        with torch.no_grad():
            raw = self.backbone(torch.from_numpy(frames.images), frames.times)
        features = align(raw, grid)
        gaze = self.gaze(sample, grid)
        places = (encoded.inputs["input_ids"][0] == self.model.config.video_token_id).nonzero()[
            :, 0
        ]
        layers = self.model.get_decoder().layers
        handles = [
            layers[layer].register_forward_hook(self.write(number, places, features, gaze))
            for number, layer in enumerate(self.layers)
        ]
        try:
            logits = self.model(**encoded.inputs, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        letters = [
            self.processor.tokenizer.encode(letter, add_special_tokens=False)[0]
            for letter in "ABCD"
        ]
        return logits[0, -1, letters]

    def step(self, samples: Sequence[Sample], prompt: Any) -> float:
        """Take one optimizer step on ``samples``, one at a time; return their mean loss.

        ``prompt``: sample → the user's turn.
        """
        total = 0.0
        for sample in samples:
            loss = functional.cross_entropy(
                self.logits(sample, prompt(sample))[None], torch.tensor([sample.answer])
            ) / len(samples)
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total
