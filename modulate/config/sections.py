"""The sections of a recipe: which frames are seen, how a modulation is trained, how answers are
scored. Imports no torch.
"""

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator

from modulate.interfaces.params import ComponentSpec

#: Conditions that need no signal kind: how the host is asked, beside the controls that a kind
#: declares.
BUILT_IN = {
    "signal": "the clip's own signal",
    "none": "no residual; LoRA stays on",
    "host": "no residual and no LoRA: the bare host",
    "no_frames": "own signal, but host and backbone see gray frames",
    "no_pixels": "own signal and features, but the host sees gray frames",
    "text_only": "the bare host without the clip: the question alone",
}


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rate(Section):
    """A frame rate for clips up to some length."""

    up_to: float | None = Field(
        None, gt=0, description="longest clip, s; null, in the last rate: any"
    )
    fps: float = Field(gt=0, description="frames per second")


class Sampling(Section):
    """Which frames of a clip the host and the backbone see."""

    fps: PositiveFloat | tuple[Rate, ...] = Field(
        1.0,
        description=(
            "frames per second, on a grid that ends with the clip; or rates by the clip's length"
        ),
    )
    max_frames: int = Field(
        8, ge=1, description="frame cap; a longer clip is re-spaced evenly over its whole window"
    )
    train_max_frames: int | None = Field(
        None,
        ge=1,
        description=(
            "frame cap in training; null: max_frames [GazeQwen's code: 3, of which 2 are used]"
        ),
    )
    clock: Literal["true", "requested"] = Field(
        "true",
        description=(
            "true: a step's time is its frames' own. requested: steps count on from the clip's"
            " start at the rate asked for, although a frame cap re-spaces the frames: wrong, and"
            " what GazeQwen's code does"
        ),
    )

    processor_fps: float | None = Field(
        None,
        gt=0,
        description=(
            "frames per second that the host's processor is told, whatever the true rate; null: the"
            " truth. GazeQwen's code tells it nothing, and transformers then takes 24, so that"
            " M-RoPE's time is wrong"
        ),
    )
    alignment: Literal["time", "index"] = Field(
        "time",
        description=(
            "how features meet the steps. time: read at the steps' own times; index: both time axes"
            " laid over each other end to end, whatever their times, as GazeQwen's code does"
        ),
    )
    antialias: bool = Field(
        True,
        description=(
            "smooth the features where the host's visual grid is coarser than theirs, so that each"
            " of them counts. false: plain bilinear interpolation, which skips some, as GazeQwen's"
            " code has it"
        ),
    )

    @field_validator("fps")
    @classmethod
    def _rates_grow(cls, value: "float | tuple[Rate, ...]") -> "float | tuple[Rate, ...]":
        if isinstance(value, tuple):
            limits = [rate.up_to for rate in value]
            lengths = [limit for limit in limits[:-1] if limit is not None]
            if (
                not limits
                or limits[-1] is not None
                or len(lengths) < len(limits) - 1
                or any(b <= a for a, b in pairwise(lengths))
            ):
                raise ValueError(
                    "rates by length need growing `up_to`, and a last rate without it for all"
                    " longer clips"
                )
        return value

    @field_validator("clock", mode="before")
    @classmethod
    def _unquoted(cls, value: Any) -> Any:
        return "true" if value is True else value  # how YAML reads the word true

    def rate(self, seconds: float) -> float:
        """Return the frames per second asked for of a clip of this length."""
        if not isinstance(self.fps, tuple):
            return self.fps
        return next(rate.fps for rate in self.fps if rate.up_to is None or seconds <= rate.up_to)

    @property
    def seconds(self) -> float:
        """Length (s) of the longest clip that the frame cap leaves alone, at the rate for short
        clips.
        """
        return self.max_frames / self.rate(0.0)

    def frame_cap(self, training: bool) -> int:
        """Return the most frames taken of a clip."""
        return (
            self.train_max_frames
            if training and self.train_max_frames is not None
            else self.max_frames
        )


