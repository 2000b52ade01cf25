"""The sections of a recipe: sampling, feature caches, training, evaluation. Imports no torch."""

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator

from modulate.interfaces.params import ComponentSpec

#: Evaluation conditions that every recipe has, besides the controls that its signal kind declares.
BUILT_IN = {
    "signal": "the clip's own signal",
    "none": "no residual; LoRA stays on",
    "host": "no residual and no LoRA: the bare host",
    "no_frames": "own signal, but host and backbone see gray frames",
    "no_pixels": "own signal and features, but the host sees gray frames",
    "text_only": "the bare host without the clip: the question alone",
}


TextMetric = Literal["exact_match", "token_f1", "bleu", "rouge_l"]
"""How generated text is scored, see :mod:`modulate.evaluation.text_scores`."""

MainMetric = Literal["accuracy", "exact_match", "token_f1", "bleu", "rouge_l"]
"""What a run's main figures are."""


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rate(Section):
    """A frame rate for clips up to a given length."""

    up_to: float | None = Field(
        None,
        gt=0,
        description=(
            "length (s) of the longest clip with this rate; leave it out of the last rate,"
            " which applies to all longer clips"
        ),
    )
    fps: float = Field(gt=0, description="frames per second")


class Sampling(Section):
    """Which frames of a clip the host and the backbone see."""

    fps: PositiveFloat | tuple[Rate, ...] = Field(
        1.0,
        description=(
            "frames per second, on a time grid that ends with the clip; or a list of rates by"
            " clip length"
        ),
    )
    max_frames: int = Field(
        8,
        ge=1,
        description=(
            "most frames of a clip; a clip that would have more is sampled evenly over its"
            " whole window instead"
        ),
    )
    train_max_frames: int | None = Field(
        None,
        ge=1,
        description=(
            "most frames of a clip in training; `null`: max_frames [GazeQwen's code: 3, of"
            " which it uses 2]"
        ),
    )
    clock: Literal["true", "requested"] = Field(
        "true",
        description=(
            "time of a visual step. `true`: the times of its own frames. `requested`: steps"
            " counted from the start of the clip at the requested rate, even if max_frames has"
            " changed the spacing of the frames. This is wrong, and repeats GazeQwen's code"
        ),
    )

    processor_fps: float | None = Field(
        None,
        gt=0,
        description=(
            "frame rate reported to the host's processor, whatever the true one; `null`: the"
            " true rate. GazeQwen's code reports none; transformers then assumes 24, and the"
            " time axis of M-RoPE is wrong"
        ),
    )
    alignment: Literal["time", "index"] = Field(
        "time",
        description=(
            "how features are aligned with visual steps. `time`: interpolated at the times of"
            " the steps. `index`: both time axes are stretched to the same length, whatever"
            " their times [GazeQwen's code]"
        ),
    )
    antialias: bool = Field(
        True,
        description=(
            "low-pass filter the features where the host's visual grid is coarser than"
            " theirs, so that every feature counts. `false`: plain bilinear interpolation,"
            " which skips some of them [GazeQwen's code]"
        ),
    )

    @field_validator("fps")
    @classmethod
    def _rates_grow(cls, value: "float | tuple[Rate, ...]") -> "float | tuple[Rate, ...]":
        if isinstance(value, tuple):
            limits = [rate.up_to for rate in value]
            lengths = [limit for limit in limits[:-1] if limit is not None]
            only_last_unlimited = len(lengths) == len(limits) - 1 and limits[-1:] == [None]
            growing = all(shorter < longer for shorter, longer in pairwise(lengths))
            if not (only_last_unlimited and growing):
                raise ValueError(
                    "rates by clip length need increasing `up_to`, and a last rate without `up_to`"
                    " for all longer clips"
                )
        return value

    @field_validator("clock", mode="before")
    @classmethod
    def _unquoted(cls, value: Any) -> Any:
        # YAML reads the unquoted word true as a bool.
        return "true" if value is True else value

    def rate(self, seconds: float) -> float:
        """Return the requested frames per second of a clip that lasts ``seconds``."""
        if not isinstance(self.fps, tuple):
            return self.fps
        return next(rate.fps for rate in self.fps if rate.up_to is None or seconds <= rate.up_to)

    @property
    def seconds(self) -> float:
        """Length (s) of a clip of ``max_frames`` frames at the rate for short clips."""
        return self.max_frames / self.rate(0.0)

    def frame_cap(self, training: bool) -> int:
        """Return the largest number of frames sampled from a clip."""
        if training and self.train_max_frames is not None:
            return self.train_max_frames
        return self.max_frames


