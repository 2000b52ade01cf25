"""Answers of a modulated host to batches of questions, under several conditions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from modulate.answers.continuations import Continuations
from modulate.answers.likelihood import mixed_scores, require_causal
from modulate.config.usage import Usage
from modulate.inference.answer import Answer
from modulate.inference.batching import LAST_LOGITS, padding_id
from modulate.inference.conversation import ConversationEncoder, EncodedConversation, Turn
from modulate.inference.option_tokens import letter_ids, single_token_ids
from modulate.modulation.attachment import Attachment, AttachmentReport
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.module import Modulation
from modulate.utils.library_warnings import show_library_warnings

STREAMING = frozenset({"streamer", "stopping_criteria"})
"""Arguments of ``generate`` that belong to the main answer only, not to its comparisons."""


@dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer; without options, for generated text.

    Attributes:
        turns: what was said so far.
        options: the options' texts.
        labels: the options as the caller wrote them, maybe with letters in front.
    """

    turns: tuple[Turn, ...]
    options: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class Answerer:
    """Answers questions with a host and a modulation.

    Args:
        encoder: makes model inputs and conditioning of conversations.
        model: the host as loaded.
        modulation: attached while questions are answered.
        usage: how options are scored.
    """

    def __init__(
        self, encoder: ConversationEncoder, model: nn.Module, modulation: Modulation, usage: Usage
    ) -> None:
        self._encoder = encoder
        self._model = model
        self._modulation = modulation
        self._usage = usage
        self._device = next(model.parameters()).device

    @show_library_warnings()
    @torch.inference_mode()
    def answers(
        self,
        batch: Sequence[Question],
        compare: Sequence[str],
        max_new_tokens: int,
        generation: Mapping[str, Any],
    ) -> list[Answer]:
        """Answer questions, all with options or all without, each with comparisons beside it."""
        if batch[0].options and self._scores_likelihoods:
            require_causal(self._encoder.host)
        encoded = [self._encoder.encode(asked.turns) for asked in batch]
        inputs = self._join(encoded)
        main = "signal" if any(each.has_signal for each in encoded) else "none"
        answers: list[list[Answer]] = []
        with self._modulation.attached(self._model) as attachment:
            for condition in [main, *(each for each in compare if each != main)]:
                rows = [_clips(each, condition) for each in encoded]
                with attachment.maybe_condition(rows, bare=condition == "host"):
                    if batch[0].options:
                        found = self._scored(encoded, inputs, batch, condition)
                    else:
                        found = self._generated(inputs, condition, max_new_tokens, generation)
                answers.append(_with_reports(found, attachment, rows))
                generation = {k: v for k, v in generation.items() if k not in STREAMING}
        return [own.beside([many[i] for many in answers[1:]]) for i, own in enumerate(answers[0])]

    @property
    def _scores_likelihoods(self) -> bool:
        """Whether options are scored by their tokens: letters and words are single ones."""
        return self._usage.answer in ("likelihood", "text")

    @property
    def _pad_id(self) -> int:
        return padding_id(self._encoder.processor.tokenizer)

    def _join(self, encoded: Sequence[EncodedConversation]) -> dict[str, Tensor]:
        joined = self._encoder.host.collate([each.inputs for each in encoded], self._pad_id)
        return {name: value.to(self._device) for name, value in joined.items()}

    def _scored(
        self,
        encoded: Sequence[EncodedConversation],
        inputs: Mapping[str, Tensor],
        batch: Sequence[Question],
        condition: str,
    ) -> list[Answer]:
        if self._scores_likelihoods:
            scores = self._likelihoods(encoded, batch)
        else:
            last = self._model(**inputs, **LAST_LOGITS).logits[:, -1].float()
            ids = [self._option_ids(asked.options) for asked in batch]
            scores = [logits[of_options] for logits, of_options in zip(last, ids, strict=True)]
        answers = []
        for of_options, asked in zip(scores, batch, strict=True):
            chances = of_options.softmax(0)[: len(asked.options)].tolist()
            probabilities = dict(zip(asked.labels, chances, strict=True))
            best = max(asked.labels, key=probabilities.__getitem__)
            answers.append(Answer(condition, best, probabilities))
        return answers

    def _likelihoods(
        self, encoded: Sequence[EncodedConversation], batch: Sequence[Question]
    ) -> list[Tensor]:
        """Return (option,) log-likelihoods of each question's options, after its conversation.

        Those of a modulation that was trained on text are sums over all tokens.
        """
        host = self._encoder.host
        continuations = Continuations(host, self._encoder.processor)
        prompts = [str(asked.turns[-1].parts[-1]) for asked in batch]
        answers = [
            continuations.of(prompt, asked.options)
            for prompt, asked in zip(prompts, batch, strict=True)
        ]
        inputs = [each.inputs for each in encoded]
        scores = mixed_scores(self._model, host, inputs, answers, self._pad_id)
        return list(scores.option_scores(self._usage.likelihood))

    def _generated(
        self,
        inputs: Mapping[str, Tensor],
        condition: str,
        max_new_tokens: int,
        generation: Mapping[str, Any],
    ) -> list[Answer]:
        tokenizer = self._encoder.processor.tokenizer
        arguments = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
        model: Any = self._model
        output = model.generate(**inputs, **arguments)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        ends = _end_ids(model, tokenizer)
        return [
            Answer(condition, text.strip(), is_complete=bool(ends & set(row.tolist())))
            for text, row in zip(texts, new, strict=True)
        ]

    def _option_ids(self, options: Sequence[str]) -> list[int]:
        """Return the token ids to choose from; those of the options come first."""
        form = self._usage.answer
        tokenizer = self._encoder.processor.tokenizer
        if form == "word":
            return single_token_ids(tokenizer, options)
        return letter_ids(tokenizer, len(options), self._usage.letters == "four")


def _clips(encoded: EncodedConversation, condition: str) -> list[ClipInput]:
    if condition == "signal":
        return encoded.clips
    return encoded.blank() if condition == "blank" else []


def _with_reports(
    answers: Sequence[Answer], attachment: Attachment, rows: Sequence[Sequence[ClipInput]]
) -> list[Answer]:
    """Return each answer with its part of the attachment's report on the whole batch."""
    if not any(rows):
        return list(answers)
    report = attachment.report()
    reported = []
    start = 0
    for answer, row in zip(answers, rows, strict=True):
        end = start + sum(clip.signal is not None for clip in row)
        reported.append(replace(answer, report=_part(report, start, end)))
        start = end
    return reported


def _part(report: AttachmentReport, start: int, end: int) -> AttachmentReport:
    return replace(
        report, steps=report.steps[start:end], active_steps=report.active_steps[start:end]
    )


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that end a text."""
    ends = model.generation_config.eos_token_id
    ids = ends if isinstance(ends, list) else [ends]
    return {number for number in (*ids, tokenizer.eos_token_id) if number is not None}
