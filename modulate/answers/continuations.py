"""Token ids of answers as a host's own turn begins, right after its prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modulate.errors import DataError, HostError
from modulate.hosts.encoding import render
from modulate.hosts.host import Host, base_model
from modulate.interfaces.messages import Message, user_turn


def end_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that end a host's turn, those of its generation config first.

    Raises :class:`HostError` if there is none.
    """
    config = getattr(base_model(model), "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    found = [*(ends if isinstance(ends, list | tuple) else [ends]), tokenizer.eos_token_id]
    ids = list(dict.fromkeys(int(number) for number in found if number is not None))
    if not ids:
        raise HostError(
            f"{type(base_model(model)).__name__} names no token that ends a turn: neither its"
            " generation config nor its tokenizer has an eos_token_id."
        )
    return ids


class Continuations:
    """Tokenizes answers so that they continue a prompt.

    The host's chat template says what comes between the prompt and an answer, such as a space, and
    how the turn ends. Use it from one thread at a time: tokenizers are not thread-safe.

    Args:
        host: the host.
        processor: its processor.
    """

    def __init__(self, host: Host, processor: Any) -> None:
        self._host = host
        self._processor = processor
        self._tokenizer = processor.tokenizer

    def of(self, prompt: str, answers: Sequence[str], with_end: bool = False) -> list[Tensor]:
        """Return the token ids of each answer, (token,) int64.

        The ids of prompt and answer together begin with those of the prompt wherever the tokenizer
        keeps the boundary; elsewhere the answer is tokenized by itself.

        Args:
            prompt: text of the user's turn, after clips and pictures.
            answers: the answers' texts.
            with_end: append the token that ends the turn.

        Raises :class:`DataError` for an empty answer or one with unknown tokens.
        """
        for answer in answers:
            if not answer.strip():
                raise DataError(f"the answer {answer!r} is empty, so that it cannot be scored.")
        # Clips come first in a turn, so they do not change how it ends.
        turn = user_turn(prompt)
        begun = self._render(turn, True)
        prompt_ids = self._ids(begun)
        return [self._continue(turn, begun, prompt_ids, answer, with_end) for answer in answers]

    def _continue(
        self,
        turn: Sequence[Message],
        begun: str,
        prompt_ids: list[int],
        answer: str,
        with_end: bool,
    ) -> Tensor:
        answered = self._render([*turn, Message("assistant", (answer,))], False)
        whole = self._ids(begun + _between(begun, answered, answer) + answer)
        ids = whole[len(prompt_ids) :]
        if whole[: len(prompt_ids)] != prompt_ids:
            ids = self._ids(answer)
        unknown = self._tokenizer.unk_token_id
        if not ids or (unknown is not None and unknown in ids):
            raise DataError(
                f"the answer {answer!r} cannot be scored: not all of its tokens are known to the"
                f" host's tokenizer (ids {ids})."
            )
        if with_end:
            ids = [*ids, self._end_id(answered, answer)]
        return torch.tensor(ids)

    def _end_id(self, answered: str, answer: str) -> int:
        """Return the token that ends the turn in the template, else the host's first such token."""
        ends = end_ids(self._host.model, self._tokenizer)
        after = self._ids(answered[answered.rfind(answer) + len(answer) :])
        return next((number for number in after if number in ends), ends[0])

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        return render(self._processor, messages, [], generation)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _between(begun: str, answered: str, answer: str) -> str:
    """Return the white space that the template puts between a prompt and the answer."""
    if not answered.startswith(begun):
        return ""
    between, found, _ = answered[len(begun) :].partition(answer)
    return between if found and not between.strip() else ""