class Features(Section):
    """Caches of backbone features, decoded frames and the frozen host's outputs."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description=(
            "data type of cached features; the modulation computes in float32 in any case"
        ),
    )
    disk_gib: float = Field(
        50.0,
        ge=0,
        description=(
            "size limit (GiB) of cached features on disk; the least recently used ones are"
            " evicted first. 0: no features on disk"
        ),
    )
    frames_gib: float = Field(
        0.0,
        ge=0,
        description=(
            "size limit (GiB) of decoded frames on disk, uncompressed, so that later epochs"
            " and runs decode no video. 0: off"
        ),
    )
    vision_tower_cache_gib: float = Field(
        0.0,
        ge=0,
        description=(
            "size limit (GiB) of outputs of the host's frozen vision tower on disk, so that"
            " later epochs, conditions and runs skip the tower. 0: off"
        ),
    )
    hidden_state_cache_gib: float = Field(
        0.0,
        ge=0,
        description=(
            "size limit (GiB) of hidden states up to the first injected layer, in memory. A"
            " batch that comes again skips the vision tower and these layers: under further"
            " controls, and in further epochs of stages that do not train them. When the cache"
            " is full, the earliest entries stay. 0: off"
        ),
    )
    vision_tower_cache_by: Literal["call", "clip"] = Field(
        "call",
        description=(
            "what one entry of the vision-tower cache holds. `call`: all clips of one call of"
            " the tower; results are the same to the bit as without the cache, but a batch of"
            " other clips finds nothing. `clip`: one clip, which then goes through the tower"
            " alone and is found in any batch; where batches hold several clips, results are"
            " the same up to rounding"
        ),
    )


class Stage(Section):
    """One phase of training."""

    name: str = Field(description="name shown in progress and logs")
    train: tuple[Literal["modulator", "lora"], ...] = Field(
        min_length=1, description="what is trained; the host never is"
    )
    epochs: float = Field(gt=0, description="passes over the training split; may be a fraction")
    lr: float = Field(3.0e-4, gt=0, description="peak learning rate [GazeQwen: 3e-4]")
    lora_lr: float | None = Field(
        None, description="peak learning rate of the LoRA weights; `null`: lr"
    )


class Training(Section):
    """How a modulation is trained."""

    stages: tuple[Stage, ...] = Field(min_length=1, description="training phases, in order")
    batch_size: int = Field(8, ge=1, description="samples per forward")
    accumulation: int = Field(
        1, ge=1, description="forwards per optimizer step [GazeQwen: 8, with a batch size of 1]"
    )
    weight_decay: float = Field(
        1.0e-2,
        ge=0,
        description=(
            "weight decay of AdamW; not applied to biases, norms, other 1-D parameters or LoRA"
        ),
    )
    schedule: Literal["cosine", "one_cycle"] = Field(
        "cosine",
        description=(
            "learning-rate schedule. `cosine`: linear warm-up, then cosine decay."
            " `one_cycle`: torch's OneCycleLR, which cycles the momentum too; its peak comes"
            " after warmup_steps, but no later than half-way through the stage [GazeQwen's"
            " code]"
        ),
    )
    warmup_steps: int = Field(
        20,
        ge=0,
        description=(
            "optimizer steps until the learning rate peaks; it then decays until the last"
            " step of the stage"
        ),
    )
    clip_norm: float = Field(
        1.0, gt=0, description="gradients with a larger norm are scaled down to this norm"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "label smoothing over the options offered, or over all tokens under `answer: text`"
            " [GazeQwen's code: 0.1]"
        ),
    )
    empty: Literal["train", "skip"] = Field(
        "train",
        description=(
            "what happens to samples whose signal is empty within their clip. `train`: they"
            " are trained on like any other. `skip`: they are left out of training, and"
            " counted in state.json [GazeQwen's code]"
        ),
    )
    augment: bool = Field(True, description="perturb signals at random, as their kind defines")
    condition: Literal["signal", "blank", "none"] = Field(
        "signal",
        description=(
            "what the modulation is trained with. `signal`: the sample's own signal. `blank`:"
            " an empty one. `none`: no residuals, so that LoRA alone is trained. The last two"
            " give the baselines of a run with a signal"
        ),
    )
    batch_by: Literal["any", "length", "clip"] = Field(
        "any",
        description=(
            "which samples share a batch. `any`: consecutive ones, in random order. `length`:"
            " clips of about the same number of frames, so that little is padding. `clip`:"
            " questions on the same clip, which go through its visual tokens once, with one"
            " perturbation of the signal; gradients equal those of the same questions one by"
            " one, at a fraction of the cost, but batches are less varied"
        ),
    )
    prefetch_batches: int = Field(
        1,
        ge=0,
        description=(
            "batches prepared in advance, in a thread beside the host; 0: none. It does not"
            " change what is learned"
        ),
    )
    patience: int | None = Field(
        None,
        ge=1,
        description=(
            "end a stage after this many epochs without a better validation accuracy; `null`: never"
        ),
    )
    validate_every: int | None = Field(
        1,
        ge=1,
        description=(
            "epochs between validations; the best weights are kept. `null`: no validation,"
            " the last weights are kept"
        ),
    )
    gradient_checkpointing: bool = Field(
        False,
        description=(
            "the host's decoder layers store only their inputs, and recompute the rest in the"
            " backward pass: less memory, about a third more time, the same gradients"
        ),
    )
    precision: Literal["no", "bf16", "fp16"] = Field(
        "no",
        description=(
            "mixed precision of the forward pass; weights stay in float32. `fp16` needs a GPU"
        ),
    )
    checkpoint_every: int = Field(
        50,
        ge=1,
        description=(
            "optimizer steps between checkpoints, from which an interrupted run resumes;"
            " every validation and every stage ends with one too"
        ),
    )
    max_skipped_steps: int = Field(
        5,
        ge=1,
        description=(
            "optimizer steps with non-finite loss or gradients are skipped and counted; after"
            " this many in a row, the run stops with a diagnosis"
        ),
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="trackers that also receive the log; each needs the extra of its name"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _unquoted(cls, value: Any) -> Any:
        # YAML reads the unquoted word no as False.
        return "no" if value is False else value


class Evaluation(Section):
    """How answers are scored."""

    batch_size: int = Field(32, ge=1, description="samples per forward")
    batch_by: Literal["any", "clip"] = Field(
        "any",
        description=(
            "which samples share a forward. `any`: consecutive ones. `clip`: questions on the"
            " same clip, which go through its visual tokens once if their signals are equal,"
            " as under every condition but `shuffled`. Answers are the same up to rounding, at"
            " a fraction of the cost"
        ),
    )
    conditions: tuple[str, ...] = Field(
        ("none", "blank", "shuffled", "centre", "shifted", "host"),
        description=(
            "controls to evaluate besides the signal itself; by default those of these that the"
            " signal has. Its kind may offer more"
        ),
    )
    inputs: dict[str, ComponentSpec] = Field(
        default_factory=dict,
        description=(
            "further conditions, under names of your choice: the bare host receives the"
            " signal through its ordinary input, for example drawn on the frames or written"
            " into the prompt"
        ),
    )
    failed: Literal["wrong", "left_out"] = Field(
        "wrong",
        description=(
            "how failed samples count. `wrong`: as wrong answers. `left_out`: not at all,"
            " which reduces the number of samples [GazeQwen's code]. They are listed in either"
            " case"
        ),
    )
    max_failed_share: float = Field(
        0.0, ge=0, le=1, description="share of samples that may fail; if more do, the run fails"
    )
    bootstrap: int = Field(
        2000,
        ge=100,
        description="bootstrap resamples of the confidence intervals, clustered by video",
    )
    max_new_tokens: int = Field(
        32,
        ge=1,
        le=2**16,
        description="most tokens that are generated for an answer in text",
    )
    main_metric: TextMetric = Field(
        "token_f1",
        description=(
            "score of generated text that reports show first; all four are computed and tested."
            " `exact_match`: equal to an accepted answer, after lower-casing and without"
            " punctuation and articles [SQuAD]. `token_f1`: words in common with it [SQuAD]."
            " `bleu`: sentence BLEU. `rouge_l`: longest common subsequence"
        ),
    )

    def differing_keys(self) -> set[str]:
        """Return the keys whose value is not the default."""
        fields = type(self).model_fields
        return {key for key in fields if getattr(self, key) != fields[key].get_default()}
