"""One conditioning: signals and features for the rows of a batch, followed through its forwards."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from modulate.errors import ConditioningError
from modulate.hosts.host import Host
from modulate.modulation.clip_inputs import Rows, as_lists, as_mask, check_rows
from modulate.modulation.latents import Latents
from modulate.modulation.module import Modulation
from modulate.modulation.token_map import TokenMap, check_prompt, map_rows
from modulate.modulation.token_positions import ForwardTokens, TokenLocator
from modulate.modulation.token_selection import TokenSelection
from modulate.modulation.visual_token_tracker import VisualTokenTracker
from modulate.modulation.write_plan import WritePlan


@dataclass(frozen=True)
class TokenHints:
    """What only the caller may know of a conditioning's tokens.

    Each is (row, absolute position), bool or 0 and 1, or None. ``positions``: the grids' tokens,
    for forwards that get no token ids; by default, the host's placeholder ids locate them.
    ``prompt``, ``mask``: see :class:`modulate.modulation.token_selection.TokenSelection`.
    """

    positions: Tensor | None = None
    prompt: Tensor | None = None
    mask: Tensor | None = None

    def checked(self, rows: int) -> "TokenHints":
        """Return these as bool tensors of ``rows`` rows.

        Raises :class:`ConditioningError` for anything that is not such a mask.
        """
        hints = {name: value for name, value in vars(self).items() if value is not None}
        return TokenHints(**{name: as_mask(name, value, rows) for name, value in hints.items()})


class Conditioning:
    """The rows of a batch, their latents computed once, and the forwards that have read them.

    ``maps``: one for each row. ``locator``: finds visual tokens in a forward's arguments.
    ``latents``: None where no clip has a signal. ``selection``: the positions that are written, if
    these are not the visual tokens; each reads the mean over its row's latents, which ``latents``
    then holds behind those of the tokens. ``means``: per row, the index of that mean, or −1.
    """

    def __init__(
        self,
        host: Host,
        maps: Sequence[TokenMap],
        locator: TokenLocator,
        latents: Latents | None,
        selection: TokenSelection | None = None,
    ) -> None:
        # Hooks run in whatever thread calls the host; only the conditioning one may do so.
        self.owner = threading.get_ident()
        self.maps = list(maps)
        self.locator = locator
        self.latents = latents
        self.selection = selection
        self.tracker = VisualTokenTracker(
            [token_map.expected for token_map in maps],
            everywhere=selection is not None,
            check_prompt=partial(check_prompt, host, self.maps),
        )
        self.means = _mean_latents(maps)
        self.modified = 0  # positions written, in all forwards together
        self.last_plan: WritePlan | None = None

    @classmethod
    def build(cls, modulation: Modulation, rows: Rows, host: Host, hints: TokenHints) -> Self:
        """Check what a caller passes, locate its clips in the host, and compute their latents.

        Raises what :func:`modulate.modulation.clip_inputs.check_rows` does, and
        :class:`ConditioningError` for hints that do not fit the rows or the modulation.
        """
        # All checks come first, so that a wrong call fails before the modulator runs.
        clips_of_rows = as_lists(rows)
        if not clips_of_rows:
            raise ConditioningError(
                "The conditioning has no rows. Give one list of clips for each row of the batch,"
                " `[]` for a row without clips."
            )
        check_rows(clips_of_rows, modulation.clip_requirements)
        hints = hints.checked(len(clips_of_rows))
        injection = modulation.config.injection
        by_hand = hints.positions is not None
        maps = map_rows(clips_of_rows, injection, host, tokens_only=by_hand)
        if hints.positions is not None:
            _check_positions(hints.positions, maps)
        # With hints also for visual tokens: the selection says why they have no effect there.
        selection = None
        if injection.tokens.kind != "visual" or hints.prompt is not None or hints.mask is not None:
            selection = TokenSelection(injection.tokens, hints.prompt, hints.mask)
        clips = [clip for row in clips_of_rows for clip in row if clip.signal is not None]
        latents = modulation.latents(clips) if clips else None
        if latents is not None and selection is not None:
            # Only rows with latents have a mean: over none it would be NaN.
            latents = latents.with_means([m.span for m in maps if m.has_latents])
        visual_ids = tuple(host.visual_ids.values())
        locator = TokenLocator(visual_ids, tuple(host.type_arguments), hints.positions)
        return cls(host, maps, locator, latents, selection)

    def plan(self, arguments: Mapping[str, Any]) -> WritePlan | None:
        """Return where a forward with these arguments is written; None: nowhere."""
        tokens = self.locator.locate(arguments)
        # The tracker sees every forward, also one that is not written: it counts visual tokens.
        ordinal = self.tracker.place(tokens)
        if self.selection is not None:
            latent = self._selected_latents(tokens, self.selection)
        else:
            latent = self._visual_latents(ordinal)
        if self.latents is None or latent is None:
            return None
        flat = latent.flatten()
        index = (flat >= 0).nonzero()[:, 0]
        if not len(index):
            return None
        self.modified += len(index)
        rows, length = latent.shape
        self.last_plan = WritePlan(self.latents, index, flat[index], (rows, length))
        return self.last_plan

    def end_forward(self, cache: Any) -> None:
        """Record that the forward planned last has succeeded; ``cache``: the one it returned."""
        self.tracker.remember(cache)

    def finish(self) -> None:
        """End the conditioning.

        Raises :class:`ConditioningError` where no forward came, or visual tokens are missing.
        """
        if self.forwards == 0:
            raise ConditioningError(
                "No forward reached the host inside this conditioning, so nothing was injected."
                " (A graph that torch.compile traced before attaching runs no hooks: call"
                " `torch._dynamo.reset()` after attaching.)"
            )
        self.tracker.finish()
        if self.selection is not None:
            self.selection.finish([row for row, mean in enumerate(self.means) if mean >= 0])

    @property
    def forwards(self) -> int:
        """Return how many forwards have succeeded."""
        return self.tracker.forwards

    def _visual_latents(self, ordinal: Tensor | None) -> Tensor | None:
        """Return (row, position) long: the latent that each visual token reads, −1 elsewhere.

        ``ordinal``: see :meth:`VisualTokenTracker.place`; None: no visual tokens.
        """
        if ordinal is None:
            return None
        latent = torch.full_like(ordinal, -1)
        # Several input rows may share a conditioned one, as beams do.
        for i, row in enumerate(self.tracker.rows_of(len(ordinal))):
            is_visual = ordinal[i] >= 0
            latent_of = self.maps[row].latent.to(ordinal.device)
            latent[i, is_visual] = latent_of[ordinal[i, is_visual]]
        return latent

    def _selected_latents(self, tokens: ForwardTokens, selection: TokenSelection) -> Tensor | None:
        """Return (row, position) long: its row's mean for each selected position, −1 elsewhere.

        None for a branch without clips, as classifier-free guidance has one.
        """
        if self.tracker.in_clipless_branch:
            return None
        rows = self.tracker.rows_of(len(tokens.visual))
        means = [self.means[row] for row in rows]
        mean_of_row = torch.tensor(means, device=tokens.visual.device)
        return torch.where(selection.choose(tokens), mean_of_row[:, None], -1)


def _check_positions(positions: Tensor, maps: Sequence[TokenMap]) -> None:
    """Raise :class:`ConditioningError` where positions and grids differ in their visual tokens."""
    for row, (count, token_map) in enumerate(zip(positions.sum(1).tolist(), maps, strict=True)):
        expected = token_map.expected
        if expected is not None and count != expected:
            raise ConditioningError(
                f"Row {row}: the positions name {count} visual tokens, the conditioning {expected}."
            )


def _mean_latents(maps: Sequence[TokenMap]) -> list[int]:
    """Return each row's mean among the latents, −1 for a row without latents.

    The means stand behind the latents of all tokens, see :meth:`Latents.with_means`.
    """
    means: list[int] = []
    next_mean = maps[-1].span[1]
    for token_map in maps:
        means.append(next_mean if token_map.has_latents else -1)
        next_mean += token_map.has_latents
    return means
