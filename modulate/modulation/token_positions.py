"""Where one forward holds visual tokens.

Everything is derived from what the forward actually gets: token ids, token types that tell
modalities apart, and the absolute position given by the cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from modulate.errors import ConditioningError, HostError
from modulate.hosts.kv_cache import cache_length, find_cache, refuse_unseen_past
from modulate.hosts.prompt_clips import runs_of

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
    placeholders that are text by their type. ``arguments``: those of the forward, by name.
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
    arguments: Mapping[str, Any] = field(default_factory=dict)

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
            arguments=arguments,
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


def check_repeats(tokens: ForwardTokens, has_clips: Sequence[bool], end: int) -> None:
    """Raise :class:`ConditioningError` unless input rows that share a conditioned row are copies.

    ``generate`` makes copies of each row for beams and returned sequences; in a plain batch, every
    row has clips of its own.

    Args:
        tokens: of a forward whose batch is a multiple of the rows.
        has_clips: of each conditioned row, whether it has clips.
        end: absolute position by which the prompt ended, 0 if it has not: rows of generated tokens
            may differ.
    """
    batch, length = tokens.visual.shape
    repeats = batch // len(has_clips)
    if repeats == 1 or not any(has_clips):
        return
    prompt = min(length, end - tokens.past_length) if end else length
    known = tokens.ids if tokens.ids is not None else tokens.arguments.get("inputs_embeds")
    differ_in = ""
    if known is not None and prompt > 0 and _differ(known[:, :prompt], has_clips):
        differ_in = "token ids" if tokens.ids is not None else "embeddings"
    elif any(_differ(part, has_clips) for part in _vision_by_row(tokens)):
        differ_in = "pixels"
    if differ_in:
        rows = f"{len(has_clips)} row{'s' if len(has_clips) > 1 else ''}"
        raise ConditioningError(
            f"The conditioning has {rows}, the forward a batch of {batch} that differ in their"
            f" {differ_in}, so they are not copies of {rows} (beams, num_return_sequences). Give"
            " one list of clips for each row of the batch, `[]` for a row without clips."
        )


def _differ(values: Tensor, has_clips: Sequence[bool]) -> bool:
    """Return whether ``values``, (row, …), differ among the input rows of one row with clips."""
    groups = values.detach().unflatten(0, (len(has_clips), -1))
    groups = groups[torch.tensor(has_clips, device=groups.device)]
    return not torch.equal(groups, groups[:, :1].expand_as(groups))


def _vision_by_row(tokens: ForwardTokens) -> list[Tensor]:
    """Return the pixels of a forward, or what the vision tower made of them, as (row, part, …).

    They come without a row. Only where all rows have the same placeholders in the same runs do all
    rows have as many parts; else the list is empty.
    """
    parts = _vision_parts(tokens.arguments)
    if not parts:
        return []
    batch = len(tokens.visual)
    ids: Sequence[Tensor | None] = [None] * batch if tokens.ids is None else list(tokens.ids.cpu())
    rows = [runs_of(*row) for row in zip(tokens.visual.cpu(), ids, strict=True)]
    runs = [[(run.id, run.tokens) for run in row] for row in rows]
    if any(row != runs[0] for row in runs):
        return []
    return [part.unflatten(0, (batch, -1)) for part in parts if len(part) % batch == 0]


def _vision_parts(arguments: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors of pictures, or of their features, among the arguments of a forward."""
    parts = []
    for name, value in arguments.items():
        if not name.startswith(VISION_PREFIXES):
            continue
        for each in value.values() if isinstance(value, Mapping) else [value]:
            features = getattr(each, "pooler_output", each)
            if isinstance(features, list | tuple) and features:
                # Clips of different sizes, one tensor each.
                shapes = {getattr(clip, "shape", (0,))[1:] for clip in features}
                features = torch.cat(list(features)) if len(shapes) == 1 else None
            if isinstance(features, Tensor) and features.ndim > 1:
                # Vision that was encoded before may come in one piece: split it into its tokens.
                is_encoded = name.startswith("mm_") and features.ndim > 2
                parts.append(features.flatten(0, 1) if is_encoded else features)
    return parts


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
