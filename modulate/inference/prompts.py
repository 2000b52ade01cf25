"""Prompts as a host's inputs: the user's turn as token ids and patches, and the answers' ids."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modulate.config.recipe import Recipe
from modulate.errors import DataError
from modulate.hosts.encoding import EncodedPrompt, check_encoded
from modulate.hosts.host import Host
from modulate.interfaces.messages import Content, Picture, VideoClip, user_turn
from modulate.interfaces.prompt import LETTERS
from modulate.interfaces.sample import Sample
from modulate.interfaces.visual_grid import VisualGrid, visual_grid


def _with_nominal_times(part: Content, fps: float) -> Content:
    if not isinstance(part, VideoClip):
        return part
    times = tuple(index / fps for index in range(len(part.frames.times)))
    return VideoClip(replace(part.frames, times=times), (0.0, times[-1]))


def _with_true_times(part: VideoClip | Picture, grid: VisualGrid) -> VisualGrid:
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
        encoded = self.encode([_with_nominal_times(part, fps) for part in content])
        # The processor saw nominal times, and so did the grids that it returned. Signals and
        # features are aligned by true time, so the grids are built again from the frames' own.
        visuals = [part for part in content if not isinstance(part, str)]
        grids = map(_with_true_times, visuals, encoded.grids)
        return replace(encoded, grids=tuple(grids))

    def option_ids(self, sample: Sample) -> Tensor:
        """Return the token id of every answer to be scored, (option,) int64.

        Raises :class:`DataError` for an answer that is not a single known token.
        """
        if self._recipe.answer == "word":
            answers: Sequence[str] = sample.options
        else:
            count = len(sample.options)
            answers = LETTERS[: max(4, count) if self._recipe.letters == "four" else count]
        tokenizer = self._processor.tokenizer
        ids = []
        for answer in answers:
            tokens = tokenizer.encode(answer, add_special_tokens=False)
            if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
                raise DataError(
                    f"the answer {answer!r} is not one known token of the host's tokenizer (ids"
                    f" {tokens}); offer options of one known word each, or score letters (the"
                    " recipe's `answer: letter`)."
                )
            ids.append(tokens[0])
        return torch.tensor(ids)
