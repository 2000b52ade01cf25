"""Questions on one clip: which these are, and one pass over its visual tokens for all of them, then
every question's own tokens on the cache that it filled.

The clip comes before the question in every prompt, and attention looks back only: what a host makes
of the clip does not depend on the question. Residuals, and their gradients, are the same as one by
one, up to rounding; only the signal must be one and the same too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
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
    """Return how many positions these prompts have in common, if they show one clip with one signal
    and may be asked together; else 0.

    ``signals``: what each is conditioned with, by default its own. 0 as well for a single prompt:
    nothing is gained.
    """
    first = prepared[0]
    heard = signals or [p.signal for p in prepared]
    if (
        len(prepared) < 2
        or first.grid is None
        or not all(
            p.grid == first.grid and _same(s, heard[0])
            for p, s in zip(prepared, heard, strict=True)
        )
    ):
        return 0
    if any(
        (p.sample.video, p.sample.window) != (first.sample.video, first.sample.window)
        for p in prepared
    ):
        return 0
    rows = [p.inputs["input_ids"][0] for p in prepared]
    shortest = min(map(len, rows)) - 1  # every question keeps a token of its own, to be answered at
    agree = torch.stack([(row[:shortest] == rows[0][:shortest]) for row in rows]).all(0)
    common = int(agree.long().cumprod(0).sum())
    ids = torch.tensor(list(visual_ids))
    return 0 if any(bool(torch.isin(row[common:], ids).any()) for row in rows) else common


def _same(a: Any, b: Any) -> bool:
    """Return whether two signals are equal, whatever their kind: the same type, made of the same
    values.
    """
    if isinstance(a, Signal) and type(a) is type(b):
        return vars(a).keys() == vars(b).keys() and all(
            _same(v, vars(b)[k]) for k, v in vars(a).items()
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


def answer_together(
    ask: Callable[..., Any],
    model: nn.Module,
    prepared: Sequence[PreparedSample],
    clips: Sequence[ClipInput],
    common: int,
) -> Any:
    """Ask the host about one clip, conditioned with ``clips`` (that clip, or nothing), all
    questions of ``prepared`` at once.

    Returns an output of the host's own class whose ``logits`` are (question, 1, token id): those
    that each question is answered with.

    ``ask``: rows and inputs → the output of ``model`` conditioned with them. ``common``: what
    :func:`shared_prefix` returned. Needs a host with a cache that can be repeated, which all of
    transformers' dynamic caches can.
    """
    first = prepared[0].inputs
    device = next(model.parameters()).device
    rows = [p.inputs["input_ids"][0, common:] for p in prepared]
    start: dict[str, Any] = {
        k: v[:, :common] if v.shape[:2] == first["input_ids"].shape else v
        for k, v in first.items()
        if k != "attention_mask"
    }
    start = {k: v.to(device) for k, v in start.items()}
    cache = output_cache(ask([list(clips)], **start, use_cache=True, logits_to_keep=1))
    for filled in cache.values():
        filled.batch_repeat_interleave(len(rows))
    # Padded on the right, where nothing that counts looks: so no mask is needed, and positions go
    # on from the cache.
    output = model(
        input_ids=pad_sequence(rows, batch_first=True).to(device), **cache, use_cache=True
    )
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    return type(output)(logits=output.logits[torch.arange(len(rows), device=device), last][:, None])
