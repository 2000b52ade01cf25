"""Prompts as a host's inputs: the user's turn as token ids and patches, and the answers' ids."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modulate.answers.continuations import Continuations
from modulate.config.recipe import Recipe
from modulate.errors import DataError
from modulate.hosts.encoding import EncodedPrompt, check_encoded
from modulate.hosts.host import Host
from modulate.inference.option_tokens import letter_ids, single_token_ids
from modulate.interfaces.messages import Content, Picture, VideoClip, user_turn
from modulate.interfaces.sample import Sample
from modulate.interfaces.visual_grid import VisualGrid, visual_grid


def with_nominal_times(part: Content, fps: float) -> Content:
    """Return a clip as if its frames came at ``fps`` from 0 s on; other parts as they are."""
    if not isinstance(part, VideoClip):
        return part
    times = tuple(index / fps for index in range(len(part.frames.times)))
    return VideoClip(replace(part.frames, times=times), (0.0, times[-1]))


def with_true_times(part: VideoClip | Picture, grid: VisualGrid) -> VisualGrid:
    """Return the grid of a clip that was encoded with other times, by its frames' own."""
    if isinstance(part, Picture):
        return grid
    times = part.frames.times
    return visual_grid(times, math.ceil(len(times) / grid.steps), grid.rows, grid.cols, part.window)


class PromptEncoder:
    """Encodes a recipe's prompts for ``host`` with its ``processor``.

    Use it from one thread at a time: processors and tokenizers are not thread-safe.
    """

    def __init__(self, recipe: Recipe, host: Host, processor: Any) -> None:
        self._recipe = recipe
        self._host = host
        self._processor = processor
        self._continuations = Continuations(host, processor)
        self._scores_first = recipe.likelihood == "first"

    def encode(self, content: Sequence[Content]) -> EncodedPrompt:
        """Return the user's turn as model inputs, with a grid for each clip and picture in it."""
        with self._recipe.host.blame("host", "encode"):
            encoded = self._host.encode(self._processor, user_turn(*content))
            visuals = sum(not isinstance(part, str) for part in content)
            return check_encoded(encoded, self._host, visuals)

    def encode_sample(self, content: Sequence[Content]) -> EncodedPrompt:
        """Return the user's turn, timed for the host as ``sampling.processor_fps`` says.

        The visual grids hold the true times in either case.
        """
        fps = self._recipe.sampling.processor_fps
        if fps is None:
            return self.encode(content)
        encoded = self.encode([with_nominal_times(part, fps) for part in content])
        # The processor saw nominal times, and so did the grids that it returned. Signals and
        # features are aligned by true time, so the grids are built again from the frames' own.
        visuals = [part for part in content if not isinstance(part, str)]
        grids = map(with_true_times, visuals, encoded.grids)
        return replace(encoded, grids=tuple(grids))

    def answer_ids(self, sample: Sample, text: str) -> tuple[Tensor, ...]:
        """Return the (token,) ids of every answer to be scored, as the recipe's ``answer`` says.

        Options have one entry each; a question in free text has its first accepted answer, with the
        end of the turn.

        Args:
            sample: the question.
            text: its prompt, which answers of several tokens continue.

        Raises :class:`DataError` for an answer that cannot be scored in this form, and for a
        question that has none.
        """
        form = self._recipe.answer
        if form == "text":
            return tuple(self._continuations.of(text, accepted_answers(sample)[:1], with_end=True))
        if not sample.options:
            raise DataError(
                f"it offers no options, which `answer: {form}` scores; for free text set `answer:"
                " text`."
            )
        if form == "likelihood":
            found = self._continuations.of(text, sample.options)
            return tuple(_first_tokens(found, sample)) if self._scores_first else tuple(found)
        tokenizer = self._processor.tokenizer
        if form == "word":
            ids = single_token_ids(tokenizer, sample.options)
        else:
            ids = letter_ids(tokenizer, len(sample.options), self._recipe.letters == "four")
        return tuple(torch.tensor([number]) for number in ids)


def accepted_answers(sample: Sample) -> tuple[str, ...]:
    """Return the accepted answers in text; of a question with options, the right one's text.

    Raises :class:`DataError` if there is none.
    """
    if sample.answers:
        return sample.answers
    if sample.answer is None:
        raise DataError("no accepted answer is known, which `answer: text` is scored by.")
    return (sample.options[sample.answer],)


def _first_tokens(answers: Sequence[Tensor], sample: Sample) -> list[Tensor]:
    """Return each option's first token. Raises :class:`DataError` where two have the same."""
    firsts = [answer[:1] for answer in answers]
    numbers = [int(first) for first in firsts]
    twice = [
        option
        for option, number in zip(sample.options, numbers, strict=True)
        if numbers.count(number) > 1
    ]
    if twice:
        raise DataError(
            f"the options {twice[0]!r} and {twice[1]!r} begin with the same token, so `likelihood:"
            " first` cannot tell them apart; use `sum` or `mean`."
        )
    return firsts
