"""One question about one video, with and without its signal: from files to answers in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modulate.config.recipe import Recipe
from modulate.data.video import probe
from modulate.errors import DataError, MissingFileError, RecipeError, VideoError, near_matches
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.components import LETTERS, Sample
from modulate.interfaces.multi_signal import kinds_of
from modulate.modulation.attachment import Attachment
from modulate.modulation.module import Modulation
from modulate.utils.library_warnings import show_library_warnings


@dataclass(frozen=True)
class Answer:
    """An answer under one condition: ``signal`` (its own), ``none`` (no residual, LoRA on) or
    ``host`` (no LoRA either).

    ``probabilities``: of the options offered, summing to 1; ``choice``: index of the likeliest.
    ``tokens``: visual tokens that got a residual; ``active_steps`` of the clip's ``steps`` were
    reached by the signal; ``ratio``: ‖Δh‖/‖h‖ by layer.
    """

    condition: str
    choice: int
    probabilities: tuple[float, ...]
    tokens: int = 0
    steps: int = 0
    active_steps: int = 0
    ratio: dict[int, float] = field(default_factory=dict)


def parse_signals(texts: Sequence[str]) -> dict[str, Path]:
    """Read ``kind=file`` texts.

    Raises :class:`RecipeError` for other forms and repeated kinds, :class:`MissingFileError` for
    missing files.
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
    """Build the sample of one question: the model sees the ``seconds`` of video before ``at`` (by
    default max_frames / fps of the recipe).

    Raises :class:`DataError` for options that cannot be offered, :class:`RecipeError` for a signal
    that the recipe does not read, :class:`VideoError` for a time outside the video.
    """
    if not question.strip():
        raise DataError("The question is empty.")
    if (
        not 2 <= len(options) <= len(LETTERS)
        or len(set(options)) < len(options)
        or not all(o.strip() for o in options)
    ):
        raise DataError(
            f"A question needs 2 to {len(LETTERS)} different, non-empty options; got"
            f" {list(options)}."
        )
    kinds = kinds_of(recipe.signal)
    third_party_hook = sorted(signals.keys() - kinds.keys())
    if third_party_hook:
        raise RecipeError(
            f"The recipe {recipe.name!r} does not read the signal {third_party_hook[0]!r}."
            f" {near_matches(third_party_hook[0], kinds)}"
        )
    missing = [kind for kind in kinds if kind not in signals]
    if missing:
        raise RecipeError(
            f"The recipe {recipe.name!r} reads the signal {missing[0]!r}; give it as"
            f" {missing[0]}=FILE."
        )
    seconds = recipe.sampling.seconds if seconds is None else seconds
    if seconds <= 0:
        raise VideoError(
            f"The question must see some of the video; got {seconds} seconds before it."
        )
    info = probe(video)
    if not 0 <= at <= info.duration + 1 / info.fps:  # the last frame is still on screen
        raise VideoError(
            f"The question at {at:g} s lies outside {video}, which lasts {info.duration:.2f} s."
        )
    return Sample(
        f"{video.name}@{at:g}s",
        "ask",
        video,
        (max(0.0, at - seconds), at),
        question,
        tuple(options),
        0,
        dict(signals),
    )


@show_library_warnings()
def ask(pipeline: Pipeline, modulation: Modulation, sample: Sample) -> list[Answer]:
    """Answer with the signal, then without: no residual, and where the modulation has LoRA also the
    bare host. Errors are never recorded, but raised.
    """
    prepared = pipeline.prepare(sample)
    conditions = ("signal", "none", "host") if modulation.lora is not None else ("signal", "none")
    with modulation.eval().to(pipeline.device).attached(pipeline.model) as attachment:
        return [_answer(pipeline, attachment, prepared, condition) for condition in conditions]


@torch.inference_mode()
def _answer(
    pipeline: Pipeline, attachment: Attachment, prepared: PreparedSample, condition: str
) -> Answer:
    batch = pipeline.collate([prepared])
    own = condition == "signal"
    with attachment.maybe_condition(
        [[prepared.clip(prepared.signal)] if own else []], bare=condition == "host"
    ):
        output = attachment.model(**batch.inputs, **LAST_LOGITS)
    probabilities = batch.option_logits(output)[0].softmax(0)
    assert prepared.grid is not None
    answer = Answer(
        condition,
        int(probabilities.argmax()),
        tuple(probabilities.tolist()),
        steps=prepared.grid.steps,
    )
    if not own:
        return answer
    report = attachment.report()
    return Answer(
        condition,
        answer.choice,
        answer.probabilities,
        report.tokens,
        answer.steps,
        sum(report.active_steps),
        report.ratio,
    )
