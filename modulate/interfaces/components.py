"""The interfaces that plugins implement: encoders, modulators, backbones, data sets, inputs.

A component is a class with a pydantic ``Params`` (unknown keys forbidden, every field described);
recipes and saved configurations hold its registered name and its parameters. Shapes use the axis
names of ``docs/reference/axes.md``: ``step`` (the steps of all clips, concatenated), ``token``
(rows·cols of one step), ``d_*`` (channels).
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Num
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from modulate.errors import DataError, PluginError
from modulate.interfaces.frames import Frames
from modulate.interfaces.inspection import Inspection
from modulate.interfaces.params import Params
from modulate.interfaces.prompt import TEMPLATES, AnswerForm, fill_template
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Signal
from modulate.interfaces.signal_checks import call
from modulate.interfaces.visual_grid import VisualGrid
from modulate.interfaces.writer import Mixture, Projection, Writer


@dataclass(frozen=True)
class SignalFeatures:
    """A signal encoder's output for one or more clips.

    Attributes:
        values: (step, token, d_signal), exactly 0 where no signal is active.
        active: (step,), whether any signal reached the step.
        to_features: add ``values`` to the modulator's projected frame features too, not only to its
            keys. This needs d_signal equal to the modulator's width.
    """

    values: Float[Tensor, "step token d_signal"]
    active: Bool[Tensor, " step"]
    to_features: bool = False


class SignalEncoder(nn.Module, ABC):
    """Turns signals into features of the visual tokens. Built as ``Class(params)``.

    Attributes:
        signal_kind: the kind of signal that it reads.
        d_signal: width of its features; set by the constructor.
    """

    Params: ClassVar[type[Params]]
    signal_kind: ClassVar[str]
    d_signal: int

    @classmethod
    def reads(cls, params: BaseModel) -> str:
        """Return the recipe's ``signal`` that an encoder with these parameters reads.

        By default ``signal_kind``. An encoder of several kinds joins them by ``+``.
        """
        return cls.signal_kind

    @abstractmethod
    def forward(self, signals: Sequence[Signal], grids: Sequence[VisualGrid]) -> SignalFeatures:
        """Encode clips whose grids have the same rows × cols.

        The results of all clips are concatenated along the steps, in order.
        """


class Modulator(nn.Module, ABC):
    """Turns frame features and signal features into one latent residual per injected layer.

    Built as ``Class(params, d_features=…, d_signal=…, n_layers=…)``, with the number of injected
    layers. Writers turn the latents into residuals of the host's width: one per layer, or one for
    all layers if ``shared_output`` is set.

    Attributes:
        d_latent: width of the latents; set by the constructor.
        shared_output: whether all layers share one writer.
    """

    Params: ClassVar[type[Params]]
    d_latent: int
    shared_output: bool = False

    @abstractmethod
    def forward(
        self, features: Float[Tensor, "step token d_features"], signal: SignalFeatures
    ) -> Sequence[Float[Tensor, "step token d_latent"] | Mixture]:
        """Return the latents of each injected layer, in order, as a tensor or as a mixture.

        Each step must be computed independently of the others.
        """

    def writer(self, layer: int, d_model: int) -> Writer:
        """Return a new writer for the ``layer``-th injected layer; it must write exactly 0.

        ``d_model``: the host's width. Override this for a writer that reads the hidden states.
        """
        return Projection(self.d_latent, d_model)

    def portable(self, params: BaseModel) -> BaseModel:
        """Return ``params`` as the config.json of saved weights should hold them.

        A saved modulation must not refer to files of this machine. Override this to drop paths
        whose content is saved with the weights.
        """
        return params


class Backbone(nn.Module, ABC):
    """A frozen vision encoder of raw frames. Built as ``Class(params)``.

    Attributes:
        d_features: width of its features; set by the constructor.
    """

    Params: ClassVar[type[Params]]
    d_features: int

    @abstractmethod
    def forward(self, frames: Tensor, frame_times: Sequence[float]) -> "FrameFeatures":
        """Encode one clip.

        Args:
            frames: (frame, height, width, 3) uint8 RGB.
            frame_times: presentation time of each frame in seconds, increasing.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever the features would.

        It covers weights, layer, preprocessing and schema, and is part of every cache key.
        """


@dataclass(frozen=True)
class FrameFeatures:
    """A backbone's raw features of one clip, on the backbone's own grid.

    :func:`modulate.data.alignment.align` maps them to the host's visual grid later, by true time.

    Attributes:
        values: (time, row, col, d_features).
        times: seconds of each time index (mean over the frames that it merges), increasing.
    """

    values: Num[Tensor, "time row col d_features"]
    times: tuple[float, ...]

    def check(self) -> None:
        """Raise :class:`PluginError` unless there are values, with one increasing time for each."""
        shape = tuple(self.values.shape)
        times = self.times
        if len(shape) != 4 or 0 in shape or len(times) != shape[0]:
            raise PluginError(
                "A backbone's features must be (time, row, col, d_features) with a time each; got"
                f" shape {shape} and {len(times)} times."
            )
        if any(not later > earlier for earlier, later in itertools.pairwise(times)):
            raise PluginError(f"A backbone's feature times must increase; got {list(times)}.")


@dataclass(frozen=True)
class HostInput:
    """The user's turn in a prompt.

    Attributes:
        frames: frames of the clip.
        text: text after the clip.
        images: (height, width, 3) uint8 RGB, shown before the clip.
    """

    frames: Frames
    text: str
    images: tuple[NDArray[np.uint8], ...] = ()


class InputTransform(ABC):
    """Puts a signal into the bare host's ordinary input, as a baseline for modulation.

    Built as ``Class(params)``.

    Attributes:
        signal_kind: the kind of signal that it reads.
    """

    Params: ClassVar[type[Params]]
    signal_kind: ClassVar[str]

    @abstractmethod
    def __call__(self, given: HostInput, signal: Signal, window: tuple[float, float]) -> HostInput:
        """Return a new user's turn that includes the signal; ``given`` is not modified.

        Args:
            given: the turn without the signal.
            signal: the part of the signal that belongs to the clip.
            window: (start, end) of the clip in seconds.
        """


@dataclass(frozen=True)
class ReferenceRow:
    """Published results on a data set.

    Attributes:
        name: name of the method.
        overall: mean accuracy, in [0, 1].
        source: publication or URL.
        accuracies: accuracy of each task, in [0, 1]; empty if only the mean is known.
    """

    name: str
    overall: float
    source: str
    accuracies: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """Published results to report beside one's own.

    Attributes:
        labels: short name of each task, in the order of a table.
        rows: published results.
        notes: which of the results are not comparable, and why.
    """

    labels: dict[str, str] = field(default_factory=dict)
    rows: tuple[ReferenceRow, ...] = ()
    notes: tuple[str, ...] = ()


class Dataset(ABC):
    """Questions about clips. Built as ``Class(params)``; :meth:`prepare` checks its files."""

    Params: ClassVar[type[Params]]

    def prepare(self) -> None:  # noqa: B027  (most data sets generate nothing)
        """Generate the files if they can be generated, or raise an error about missing ones.

        Called once before use.
        """

    @abstractmethod
    def samples(self, split: str) -> list[Sample]:
        """Return the samples of ``split`` ("train", "val" or "test") in a fixed order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever the data would."""

    @classmethod
    def with_root(cls, params: BaseModel, root: Path) -> BaseModel:
        """Return ``params`` for data of the same kind in the folder ``root``.

        The folder may still be empty. By default only the parameter ``root`` changes. Raises
        :class:`DataError` if there is no such parameter, or if the folder holds other data.
        """
        if "root" not in type(params).model_fields:
            raise DataError(
                f"{cls.__name__} has no parameter `root`, so its data cannot be replaced by those"
                " of another folder. Change its parameters in a recipe."
            )
        return params.model_copy(update={"root": root})

    def reference(self) -> Reference:
        """Return published results and the tasks' short names for reports; by default none.

        Must not read the data's files: reports are also made where there are none.
        """
        return Reference()

    usual_recipe: ClassVar[str | None] = None
    """Recipe whose sampling and parameters `modulate data check FOLDER` takes; None: defaults."""

    @classmethod
    def recognize(cls, path: Path) -> BaseModel | None:
        """Return the parameters that read the file or folder ``path``; None if it holds other data.

        Nothing is read but names, so that a folder of any kind is recognized at once.
        """
        return None

    def inspect(self, inspection: Inspection) -> Mapping[str, Sequence[Sample]] | None:
        """Add what only the data set can find to a check of its files.

        Return the samples by split that can be checked further, if :meth:`samples` would refuse
        what this finds. By default None: the samples of every split are checked.
        """
        return None

    def skipped_rows(self) -> Mapping[str, int]:
        """Return how many rows of each file are skipped because they cannot be used.

        A run's record holds these numbers. By default there are none.
        """
        return {}

    def clip_signal(self, sample: Sample, clip: SampleClip, signal: Signal) -> Signal:
        """Return the part of a file's ``signal`` that belongs to a ``clip`` of ``sample``.

        By default the events that overlap its window. Times do not change. A picture without a
        window has that of its whole signal here.
        """
        return call(signal, "within", *clip.window)

    @classmethod
    def template(cls, answer: AnswerForm = "letter") -> str:
        """Return the template of the user's turn for a form of answer.

        ``{question}`` and ``{options}`` stand for a sample's own. It is saved with a trained
        modulation, so that new questions are asked in the same form. By default
        :data:`modulate.interfaces.prompt.TEMPLATES`.
        """
        return TEMPLATES[answer]

    def prompt(self, sample: Sample, answer: AnswerForm = "letter") -> str:
        """Return the text of the user's turn after the clips; by default the filled template."""
        return fill_template(self.template(answer), sample.question, sample.options)
