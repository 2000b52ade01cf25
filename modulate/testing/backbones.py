"""The contract of a backbone."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from modulate.interfaces.components import Backbone, FrameFeatures
from modulate.interfaces.result_checks import check_fingerprint, check_frame_features
from modulate.testing.contract import ComponentContract, require, same, state

CLIPS: tuple[tuple[tuple[float, ...], tuple[int, int]], ...] = (
    ((0.5,), (48, 64)),
    ((0.0, 1.0), (64, 48)),
    ((3.0, 3.1, 4.9, 5.0, 9.0), (48, 64)),
    (tuple(float(index) for index in range(8)), (32, 96)),
)
"""Clips that every backbone must bear: frame times (s), and (height, width)."""


def noise(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return ``count`` random frames, (frame, height, width, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator)


class BackboneContract(ComponentContract):
    """Rows that every backbone must pass.

    Derive a class whose name begins with ``Test``, and run pytest::

        class TestMeanColor(modulate.BackboneContract):
            name = "mean_color"
            other_params = {"grid": 4}

    Attributes:
        name, params: see :class:`ComponentContract`. Name small or random weights.
        other_params: parameters that give other features, for the row of the fingerprint. None if
            no parameter counts.
    """

    component_kind = "backbone"
    other_params: ClassVar[dict[str, Any] | None] = None

    def build(self, **more: Any) -> Any:
        """Return a new backbone as the core uses it: frozen, in evaluation mode."""
        backbone: Backbone = super().build(**more)
        return backbone.requires_grad_(False)

    def encode(self, backbone: Backbone, frames: Tensor, times: tuple[float, ...]) -> FrameFeatures:
        """Return the features of a clip; fail if they break the interface."""
        with self.blame("forward"), torch.inference_mode():
            return check_frame_features(backbone(frames, times), backbone, times)

    # --- rows

    def test_it_encodes_every_clip(self) -> None:
        """Any number of frames of any size, at any times: shapes, times and numbers are right."""
        backbone = self.build()
        for times, size in CLIPS:
            self.encode(backbone, noise(len(times), size), times)

    def test_it_looks_at_the_frames(self) -> None:
        """Other frames have other features."""
        backbone = self.build()
        times, size = CLIPS[1]
        first = self.encode(backbone, noise(2, size, seed=0), times)
        second = self.encode(backbone, noise(2, size, seed=1), times)
        require(not same(first.values, second.values), "two random clips have the same features")

    def test_it_keeps_nothing_between_clips(self) -> None:
        """Features depend on the clip alone, to the bit, and the frames stay as they are."""
        backbone = self.build()
        times, size = CLIPS[1]
        frames = noise(2, size)
        before = state(frames)
        first = self.encode(backbone, frames, times)
        self.encode(backbone, noise(5, CLIPS[2][1], seed=1), CLIPS[2][0])
        again = self.encode(backbone, frames, times)
        require(same(first, again), "encoding a clip twice gives different features")
        require(same(frames, before), "forward changed the frames")

    def test_its_fingerprint_names_the_features(self) -> None:
        """Equal for equal backbones, and another one for other parameters."""
        first = self._fingerprint(self.build())
        require(
            first == self._fingerprint(self.build()),
            "two instances of the same parameters have different fingerprints, so that nothing"
            " would be found in the cache",
        )
        if self.other_params is None:
            return
        other = self.spec.model_copy(update={"params": self.other_params})
        torch.manual_seed(0)
        require(
            first != self._fingerprint(other.build(self.component_kind)),
            f"{dict(self.params)} and {self.other_params} have the same fingerprint, so that one"
            " would get the cached features of the other",
        )

    def _fingerprint(self, backbone: Backbone) -> str:
        with self.blame("fingerprint"):
            return check_fingerprint(backbone.fingerprint())

    def test_it_runs_where_its_weights_are(self) -> None:
        """On a GPU, if there is one, frames and features are on the GPU."""
        if not torch.cuda.is_available():
            return
        times, size = CLIPS[1]
        features = self.encode(self.build().cuda(), noise(2, size).cuda(), times)
        require(features.values.is_cuda, "values are not on the device of the frames")
