"""What a signal encoder, a backbone, a modulator and a data set must look like: the interfaces that
plugins implement.

A component is a class with a pydantic ``Params`` (extras forbidden, every field described); recipes
and saved configurations hold its registered name and those parameters. Shapes use the shared axis
names of ``docs/reference/axes.md``: ``step`` (all steps of all clips given, one after the other),
``token`` (rows·cols of one step), ``d_*`` (channels).
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Num
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from modulate.errors import DataError, PluginError
from modulate.interfaces.frames import Frames
from modulate.interfaces.params import Params
from modulate.interfaces.signal import Signal
from modulate.interfaces.visual_grid import VisualGrid
from modulate.interfaces.writer import Mixture, Projection, Writer

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class SignalFeatures:
    """What a signal encoder makes of the signals of some clips.

    ``values``: (step, token, d_signal), exactly 0 where no signal is active. ``active``: (step,),
    whether any signal reached the step. ``to_features``: add ``values`` to the modulator's
    projected frame features as well as to its keys (needs d_signal = its width).
    """

    values: Float[Tensor, "step token d_signal"]
    active: Bool[Tensor, " step"]
    to_features: bool = False


class SignalEncoder(nn.Module, ABC):
    """Turns signals into features of the visual tokens.

    ``signal_kind`` names the kind of signal read. After construction ``d_signal`` is the width of
    the features.
    """

    Params: ClassVar[type[Params]]
    signal_kind: ClassVar[str]
    d_signal: int

    @abstractmethod
    def forward(self, signals: Sequence[Signal], grids: Sequence[VisualGrid]) -> SignalFeatures:
        """Encode clips whose grids share rows × cols; results are concatenated over the steps of
        all clips, in order.
        """


class Modulator(nn.Module, ABC):
    """Turns frame features and signal features into one latent residual per injected layer.

    Built as ``Class(params, d_features=…, d_signal=…, n_layers=…)``, ``n_layers`` being the number
    of injected layers. Latents (width ``d_latent``) become residuals of the host's width by
    writers: one per layer, or one for all when ``shared_output`` is set. By default a writer is a
    zero-initialized linear map; a modulator that wants the hidden states brings its own.
    """

    Params: ClassVar[type[Params]]
    d_latent: int
    shared_output: bool = False

    @abstractmethod
    def forward(
        self, features: Float[Tensor, "step token d_features"], signal: SignalFeatures
    ) -> Sequence[Float[Tensor, "step token d_latent"] | Mixture]:
        """Return latents for each injected layer, in order, each token's own or as mixtures of a
        few vectors. Steps are independent of each other.
        """

    def writer(self, layer: int, d_model: int) -> Writer:
        """Return the fresh writer of the ``layer``-th injected layer of a host of width
        ``d_model``; a fresh one must write exactly 0.
        """
        return Projection(self.d_latent, d_model)

    def portable(self, params: BaseModel) -> BaseModel:
        """Return ``params`` as config.json of saved weights is to name them.

        A saved modulation may name no file: what one held is among the weights.
        """
        return params


class Backbone(nn.Module, ABC):
    """A frozen vision encoder of the raw frames. Built as ``Class(params)``; weights come from the
    file that the parameters name.

    ``d_features`` is the width of its features; ``fingerprint()`` identifies weights and
    preprocessing for the feature cache.
    """

    Params: ClassVar[type[Params]]
    d_features: int

    @abstractmethod
    def forward(self, frames: Tensor, frame_times: Sequence[float]) -> "FrameFeatures":
        """Encode one clip. ``frames``: (frame, height, width, 3) uint8 RGB; ``frame_times``: their
        seconds, increasing.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever the features would: weights hash, layer,
        preprocessing, schema.
        """


@dataclass(frozen=True)
class FrameFeatures:
    """A backbone's raw features of one clip on its own grid.

    ``values``: (time, row, col, d_features); ``times``: seconds of each time index (mean of the
    frames it merges), increasing. Alignment to the host's visual grid happens later, by true time
    (:func:`modulate.data.alignment.align`).
    """

    values: Num[Tensor, "time row col d_features"]
    times: tuple[float, ...]

    def check(self) -> None:
        """Raise :class:`PluginError` unless values are (time, row, col, d) with one increasing time
        for each time index.
        """
        shape = tuple(self.values.shape)
        times = self.times
        if len(shape) != 4 or 0 in shape or len(times) != shape[0]:
            raise PluginError(
                "A backbone's features must be (time, row, col, d_features) with a time each; got"
                f" shape {shape} and {len(times)} times."
            )
        if any(not b > a for a, b in itertools.pairwise(times)):
            raise PluginError(f"A backbone's feature times must increase; got {list(times)}.")


@dataclass(frozen=True)
class Sample:
    """One question about one clip.

    ``window``: (start, end) seconds of the video that the model may see. ``options`` are the texts
    offered, ``answer`` the index of the right one. ``signals`` maps a signal kind to its file.
    ``groups`` holds what statistics and splits go by (video, viewer …).
    """

    id: str
    task: str
    video: Path
    window: tuple[float, float]
    question: str
    options: tuple[str, ...]
    answer: int
    signals: dict[str, Path]
    groups: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HostInput:
    """One user turn as the host is to be given it. ``images``: (height, width, 3) uint8 RGB, shown
    before the clip.
    """

    frames: Frames
    text: str
    images: tuple[NDArray[np.uint8], ...] = ()


class InputTransform(ABC):
    """Tells the bare host about a signal by its ordinary input: a baseline beside modulation.

    Built as ``Class(params)``.

    ``signal_kind`` names the kind of signal read.
    """

    Params: ClassVar[type[Params]]
    signal_kind: ClassVar[str]

    @abstractmethod
    def __call__(self, given: HostInput, signal: Signal, window: tuple[float, float]) -> HostInput:
        """Return the turn with the signal in it; ``given`` is not written into. ``signal``: what of
        it belongs to the clip; ``window``: (start, end) s.
        """


@dataclass(frozen=True)
class ReferenceRow:
    """What others report on a data set. ``accuracies``: by task, in [0, 1]; empty where only the
    mean is known. ``source``: where it is from.
    """

    name: str
    overall: float
    source: str
    accuracies: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What stands beside one's own results on a data set.

    ``labels``: short name of each task, in the order of a table; ``rows``: published results;
    ``notes``: what of these is not comparable, and why.
    """

    labels: dict[str, str] = field(default_factory=dict)
    rows: tuple[ReferenceRow, ...] = ()
    notes: tuple[str, ...] = ()


