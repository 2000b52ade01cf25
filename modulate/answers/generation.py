"""Greedy generation of answers in text."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}
"""The most probable token at every step, whatever the host's own generation config says."""


def generate_greedily(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    ends: Sequence[int],
    pad_id: int,
) -> list[Tensor]:
    """Return the ids of each row's answer, up to the end of its turn and without it.

    Args:
        model: the host, called inside of the caller's conditioning.
        inputs: prompts, padded on the left.
        max_new_tokens: most tokens of an answer; a longer one is cut off.
        ends: ids that end a turn.
        pad_id: id that fills rows which end before others.
    """
    generate: Any = model.generate
    output = generate(
        **inputs,
        **GREEDY,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=pad_id,
    )
    rows = output[:, inputs["input_ids"].shape[1] :].cpu()
    return [_until_end(row, ends) for row in rows]


def _until_end(ids: Tensor, ends: Sequence[int]) -> Tensor:
    for place, number in enumerate(ids.tolist()):
        if number in ends:
            return ids[:place]
    return ids
