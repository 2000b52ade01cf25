"""Where one forward holds visual tokens.

Everything is derived from what the forward actually gets: token ids, token types that tell
modalities apart, and the absolute position given by the cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from modulate.errors import ConditioningError, HostError
from modulate.hosts.kv_cache import cache_length, find_cache, refuse_unseen_past

VISION_PREFIXES = (
    "pixel_values",
    "mm_encoder_outputs",
    "image_patches",
    "image_embeds",
    "video_embeds",
    "image_features",
    "video_features",
)
"""Prefixes of the arguments that carry pictures. A placeholder beside one was not generated."""


@dataclass(frozen=True, kw_only=True)
class ForwardTokens:
    """The tokens of one forward, as far as they say where visual tokens are.

    ``visual``: (row, position) bool, placeholders of vision. ``has_placeholders``: whether any
    token looks like one, before token types are consulted. ``past_length``: absolute position of
    the first column. ``trusted``: token types, or positions from the caller, rule out that
    ``visual`` holds a generated placeholder. ``ids``: the token ids, if any came.
    ``has_vision_inputs``: pictures came too. ``from_caller``: ``visual`` is the caller's own mask.
    ``text_placeholders``: the argument with the token types, and (row, position) bool, the
    placeholders that are text by their type.
    """

    visual: Tensor
    has_placeholders: bool
    past_length: int
    trusted: bool
    ids: Tensor | None
    attention_mask: Any = None
    cache: Any = None
    visual_ids: Sequence[int] = ()
    has_vision_inputs: bool = False
    from_caller: bool = False
    text_placeholders: tuple[str, Tensor] | None = None

    @property
    def attended(self) -> Tensor:
        """Return (row, position) bool: where these tokens are not padding.

        True everywhere without a two-axis attention mask over all positions so far.
        """
        rows, length = self.visual.shape
        mask = self.attention_mask
        # Masks of four axes, or of these tokens alone, do not tell where the padding is.
        if isinstance(mask, Tensor) and mask.shape == (rows, self.past_length + length):
            return mask[:, self.past_length :].to(self.visual.device).bool()
        return torch.ones_like(self.visual)

    @property
    def is_text_only(self) -> bool:
        """Return whether the ids are known and none is a placeholder."""
        return self.ids is not None and not bool(placeholders_in(self.ids, self.visual_ids).any())


@dataclass(frozen=True)
class TokenLocator:
    """Finds the visual tokens among the arguments of a forward.

    ``visual_ids``: token ids of the host's placeholders. ``type_arguments``: names of the arguments
    in which 0 means text and everything else vision. ``positions``: (row, absolute position) bool,
    the visual tokens if the caller knows them; they replace the ids.
    """

    visual_ids: tuple[int, ...]
    type_arguments: tuple[str, ...]
    positions: Tensor | None = None

    def locate(self, arguments: Mapping[str, Any]) -> ForwardTokens:
        """Return the tokens of a forward of the host's entry module, from its named arguments.

        Raises :class:`HostError` when only embeddings came and no positions are known,
        :class:`ConditioningError` when the positions have other rows than the forward.
        """
        cache: Any = find_cache(arguments)
        ids: Any = arguments.get("input_ids")
        inputs = ids if ids is not None else arguments.get("inputs_embeds")
        if inputs is None or (ids is None and self.positions is None):
            raise HostError(
                "This forward got inputs_embeds without input_ids, so visual tokens cannot be"
                " located; pass input_ids, or condition(…, positions=mask)."
            )
        # Tokens that attend to an unseen past would be taken for the first ones of a prompt.
        if cache is None:
            refuse_unseen_past(arguments, inputs)
        past_length = cache_length(cache)
        tokens = partial(
            ForwardTokens,
            past_length=past_length,
            ids=ids,
            attention_mask=arguments.get("attention_mask"),
            cache=cache,
            visual_ids=self.visual_ids,
            has_vision_inputs=any(
                name.startswith(VISION_PREFIXES) and value is not None
                for name, value in arguments.items()
            ),
        )
        if self.positions is not None:
            rows, length = inputs.shape[:2]
            visual = _slice_positions(self.positions.to(inputs.device), past_length, rows, length)
            return tokens(
                visual=visual, has_placeholders=bool(visual.any()), trusted=True, from_caller=True
            )
        return self._locate_by_ids(arguments, ids, past_length, tokens)

    def _locate_by_ids(
        self,
        arguments: Mapping[str, Any],
        ids: Tensor,
        past_length: int,
        tokens: Callable[..., ForwardTokens],
    ) -> ForwardTokens:
        placeholders = placeholders_in(ids, self.visual_ids)
        # Most forwards generate text: without placeholders there are no types to look up.
        if not bool(placeholders.any()):
            return tokens(visual=placeholders, has_placeholders=False, trusted=False)
        name, types = _token_types(arguments, past_length, ids, self.type_arguments)
        # Without types, a placeholder that the host generated looks like one of a clip. The
        # tracker then tells them apart by position.
        if types is None:
            return tokens(visual=placeholders, has_placeholders=True, trusted=False)
        return tokens(
            visual=placeholders & (types != 0),
            has_placeholders=True,
            trusted=True,
            text_placeholders=(name, placeholders & (types == 0)),
        )


def placeholders_in(ids: Tensor, visual_ids: Sequence[int]) -> Tensor:
    """Return (row, position) bool: which of ``ids`` are placeholders."""
    # One number at a time: `torch.isin` would first copy the list to the device of the ids.
    first, *others = visual_ids
    mask = ids == first
    for visual_id in others:
        mask |= ids == visual_id
    return mask


def _slice_positions(positions: Tensor, past_length: int, rows: int, length: int) -> Tensor:
    """Return (row, position) bool: the part of ``positions`` that one forward covers."""
    covered = positions[:, past_length : past_length + length]
    # Tokens beyond the caller's mask were generated, so they are text.
    mask = pad(covered, (0, length - covered.shape[1]))
    if rows % len(mask) == 0:
        return mask.repeat_interleave(rows // len(mask), 0)
    # Without visual tokens nothing is placed, so the rows need not match.
    if bool(mask.any()):
        raise ConditioningError(
            f"`positions` has {len(mask)} rows, the forward a batch of {rows}: the batch must be a"
            " multiple of the rows."
        )
    return mask.new_zeros(rows, length)


def _token_types(
    arguments: Mapping[str, Any], past_length: int, ids: Tensor, names: Sequence[str]
) -> tuple[str, Tensor | None]:
    """Return the name and the token types of exactly the positions of ``ids``; ("", None) if none.

    Arguments of another shape are skipped: they describe other positions or rows.
    """
    for name in names:
        types = arguments.get(name)
        if types is None or types.ndim != 2 or types.shape[0] != ids.shape[0]:
            continue
        # Some hosts get the types of the whole prompt so far, also with a chunk of it.
        if types.shape[1] == past_length + ids.shape[1]:
            types = types[:, past_length:]
        if types.shape == ids.shape:
            return name, types.to(ids.device)
    return "", None


def begins_with(ids: Tensor | None, prompt: Tensor | None) -> bool:
    """Return whether every row of ``ids`` begins with its row of ``prompt``.

    ``ids`` may have a multiple of the prompt's rows, as with beams: neighbors share a row.
    """
    if ids is None or prompt is None:
        return False
    rows, length = prompt.shape
    if ids.shape[0] % rows or ids.shape[1] < length:
        return False
    return torch.equal(ids[:, :length], prompt.repeat_interleave(ids.shape[0] // rows, 0))