class Dataset(ABC):
    """Questions about clips. Built as ``Class(params)``; makes or checks its files in
    :meth:`prepare`.
    """

    Params: ClassVar[type[Params]]

    def prepare(self) -> None:  # noqa: B027  (most data sets have nothing to make)
        """Make what can be made (generated worlds) or raise a clear error about what is missing.

        Called once before use.
        """

    @abstractmethod
    def samples(self, split: str) -> list[Sample]:
        """Return the samples of ``split`` ("train", "val" or "test") in a fixed order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever the data would."""

    @classmethod
    def elsewhere(cls, params: BaseModel, root: Path) -> BaseModel:
        """Return ``params`` for data of the same kind in the folder ``root``, which may hold none
        yet: by default the same, with another ``root``.

        Raises :class:`DataError` when the parameters name no such folder, or when what is there is
        something else.
        """
        if "root" not in type(params).model_fields:
            raise DataError(
                f"{cls.__name__} has no parameter `root`: its data are in no folder that could be"
                " another. Change its parameters in a recipe."
            )
        return params.model_copy(update={"root": root})

    def reference(self) -> Reference:
        """Return published results and the tasks' short names, for reports; by default none.

        Reads none of the data's files.
        """
        return Reference()

    def clip_signal(self, sample: Sample, signal: Signal) -> Signal:
        """Return what of a video's ``signal`` belongs to ``sample``: by default what overlaps its
        window. Times stay as they are.
        """
        return signal.within(*sample.window)

    def prompt(self, sample: Sample, answer: str = "letter") -> str:
        """Return the text of the user's turn after the video, for an answer by "letter" or by
        "word".

        By default the multiple-choice prompt of the GazeQwen code, and for words the bare question.
        """
        question = f"Question: {sample.question}"
        if answer == "word":
            return f"{question}\nThe answer is:"
        if len(sample.options) > len(LETTERS):
            raise DataError(
                f"Sample {sample.id} offers {len(sample.options)} options; there are letters for"
                f" {len(LETTERS)}."
            )
        lines = [
            f"{letter}. {option}" for letter, option in zip(LETTERS, sample.options, strict=False)
        ]
        return "\n".join([question, "Options:", *lines, "", "The best option is:"])
