"""Predictions made of a host's answers to samples, or of the errors that prevented them."""

import math
from collections.abc import Sequence
from contextlib import suppress

from modulate.data.video_groups import GROUP
from modulate.errors import DataError
from modulate.evaluation.predictions import Prediction
from modulate.evaluation.text_scores import score_text
from modulate.inference.prompts import accepted_answers
from modulate.interfaces.prompt import AnswerForm
from modulate.interfaces.sample import Sample

ERROR_LENGTH = 10_000
"""Most characters that a prediction records of its error."""


def choice(
    sample: Sample, condition: str, scores: Sequence[float], active_steps: int
) -> Prediction:
    """Return the prediction of the option with the largest score.

    A failed one if the right option is not known, or if a score is not finite.
    """
    if sample.answer is None:
        error = DataError("its right option is not known, so that it cannot be evaluated.")
        return failure(sample, condition, error, "letter")
    # With NaN or infinities no score is reliably the largest, and JSON cannot hold them.
    if not all(map(math.isfinite, scores)):
        error = DataError(f"the host's scores of the options are not all finite: {list(scores)}.")
        return failure(sample, condition, error, "letter")
    best = max(range(len(scores)), key=scores.__getitem__)
    return Prediction(
        id=sample.id,
        task=sample.task,
        group=group_of(sample),
        condition=condition,
        answer=sample.answer,
        prediction=best,
        correct=best == sample.answer,
        logits=tuple(round(score, 4) for score in scores),
        active_steps=active_steps,
    )


def text(sample: Sample, condition: str, generated: str, active_steps: int) -> Prediction:
    """Return the prediction of a generated text, with its scores."""
    answers = accepted_answers(sample)
    scores = score_text(generated, answers).rounded()
    return Prediction(
        id=sample.id,
        task=sample.task,
        group=group_of(sample),
        condition=condition,
        answer=None,
        prediction=None,
        correct=scores.exact_match == 1,
        logits=(),
        active_steps=active_steps,
        text=generated,
        answers=answers,
        token_f1=scores.token_f1,
        bleu=scores.bleu,
        rouge_l=scores.rouge_l,
    )


def failure(
    sample: Sample, condition: str, error: Exception, form: AnswerForm = "letter"
) -> Prediction:
    """Return the prediction of a sample that failed; ``form``: how it should have been answered.

    A sample in free text without accepted answers is recorded as one with options, of which the
    right one is not known.
    """
    message = f"{type(error).__name__}: {error}"[:ERROR_LENGTH]
    # File names in error texts may hold surrogates, which UTF-8 files cannot.
    message = message.encode("utf-8", "backslashreplace").decode()
    answers: tuple[str, ...] = ()
    if form == "text":
        with suppress(DataError):
            answers = accepted_answers(sample)
    return Prediction(
        id=sample.id,
        task=sample.task,
        group=group_of(sample),
        condition=condition,
        answer=None if answers else sample.answer,
        prediction=None,
        correct=False,
        logits=(),
        active_steps=0,
        error=message,
        answers=answers,
        token_f1=0.0 if answers else None,
        bleu=0.0 if answers else None,
        rouge_l=0.0 if answers else None,
    )


def group_of(sample: Sample) -> str:
    """Return the group of samples that depend on each other: those of a video."""
    # The pipeline's samples all have one; of others, none depends on another.
    return sample.groups.get(GROUP, sample.id)
