"""One pass over a clip for several questions on it.

In every prompt the clip comes before the question, and attention is causal, so the host's states of
the clip do not depend on the question. The shared prefix goes through the host once; each
question's own tokens then continue from its key-value cache. Residuals and their gradients equal
those of separate forwards up to rounding, provided that all questions have the same signal.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from modulate.hosts.kv_cache import output_cache
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.signal import Signal
from modulate.modulation.clip_inputs import ClipInput


def shared_prefix(
    prepared: Sequence[PreparedSample],
    visual_ids: Sequence[int],
    signals: Sequence[Signal | None] | None = None,
) -> int:
    """Return the number of positions that these prompts can share, or 0 for separate forwards.

    Prompts share positions if they show one clip with one signal, and if all visual tokens lie in
    the positions that they have in common.

    Args:
        prepared: the samples.
        visual_ids: token ids of visual tokens.
        signals: the signal with which each is conditioned; by default its own.
    """
    if signals is None:
        signals = [sample.signal for sample in prepared]
    if len(prepared) < 2 or not _same_clip(prepared, signals):
        return 0
    rows = [sample.inputs["input_ids"][0] for sample in prepared]
    common = _common_length(rows)
    visual = torch.tensor(list(visual_ids))
    # Residuals are written during the pass over the prefix only, so that no visual token may be
    # left for the questions' own pass.
    if any(bool(torch.isin(row[common:], visual).any()) for row in rows):
        return 0
    return common


def _same_clip(prepared: Sequence[PreparedSample], signals: Sequence[Signal | None]) -> bool:
    first = prepared[0]
    if first.grid is None:
        return False
    clip = (first.sample.video, first.sample.window)
    return all(
        sample.grid == first.grid
        and (sample.sample.video, sample.sample.window) == clip
        and _equal(signal, signals[0])
        for sample, signal in zip(prepared, signals, strict=True)
    )


def _common_length(rows: Sequence[Tensor]) -> int:
    """Return the length of the longest common prefix that leaves every row a token of its own."""
    # Each question is answered at its last token, which therefore must not be shared.
    limit = min(map(len, rows)) - 1
    equal = torch.stack([row[:limit] == rows[0][:limit] for row in rows]).all(0)
    return int(equal.long().cumprod(0).sum())


def _equal(first: Any, second: Any) -> bool:
    """Return whether two signals of any kind, or values of them, have equal types and contents.

    Signals need not define ``==``, and arrays define it element by element.
    """
    if type(first) is not type(second):
        return False
    if isinstance(first, Signal):
        return _equal(vars(first), vars(second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            _equal(value, second[key]) for key, value in first.items()
        )
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    return bool(first == second)


def shared_prefix_forward(
    conditioned: Callable[..., Any],
    model: nn.Module,
    prepared: Sequence[PreparedSample],
    clips: Sequence[ClipInput],
    common: int,
) -> Any:
    """Return the output of the host for all questions of ``prepared`` on one clip.

    Its ``logits`` are (question, 1, token id): those at the last token of each question.

    Args:
        conditioned: ``conditioned(rows, **inputs)`` returns the output of ``model`` conditioned
            with ``rows``.
        model: the host. Its cache must support ``batch_repeat_interleave``, as all dynamic caches
            of transformers do.
        prepared: the questions.
        clips: the clip, or nothing for a forward without residuals.
        common: the result of :func:`shared_prefix`, not 0.
    """
    device = next(model.parameters()).device
    prefix = {name: value.to(device) for name, value in _prefix_inputs(prepared[0], common).items()}
    cache = output_cache(conditioned([list(clips)], **prefix, use_cache=True, logits_to_keep=1))
    for filled in cache.values():
        filled.batch_repeat_interleave(len(prepared))
    rows = [sample.inputs["input_ids"][0, common:] for sample in prepared]
    # Padded on the right, after each question's last token. Attention is causal, so no mask is
    # needed, and positions continue from the cache.
    input_ids = pad_sequence(rows, batch_first=True).to(device)
    output = model(input_ids=input_ids, **cache, use_cache=True)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    logits = output.logits[torch.arange(len(rows), device=device), last]
    return type(output)(logits=logits[:, None])


def _prefix_inputs(sample: PreparedSample, common: int) -> dict[str, Tensor]:
    """Return the model inputs of the first ``common`` positions of a prompt.

    Inputs with a value per position are cut; pixels and their grids are taken whole.
    """
    shape = sample.inputs["input_ids"].shape
    return {
        name: value[:, :common] if value.shape[:2] == shape else value
        for name, value in sample.inputs.items()
        if name != "attention_mask"
    }
