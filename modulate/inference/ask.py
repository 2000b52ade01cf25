"""One question about one video, answered with and without its signal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from modulate.config.recipe import Recipe
from modulate.data.video import probe
from modulate.errors import DataError, MissingFileError, RecipeError, VideoError, near_matches
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.multi_signal import kinds_of
from modulate.interfaces.prompt import LETTERS
from modulate.interfaces.sample import Sample, SampleClip
from modulate.modulation.attachment import Attachment
from modulate.modulation.module import Modulation
from modulate.utils.library_warnings import show_library_warnings


@dataclass(frozen=True)
class Answer:
    """An answer under one condition.

    Attributes:
        condition: "signal": the sample's own. "none": no residuals, with LoRA. "host": neither.
        choice: index of the most probable option.
        probabilities: of the options offered, summing to 1.
        tokens: number of visual tokens with a residual.
        steps: number of time steps of the clips.
        active_steps: number of steps that the signal reached.
        ratio: ‖Δh‖/‖h‖ by layer.
    """

    condition: str
    choice: int
    probabilities: tuple[float, ...]
    tokens: int = 0
    steps: int = 0
    active_steps: int = 0
    ratio: dict[int, float] = field(default_factory=dict)


def parse_signals(texts: Sequence[str]) -> dict[str, Path]:
    """Return the file of each signal kind, from texts of the form ``kind=file``.

    Raises:
        RecipeError: a text has another form, or a kind is given twice.
        MissingFileError: a file does not exist.
    """
    signals: dict[str, Path] = {}
    for text in texts:
        kind, separator, file = text.partition("=")
        if not separator or not kind or not file:
            raise RecipeError(
                f"Signal {text!r} is not of the form kind=file, for example gaze=fixations.csv."
            )
        if kind in signals:
            raise RecipeError(
                f"The signal {kind!r} is given twice: {signals[kind]} and {file}. Give one file for"
                " each kind."
            )
        if not Path(file).is_file():
            raise MissingFileError(f"The signal file {file} does not exist.")
        signals[kind] = Path(file)
    return signals


def sample_of(
    video: Path,
    signals: Mapping[str, Path],
    at: float,
    question: str,
    options: Sequence[str],
    recipe: Recipe,
    seconds: float | None = None,
) -> Sample:
    """Return one question about one video as a sample.

    Args:
        video: file of the video.
        signals: file of each signal, by kind.
        at: time of the question, s; the model sees nothing after it.
        question: the question's text.
        options: the answers offered.
        recipe: names the signals to read.
        seconds: length of the clip before the question; by default max_frames / fps of the recipe.

    Raises:
        DataError: the question is empty, or the options cannot be offered.
        RecipeError: a signal is missing, or the recipe does not read it.
        VideoError: the time lies outside the video.
    """
    _check_question(question, options)
    _check_signals(signals, recipe)
    seconds = recipe.sampling.seconds if seconds is None else seconds
    if seconds <= 0:
        raise VideoError(
            f"The clip before the question must have some length; got {seconds} seconds."
        )
    info = probe(video)
    # The last frame stays on screen for one frame interval.
    if not 0 <= at <= info.duration + 1 / info.fps:
        raise VideoError(
            f"The question at {at:g} s lies outside {video}, which lasts {info.duration:.2f} s."
        )
    return Sample(
        id=f"{video.name}@{at:g}s",
        task="ask",
        clips=(SampleClip(video, (max(0.0, at - seconds), at), dict(signals)),),
        question=question,
        options=tuple(options),
    )


def _check_question(question: str, options: Sequence[str]) -> None:
    if not question.strip():
        raise DataError("The question is empty.")
    countable = 2 <= len(options) <= len(LETTERS)
    distinct = len(set(options)) == len(options)
    if not (countable and distinct and all(option.strip() for option in options)):
        raise DataError(
            f"A question needs 2 to {len(LETTERS)} different, non-empty options; got"
            f" {list(options)}."
        )


def _check_signals(signals: Mapping[str, Path], recipe: Recipe) -> None:
    kinds = kinds_of(recipe.signal)
    unread = sorted(signals.keys() - kinds.keys())
    if unread:
        raise RecipeError(
            f"The recipe {recipe.name!r} does not read the signal {unread[0]!r}."
            f" {near_matches(unread[0], kinds)}"
        )
    missing = [kind for kind in kinds if kind not in signals]
    if missing:
        raise RecipeError(
            f"The recipe {recipe.name!r} reads the signal {missing[0]!r}; give it as"
            f" {missing[0]}=FILE."
        )


@show_library_warnings()
def ask(pipeline: Pipeline, modulation: Modulation, sample: Sample) -> list[Answer]:
    """Return the answers with the signal, without it, and of the bare host.

    A modulation without LoRA has no third answer: without residuals it is the bare host.
    """
    prepared = pipeline.prepare(sample)
    conditions = ["signal", "none"]
    if modulation.lora is not None:
        conditions.append("host")
    with modulation.eval().to(pipeline.device).attached(pipeline.model) as attachment:
        return [_answer(pipeline, attachment, prepared, condition) for condition in conditions]


@torch.inference_mode()
def _answer(
    pipeline: Pipeline, attachment: Attachment, prepared: PreparedSample, condition: str
) -> Answer:
    batch = pipeline.collate([prepared])
    has_signal = condition == "signal"
    clips = prepared.clip_inputs() if has_signal else []
    with attachment.maybe_condition([clips], bare=condition == "host"):
        output = attachment.model(**batch.inputs, **LAST_LOGITS)
    probabilities = batch.option_logits(output)[0].softmax(0)
    answer = Answer(
        condition,
        int(probabilities.argmax()),
        tuple(probabilities.tolist()),
        steps=sum(clip.grid.steps for clip in prepared.clips),
    )
    if not has_signal:
        return answer
    report = attachment.report()
    return replace(
        answer,
        tokens=report.tokens,
        active_steps=sum(report.active_steps),
        ratio=report.ratio,
    )
