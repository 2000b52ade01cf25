"""Prompts as a host's inputs: the user's turn as token ids and patches, and the answers' ids."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modulate.config.recipe import Recipe
from modulate.errors import DataError
from modulate.hosts.host import EncodedPrompt, Host
from modulate.interfaces.components import Sample
from modulate.interfaces.frames import Frames
from modulate.interfaces.prompt import LETTERS
from modulate.interfaces.visual_grid import visual_grid


class PromptEncoder:
    """Encodes a recipe's prompts for ``host`` with its ``processor``.

    Use it from one thread at a time: processors and tokenizers are not thread-safe.
    """

    def __init__(self, recipe: Recipe, host: Host, processor: Any) -> None:
        self._recipe = recipe
        self._host = host
        self._processor = processor

    def encode(
        self,
        frames: Frames | None,
        text: str,
        window: tuple[float, float],
        images: Sequence[NDArray[np.uint8]] = (),
    ) -> EncodedPrompt:
        """Return the user's turn as model inputs.

        ``frames``: None for text only. ``images``: (height, width, 3) uint8, before the clip.
        """
        with self._recipe.host.blame("host", "encode"):
            if frames is None:
                return self._host.encode_text(self._processor, text)
            # Hosts without image support take no `images`, so the argument is left out if empty.
            options = {"images": images} if images else {}
            return self._host.encode(self._processor, text, frames, window, **options)

    def encode_clip(self, frames: Frames, text: str, window: tuple[float, float]) -> EncodedPrompt:
        """Return the user's turn, timed for the host as ``sampling.processor_fps`` says.

        The visual grid holds the true times in either case.
        """
        fps = self._recipe.sampling.processor_fps
        if fps is None:
            return self.encode(frames, text, window)
        nominal_times = tuple(index / fps for index in range(len(frames.times)))
        nominal_window = (0.0, nominal_times[-1])
        encoded = self.encode(replace(frames, times=nominal_times), text, nominal_window)
        # The processor saw nominal times, and so did the grid that it returned. Signals and
        # features are aligned by true time, so the grid is built again from the frames' own.
        frames_per_step = math.ceil(len(frames.times) / encoded.grid.steps)
        grid = visual_grid(
            frames.times, frames_per_step, encoded.grid.rows, encoded.grid.cols, window
        )
        return replace(encoded, grid=grid)

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
