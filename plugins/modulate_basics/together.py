"""The encoder ``together``: one encoder for each of several signals of a clip, concatenated."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from modulate import Params, Signal, SignalEncoder, SignalFeatures, VisualGrid
from modulate.errors import ConditioningError, RecipeError
from modulate.interfaces.multi_signal import KIND_SEPARATOR, MultiSignal
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.result_checks import check_signal_features


class TogetherParams(Params):
    """Parameters of ``together``."""

    encoders: dict[str, ComponentSpec] = Field(
        min_length=2,
        description="{kind of signal: its encoder, written like `encoder` of a recipe}",
    )


class Together(SignalEncoder):
    """Concatenates the features of all parts in their order; a step is active if any part is.

    Reads the multi-signal of a recipe with ``signal: a+b``. Raises :class:`ConditioningError` if a
    clip's signal has other parts, and :class:`RecipeError` for encoders whose features are to be
    added to the frame features.
    """

    Params = TogetherParams
    signal_kind = MultiSignal.kind

    def __init__(self, params: TogetherParams) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.specs = params.encoders
        for kind, spec in params.encoders.items():
            self.parts[kind] = spec.build("signal_encoder")
        self.d_signal = sum(self._encoder(kind).d_signal for kind in self.parts)

    @classmethod
    def reads(cls, params: BaseModel) -> str:
        """Return the kinds of all parts."""
        assert isinstance(params, TogetherParams)
        return KIND_SEPARATOR.join(params.encoders)

    def _encoder(self, kind: str) -> Any:
        return self.parts[kind]

    def forward(self, signals: Sequence[Signal], grids: Sequence[VisualGrid]) -> SignalFeatures:
        """Return the joined features of all parts, (step, token, sum of the parts' widths)."""
        for signal in signals:
            found = sorted(signal.parts) if isinstance(signal, MultiSignal) else [signal.kind]
            if found != sorted(self.parts):
                raise ConditioningError(
                    f"This encoder reads {' and '.join(sorted(self.parts))} together; a clip came"
                    f" with {' and '.join(found)}."
                )
        joined = [signal for signal in signals if isinstance(signal, MultiSignal)]
        encoded = [
            self._encode(kind, [signal.parts[kind] for signal in joined], grids)
            for kind in self.parts
        ]
        if any(part.to_features for part in encoded):
            raise RecipeError(
                "`to_features` of an encoder inside `together` has no effect that is defined:"
                " features of several kinds lie side by side. Set it to false."
            )
        return SignalFeatures(
            torch.cat([part.values for part in encoded], -1),
            torch.stack([part.active for part in encoded]).any(0),
        )

    def _encode(
        self, kind: str, signals: Sequence[Signal], grids: Sequence[VisualGrid]
    ) -> SignalFeatures:
        """Return the features of one part; its own encoder is named where it fails."""
        encoder = self._encoder(kind)
        with self.specs[kind].blame("signal_encoder", "forward"):
            return check_signal_features(encoder(signals, grids), encoder, grids)
