"""Where one forward holds visual tokens.

Everything is derived from what the forward really gets: token ids, token types that tell modalities
apart, and the absolute position through the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from modulate.errors import ConditioningError, HostError
from modulate.hosts.kv_cache import cache_length, find_cache, refuse_unseen_past

VISION = (
    "pixel_values",
    "mm_encoder_outputs",
    "image_patches",
    "image_embeds",
    "video_embeds",
    "image_features",
    "video_features",
)
"""How the names of arguments begin that bring pictures: a placeholder beside one was not generated.
"""


@dataclass(frozen=True)
class ForwardTokens:
    """What one forward gets, as far as it says where visual tokens are.

    ``mask``: (row, position) bool, placeholders of vision; ``some``: whether any token looks like
    one; ``past``: absolute position of its first column; ``typed``: token types, or positions given
    by hand, vouch that no generated placeholder is in the mask; ``ids``: the token ids, where there
    are any; ``attention``: the attention mask, if one came; ``shown``: pictures came too;
    ``by_hand``: the mask is the caller's; ``textual``: which placeholders are text by their type,
    and the argument that says so.
    """

    mask: Tensor
    some: bool
    past: int
    typed: bool
    ids: Tensor | None
    attention: Any = None
    cache: Any = None
    visual_ids: Sequence[int] = ()
    shown: bool = False
    by_hand: bool = False
    textual: tuple[str, Tensor] | None = None

    @property
    def attended(self) -> Tensor:
        """Return (row, position) bool, where these columns are no padding; without an attention
        mask of two axes, everywhere.
        """
        rows, length = self.mask.shape
        if isinstance(self.attention, Tensor) and self.attention.shape == (
            rows,
            self.past + length,
        ):
            return self.attention[:, self.past :].to(self.mask.device).bool()
        return torch.ones_like(self.mask)

    @property
    def plain(self) -> bool:
        """Return whether the ids are known, and none is a placeholder."""
        return self.ids is not None and not bool(placeholders_in(self.ids, self.visual_ids).any())


def columns(
    given: dict[str, Any], visual_ids: Sequence[int], positions: Tensor | None, types: Sequence[str]
) -> ForwardTokens:
    """Read the arguments of a forward.

    Args:
        given: arguments of the host's entry module by name.
        visual_ids: ids of the placeholders.
        positions: (row, absolute position) bool, the visual tokens, where the caller knows them; they are taken instead of the ids.
        types: names of the arguments in which 0 is text and everything else vision.

    Raises :class:`HostError` when only embeddings came and no positions are given,
    :class:`ConditioningError` when positions are of other rows.
    """
    cache: Any = find_cache(given)
    ids: Any = given.get("input_ids")
    tokens = ids if ids is not None else given.get("inputs_embeds")
    if tokens is None or (ids is None and positions is None):
        raise HostError(
            "This forward got inputs_embeds without input_ids, so visual tokens cannot be located;"
            " pass input_ids, or condition(…, positions=mask)."
        )
    if cache is None:
        refuse_unseen_past(given, tokens)
    past = cache_length(cache)
    shown = any(name.startswith(VISION) and value is not None for name, value in given.items())
    more = {
        "attention": given.get("attention_mask"),
        "cache": cache,
        "visual_ids": tuple(visual_ids),
        "shown": shown,
    }
    if positions is not None:
        mask = _here(positions.to(tokens.device), past, *tokens.shape[:2])
        return ForwardTokens(mask, bool(mask.any()), past, True, ids, by_hand=True, **more)
    mask = placeholders_in(ids, visual_ids)
    if not bool(mask.any()):
        return ForwardTokens(mask, False, past, False, ids, **more)
    name, kinds = _types(given, past, ids, types)
    if kinds is None:
        return ForwardTokens(mask, True, past, False, ids, **more)
    return ForwardTokens(
        mask & (kinds != 0), True, past, True, ids, textual=(name, mask & (kinds == 0)), **more
    )


def placeholders_in(ids: Tensor, visual_ids: Sequence[int]) -> Tensor:
    """Return (row, position) bool: where ``ids`` are placeholders."""
    first, *others = (
        # a number at a time: nothing has to be brought to the ids' device, as isin's list had
        visual_ids
    )
    mask = ids == first
    for visual in others:
        mask |= ids == visual
    return mask


def _here(positions: Tensor, past: int, rows: int, length: int) -> Tensor:
    """Return (row, position) bool for the positions of one forward; what lies beyond those given
    was generated.
    """
    here = positions[:, past : past + length]
    mask = pad(here, (0, length - here.shape[1]))
    if rows % len(mask) == 0:
        return mask.repeat_interleave(rows // len(mask), 0)
    if bool(mask.any()):
        raise ConditioningError(
            f"`positions` has {len(mask)} rows, the forward a batch of {rows}: the batch must be a"
            " multiple of the rows."
        )
    return mask.new_zeros(rows, length)


def _types(
    given: dict[str, Any], past: int, ids: Tensor, names: Sequence[str]
) -> tuple[str, Tensor | None]:
    """Return the name and the token types of exactly the positions of ``ids``; some hosts are
    handed those of the whole prompt so far.
    """
    for name in names:
        types = given.get(name)
        if types is None or types.ndim != 2 or types.shape[0] != ids.shape[0]:
            continue
        if types.shape[1] == past + ids.shape[1]:
            types = types[:, past:]
        if types.shape == ids.shape:
            return name, types.to(ids.device)
    return "", None


def begins_with(ids: Tensor | None, prompt: Tensor | None) -> bool:
    """Return whether every row of ``ids`` begins with its row of ``prompt`` (rows may be
    multiplied: beams).
    """
    if (
        ids is None
        or prompt is None
        or ids.shape[0] % prompt.shape[0]
        or ids.shape[1] < prompt.shape[1]
    ):
        return False
    return torch.equal(
        ids[:, : prompt.shape[1]], prompt.repeat_interleave(ids.shape[0] // prompt.shape[0], 0)
    )
