"""Positions of text that continues a key-value cache, for hosts whose clips have 3-D positions.

Hosts with M-RoPE keep an offset between a token's index and its position from their last prompt.
They take it from the largest position in that prompt, which after a clip can be that of its last
time step, whereas text after a clip begins behind the clip's rows and columns. A prompt that is cut
behind its clip, and continues from the cache, would then get other positions than in one piece.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modulate.hosts.host import Host


def align_text_positions(host: Host, inputs: Mapping[str, Tensor], prefix: int) -> None:
    """Let the host's next tokens have the positions that they have in the uncut prompt.

    Call it between the forward of a prompt's first ``prefix`` positions and that of its rest. It
    does nothing for hosts without such an offset.

    Args:
        host: the host, whose last forward was that of the prefix.
        inputs: model inputs of the whole prompts without padding up to ``prefix``, which is where
            text follows in all of them.
        prefix: number of positions in the cache.
    """
    entry: Any = host.entry
    if not isinstance(getattr(entry, "rope_deltas", None), Tensor):
        return
    locate = getattr(entry, "get_rope_index", None)
    if locate is None:
        return
    ids = inputs["input_ids"]
    if not torch.isin(ids, torch.tensor(list(host.visual_ids.values()), device=ids.device)).any():
        # The offset is still that of an earlier prompt, with a clip.
        entry.rope_deltas = torch.zeros_like(entry.rope_deltas[:1]).repeat(len(ids), 1)
        return
    names = inspect.signature(locate).parameters
    shape = ids.shape
    # With one token of text behind the prefix, whose position is the one that is looked for.
    cut = {
        name: value[:, : prefix + 1] if value.shape[:2] == shape else value
        for name, value in inputs.items()
        if name in names and name != "attention_mask"
    }
    positions, _ = locate(**cut)
    following = positions[0, :, prefix]
    entry.rope_deltas = (following - prefix).to(entry.rope_deltas)[:, None]
