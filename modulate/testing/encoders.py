"""The contract of a signal encoder."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from modulate import plugins
from modulate.interfaces.components import SignalEncoder, SignalFeatures
from modulate.interfaces.result_checks import check_signal_features
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid, visual_grid
from modulate.testing.contract import (
    ComponentContract,
    load_exactly,
    require,
    require_gradients,
    same,
    state,
)
from modulate.testing.signals import read_text

ROUNDING = 1e-5
"""What features of clips encoded together may differ by from those encoded alone."""


def clip_grid(steps: int = 4, rows: int = 2, cols: int = 3) -> VisualGrid:
    """Return the grid of a clip of ``steps`` seconds, with a step for each."""
    times = [0.5 * index for index in range(2 * steps)]
    return visual_grid(times, 2, rows, cols, (0.0, float(steps)))


class EncoderContract(ComponentContract):
    r"""Rows that every signal encoder must pass.

    Derive a class whose name begins with ``Test``, and run pytest::

        class TestPupilSize(modulate.EncoderContract):
            name = "pupil_size"
            example = "seconds,diameter\n0.5,3.1\n1.5,3.4\n2.5,3.3\n"

    Attributes:
        name, params: see :class:`ComponentContract`.
        example: content of a file of the encoder's kind of signal, with events between 0 and 4 s.
            Override :meth:`signal` instead where a file is not enough.
        suffix: of that file's name.
        unused: names of weights that no gradient reaches, if that is meant.
    """

    component_kind = "signal_encoder"
    example: ClassVar[str | bytes]
    suffix: ClassVar[str] = ".csv"
    unused: ClassVar[tuple[str, ...]] = ()

    def signal(self) -> Signal:
        """Return a signal with events between 0 and 4 s."""
        kind = plugins.get("signal", self.build().signal_kind)
        return read_text(kind, self.example, self.suffix)

    def encode(
        self, encoder: SignalEncoder, signals: Sequence[Signal], grids: Sequence[VisualGrid]
    ) -> SignalFeatures:
        """Return the encoder's features; fail if they break its interface."""
        with self.blame("forward"):
            return check_signal_features(encoder(signals, grids), encoder, grids)

    # --- rows

    def test_it_encodes_a_clip(self) -> None:
        """Shapes, dtypes and numbers are what the interface says, and a signal is noticed."""
        features = self.encode(self.build(), [self.signal()], [clip_grid()])
        require(
            features.values.dtype == torch.float32,
            f"values are of {features.values.dtype}; a modulation computes in float32",
        )
        require(isinstance(features.to_features, bool), "to_features is no bool")
        require(bool(features.active.any()), "no step is active, although the example has events")
        require(bool(features.values.any()), "all values are 0, although the example has events")

    def test_a_blank_signal_is_not_active(self) -> None:
        """Without events, no step is active and every value is exactly 0."""
        features = self.encode(self.build(), [self.signal().blank()], [clip_grid()])
        require(not bool(features.active.any()), "steps of a blank signal are active")
        require(not bool(features.values.any()), "values of a blank signal are not 0")

    def test_it_fits_every_grid(self) -> None:
        """One step, one token, or a wide grid: values have one entry for each token."""
        encoder = self.build()
        for steps, rows, cols in ((1, 1, 1), (1, 3, 5), (5, 1, 4), (3, 6, 2)):
            self.encode(encoder, [self.signal()], [clip_grid(steps, rows, cols)])

    def test_clips_do_not_affect_each_other(self) -> None:
        """Clips encoded together give the features of each alone, in order."""
        encoder = self.build()
        signal = self.signal()
        signals = [signal, signal.blank(), signal.moved(-1.0)]
        grids = [clip_grid(4), clip_grid(2), clip_grid(3)]
        together = self.encode(encoder, signals, grids)
        alone = [
            self.encode(encoder, [one], [grid]) for one, grid in zip(signals, grids, strict=True)
        ]
        require(
            same(together.values, torch.cat([part.values for part in alone]), ROUNDING),
            "values of clips encoded together are not those of each clip alone",
        )
        require(
            same(together.active, torch.cat([part.active for part in alone])),
            "`active` of clips encoded together is not that of each clip alone",
        )

    def test_it_keeps_nothing_between_calls(self) -> None:
        """Features depend on the signal alone, and the signal stays as it is."""
        encoder = self.build()
        signal = self.signal()
        before = state(signal)
        first = self.encode(encoder, [signal], [clip_grid()])
        self.encode(encoder, [signal.moved(-1.0)], [clip_grid(3)])
        again = self.encode(encoder, [signal], [clip_grid()])
        require(same(first.values, again.values), "encoding a signal twice gives different values")
        require(same(signal, before), "forward changed the signal")

    def test_gradients_reach_every_weight(self) -> None:
        """Every weight can learn."""
        encoder = self.build().train()
        features = self.encode(encoder, [self.signal()], [clip_grid()])
        require_gradients(encoder, features.values, self.unused)

    def test_its_weights_are_all_it_learned(self) -> None:
        """An encoder of other weights computes the same once it has loaded these."""
        encoder = self.build()
        torch.manual_seed(1)
        twin = self.spec.build(self.component_kind).eval()
        load_exactly(twin, encoder)
        require(
            same(
                self.encode(twin, [self.signal()], [clip_grid()]).values,
                self.encode(encoder, [self.signal()], [clip_grid()]).values,
            ),
            "an encoder with the same state_dict gives other values; register every tensor that"
            " counts as a parameter or buffer",
        )

    def test_it_runs_where_its_weights_are(self) -> None:
        """On a GPU, if there is one, values are on the GPU; otherwise the row says nothing."""
        if not torch.cuda.is_available():
            return
        features = self.encode(self.build().cuda(), [self.signal()], [clip_grid()])
        require(features.values.is_cuda, "values are not on the device of the encoder's weights")
