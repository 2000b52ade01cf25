"""One pass over clips for several questions on them.

In every prompt the clips come before the question, and attention is causal, so the host's states of
the clips do not depend on the question. The shared prefix goes through the host once; each
question's own tokens then continue from its key-value cache. Residuals and their gradients equal
those of separate forwards up to rounding, provided that all questions have the same signals.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from modulate.answers.likelihood import cut
from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate.hosts.kv_cache import output_cache
from modulate.hosts.text_positions import align_text_positions
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.signal import Signal
from modulate.modulation.clip_inputs import ClipInput


def shared_prefix(
    prepared: Sequence[PreparedSample],
    visual_ids: Sequence[int],
    signals: Sequence[Sequence[Signal | None]] | None = None,
) -> int:
    """Return the number of positions that these prompts can share, or 0 for separate forwards.

    Prompts share positions if they show the same clips with the same signals, and if all visual
    tokens lie in the positions that they have in common.

    Args:
        prepared: the samples.
        visual_ids: token ids of visual tokens.
        signals: the signals with which the clips of each are conditioned, none for no residual; by
            default its own.
    """
    if signals is None:
        signals = [sample.signals for sample in prepared]
    if len(prepared) < 2 or not _same_clips(prepared, signals):
        return 0
    rows = [sample.inputs["input_ids"][0] for sample in prepared]
    common = _common_length(rows)
    visual = torch.tensor(list(visual_ids))
    # Residuals are written during the pass over the prefix only, so that no visual token may be
    # left for the questions' own pass.
    if any(bool(torch.isin(row[common:], visual).any()) for row in rows):
        return 0
    return common


def _same_clips(
    prepared: Sequence[PreparedSample], signals: Sequence[Sequence[Signal | None]]
) -> bool:
    first = prepared[0]
    shown = _shown(first)
    return bool(first.clips) and all(
        _shown(sample) == shown and _equal(list(own), list(signals[0]))
        for sample, own in zip(prepared, signals, strict=True)
    )


def _shown(sample: PreparedSample) -> list[tuple[Any, ...]]:
    """Return what a host sees of a sample's clips, in a form that can be compared."""
    return [
        (shown.file, shown.is_image, clip.window, clip.grid)
        for shown, clip in zip(sample.sample.clips, sample.clips, strict=False)
    ]


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
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_equal, first, second))
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
    """Return the output of the host for all questions of ``prepared`` on the same clips.

    Its ``logits`` are (question, 1, token id): those at the last token of each question.

    Args:
        conditioned: ``conditioned(rows, **inputs)`` returns the output of ``model`` conditioned
            with ``rows``.
        model: the host. Its cache must support ``batch_repeat_interleave``, as all dynamic caches
            of transformers do.
        prepared: the questions.
        clips: the clips, or nothing for a forward without residuals.
        common: the result of :func:`shared_prefix`, not 0.
    """
    device = next(model.parameters()).device

    def begun(length: int) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in cut(prepared[0].inputs, length).items()}

    prefix = begun(common)
    cache = output_cache(conditioned([list(clips)], **prefix, use_cache=True, logits_to_keep=1))
    align_text_positions(understand(model), begun(common + 1), common)
    for filled in cache.values():
        try:
            filled.batch_repeat_interleave(len(prepared))
        except AttributeError as error:
            # Linear attention and convolutions keep states that transformers cannot repeat.
            raise HostError(
                f"{type(model).__name__} keeps a cache that cannot be repeated for several"
                f" questions on a clip ({error}); set batch_by to any."
            ) from error
    rows = [sample.inputs["input_ids"][0, common:] for sample in prepared]
    # Padded on the right, after each question's last token. Attention is causal, so no mask is
    # needed, and positions continue from the cache.
    input_ids = pad_sequence(rows, batch_first=True).to(device)
    output = model(input_ids=input_ids, **cache, use_cache=True)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    logits = output.logits[torch.arange(len(rows), device=device), last]
    return type(output)(logits=logits[:, None])