class Features(Section):
    """How the backbone's features, decoded frames and what the host's vision tower makes of them
    are kept on disk.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="type of the values kept; the modulation computes in float32 all the same",
    )
    disk_gib: float = Field(
        50.0,
        ge=0,
        description=(
            "most that is kept, GiB; what was used longest ago goes first. 0: nothing is kept on"
            " disk"
        ),
    )
    frames_gib: float = Field(
        0.0,
        ge=0,
        description=(
            "most that is kept of clips' decoded frames, uncompressed, GiB, so that later epochs"
            " and runs decode no video; 0: none"
        ),
    )
    vision_tower_cache_gib: float = Field(
        0.0,
        ge=0,
        description=(
            "most that is kept on disk of what the host's frozen vision tower makes of clips, GiB,"
            " so that later epochs, conditions and runs do not run it again; 0: none"
        ),
    )
    hidden_state_cache_gib: float = Field(
        0.0,
        ge=0,
        description=(
            "most that is kept of hidden states up to the first injected layer, GiB of memory, so"
            " that under further controls, and in further epochs of stages that leave these layers"
            " alone, neither they nor the vision tower run again for a batch that comes again; what"
            " comes first stays. 0: none"
        ),
    )
    vision_tower_cache_by: Literal["call", "clip"] = Field(
        "call",
        description=(
            "what is kept as one. call: the clips that go through the tower at once, with the same"
            " results to the bit as without; batches of other clips find nothing. clip: each clip"
            " goes through by itself and is found in any batch; where batches hold several clips,"
            " the same up to rounding"
        ),
    )


class Stage(Section):
    """One training phase."""

    name: str = Field(description="shown in progress and logs")
    train: tuple[Literal["modulator", "lora"], ...] = Field(
        min_length=1, description="what is trainable; the host never is"
    )
    epochs: float = Field(gt=0, description="passes over the training split; fractions allowed")
    lr: float = Field(3.0e-4, gt=0, description="peak learning rate [GazeQwen: 3e-4]")
    lora_lr: float | None = Field(
        None, description="peak learning rate of the LoRA tensors; null: the same"
    )


class Training(Section):
    """How a modulation is trained."""

    stages: tuple[Stage, ...] = Field(
        min_length=1, description="training phases, one after the other"
    )
    batch_size: int = Field(8, ge=1, description="samples of one forward")
    accumulation: int = Field(
        1, ge=1, description="forwards per optimizer step [GazeQwen: 8 with batch 1]"
    )
    weight_decay: float = Field(
        1.0e-2, ge=0, description="AdamW; never on biases, norms, other 1-D parameters and LoRA"
    )
    schedule: Literal["cosine", "one_cycle"] = Field(
        "cosine",
        description=(
            "cosine: linear warm-up, then cosine decay. one_cycle: torch's OneCycleLR, whose"
            " momentum cycles too, with its peak after warmup_steps, but no later than half-way"
            " [GazeQwen's code]"
        ),
    )
    warmup_steps: int = Field(
        20,
        ge=0,
        description="optimizer steps until the peak rate; then it decays to the stage's last step",
    )
    clip_norm: float = Field(
        1.0, gt=0, description="gradient norm above which gradients are scaled down"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="over the options offered [GazeQwen's code: 0.1]"
    )
    empty: Literal["train", "skip"] = Field(
        "train",
        description=(
            "samples whose signal is empty within their clip: trained on like any other, or left"
            " out of training and counted in state.json [GazeQwen's code: skip]"
        ),
    )
    augment: bool = Field(True, description="perturb signals as their kind defines it")
    condition: Literal["signal", "blank", "none"] = Field(
        "signal",
        description=(
            "`blank` trains the gaze-free ceiling, `none` trains LoRA without modulation: the runs"
            " that stand beside a gaze run"
        ),
    )
    batch_by: Literal["any", "length", "clip"] = Field(
        "any",
        description=(
            "which samples share a batch. any: whatever comes next. length: clips of nearly the"
            " same number of frames, so that little is padded. clip: questions on one clip only,"
            " which then go through in one pass over its visual tokens, under one perturbation of"
            " the signal: the gradients are those of the same batch one by one, at a fraction of"
            " the cost, but batches are less varied"
        ),
    )
    prefetch_batches: int = Field(
        1,
        ge=0,
        description=(
            "batches whose samples are prepared ahead of time, in a thread beside the host; 0:"
            " none. Nothing that is learned depends on it"
        ),
    )
    patience: int | None = Field(
        None,
        ge=1,
        description=(
            "stop a stage after this many epochs without a better validation accuracy; null: never"
        ),
    )
    validate_every: int | None = Field(
        1,
        ge=1,
        description=(
            "epochs between validations; the best weights are kept. null: never, the last weights"
            " are kept"
        ),
    )
    gradient_checkpointing: bool = Field(
        False,
        description=(
            "gradient checkpointing: the host's decoder layers keep nothing but their input for the"
            " backward and compute the rest again. Less memory, about a third more time, the same"
            " gradients"
        ),
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="mixed precision of the forward; weights stay float32. fp16 needs a GPU"
    )
    checkpoint_every: int = Field(
        50,
        ge=1,
        description=(
            "optimizer steps between checkpoints, from which a killed run goes on; there is one"
            " after every validation and stage as well"
        ),
    )
    max_skipped_steps: int = Field(
        5,
        ge=1,
        description=(
            "a run stops, with a diagnosis, after this many optimizer steps in a row whose loss or"
            " gradients were not finite; each is skipped and counted"
        ),
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="also log there; needs the extra of that name"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _unquoted(cls, value: Any) -> Any:
        return "no" if value is False else value  # how YAML reads the word no


class Evaluation(Section):
    """How answers are scored."""

    batch_size: int = Field(32, ge=1, description="samples of one forward")
    batch_by: Literal["any", "clip"] = Field(
        "any",
        description=(
            "which samples share a forward. any: as they come. clip: questions on one clip only,"
            " which go through in one pass over its visual tokens where their signals are the same,"
            " as under every condition but `shuffled`: answers are the same up to rounding, at a"
            " fraction of the cost"
        ),
    )
    conditions: tuple[str, ...] = Field(
        ("none", "blank", "shuffled", "centre", "shifted", "host"),
        description="controls, beside the signal itself; a signal kind may offer more",
    )
    inputs: dict[str, ComponentSpec] = Field(
        default_factory=dict,
        description=(
            "further conditions, by names of your own: the bare host, told of the signal by its"
            " ordinary input (drawn on frames, written into the prompt …)"
        ),
    )
    failed: Literal["wrong", "left_out"] = Field(
        "wrong",
        description=(
            "how samples that fail count. left_out shrinks the number of samples, and is what"
            " GazeQwen's code does; they are listed all the same"
        ),
    )
    max_failed_share: float = Field(
        0.0, ge=0, le=1, description="a run fails when more of its samples fail"
    )
    bootstrap: int = Field(
        2000, ge=100, description="resamples of the intervals, clustered by video"
    )
