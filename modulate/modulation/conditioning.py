"""Signals and features for the rows of a batch, and where one forward writes what comes of them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modulate.errors import ConditioningError
from modulate.hosts.host import Host
from modulate.interfaces.visual_grid import VisualGrid
from modulate.interfaces.writer import Memory, Mixture
from modulate.modulation.clip_inputs import Rows, check, listed, mask_of
from modulate.modulation.latents import Latents
from modulate.modulation.module import Modulation
from modulate.modulation.token_positions import ForwardTokens, columns
from modulate.modulation.token_selection import TokenSelection
from modulate.modulation.visual_token_tracker import VisualTokenTracker


@dataclass(eq=False)
class WritePlan:
    """Where the layers of one forward write: ``index`` positions in the flattened (batch·position)
    states, ``token`` rows of the latents.
    """

    latents: Latents
    index: Tensor
    token: Tensor
    shape: tuple[int, int]
    learns: bool = False  # gradients are wanted
    fired: set[int] = field(default_factory=set)
    norms: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = torch.arange(len(self.latents.span), device=self.token.device)
        self._whole = bool(self.latents.mixtures(0)) and torch.equal(self.token, every)
        if not self._whole:
            device = self.latents.device
            token = self.token.to(device)
            self._source = token, self.latents.span.to(device)[token]  # the same for all layers

    def read(self, k: int) -> tuple[Tensor | list[Mixture], Memory | None]:
        """Return the latents that the ``k``-th layer writes, one for each position or all clips
        whole, and the memory that goes with them.
        """
        return (
            (self.latents.mixtures(k), None) if self._whole else self.latents.at(k, *self._source)
        )


@dataclass(frozen=True)
class TokenHints:
    """What only the caller may know of a conditioning's tokens, each (row, absolute position) or
    None; 0 and 1 are taken for bool.

    ``positions``: the grids' tokens, for forwards that get no token ids; by default placeholders
    are looked for. ``prompt``, ``mask``: see
    :class:`modulate.modulation.token_selection.TokenSelection`.
    """

    positions: Tensor | None = None
    prompt: Tensor | None = None
    mask: Tensor | None = None

    def checked(self, rows: int) -> "TokenHints":
        """Return these as bool tensors of ``rows`` rows.

        Raises :class:`ConditioningError` for what is none.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        return TokenHints(**{name: mask_of(name, value, rows) for name, value in given.items()})


class Conditioning:
    """Signals and features of the rows of a batch, their latents computed once."""

    def __init__(self, modulation: Modulation, rows: Rows, host: Host, hints: TokenHints) -> None:
        self.owner = threading.get_ident()
        rows = listed(rows)
        if not rows:
            raise ConditioningError(
                "The conditioning has no rows. Give one list of clips for each row of the batch,"
                " `[]` for a row without."
            )
        check(rows, modulation.needs)
        hints = hints.checked(len(rows))
        self.visual_ids = list(host.visual_ids.values())
        self.types = host.types
        self.positions = hints.positions
        tokens = modulation.config.injection.tokens
        self.maps: list[
            Tensor
        ] = []  # per row: ordinal of its placeholder → row of the latents, −1 where none is written
        spans: list[tuple[int, int]] = []  # per row: its latents
        start = 0
        for r, row in enumerate(rows):
            parts = [torch.empty(0, dtype=torch.long)]
            begin = start
            for c, clip in enumerate(row):
                places = torch.tensor(
                    (
                        host.placeholders(clip.grid)
                        if hints.positions is None
                        else range(clip.grid.tokens)
                    ),
                    dtype=torch.long,
                )
                if not bool((places >= 0).any()):
                    raise ConditioningError(
                        f"Row {r}, clip {c}: its grid has no visual token in this host"
                        f" ({type(host).__name__}.placeholders names none)."
                    )
                heard = clip.signal is not None and (
                    modulation.config.injection.empty == "residual" or len(clip.signal) > 0
                )
                there = (
                    chosen_steps(places, clip.grid, tokens.steps)
                    if heard
                    else torch.zeros_like(places, dtype=torch.bool)
                )
                parts.append(torch.where(there, places + start, -1))
                start += clip.grid.tokens if clip.signal is not None else 0
            self.maps.append(torch.cat(parts))
            spans.append((begin, start))
        selects = tokens.kind != "visual" or hints.prompt is not None or hints.mask is not None
        self.tracker = VisualTokenTracker(
            [len(m) if row else None for m, row in zip(self.maps, rows, strict=True)],
            everywhere=selects,
        )
        if hints.positions is not None:
            self._check(hints.positions)
        clips = [clip for row in rows for clip in row if clip.signal is not None]
        self.latents = modulation.latents(clips) if clips else None
        self.selection = None
        if selects:
            self.selection = TokenSelection(tokens, hints.prompt, hints.mask)
            full = [span for span in spans if span[0] < span[1]]
            self.means = [
                start + full.index(span) if span in full else -1 for span in spans
            ]  # per row: its mean among the latents
            self.latents = self.latents and self.latents.with_means(full)
        self.modified = 0
        self.last: WritePlan | None = None

    def _check(self, positions: Tensor) -> None:
        for r, (got, expected) in enumerate(
            zip(positions.sum(1).tolist(), self.tracker.expected, strict=True)
        ):
            if expected is not None and got != expected:
                raise ConditioningError(
                    f"Row {r}: the positions name {got} visual tokens, the conditioning {expected}."
                )

    def plan(self, given: dict[str, Any]) -> WritePlan | None:
        """Locate what is to be written in a forward with these arguments; None when there is
        nothing.
        """
        here = columns(given, self.visual_ids, self.positions, self.types)
        ordinal = self.tracker.place(here)
        if self.selection is None:
            token = self._visual(ordinal)
        else:
            token = None if self.tracker.aside else self._means(here, self.selection)
        if self.latents is None or token is None:
            return None
        index = (token.flatten() >= 0).nonzero()[:, 0]
        if not len(index):
            return None
        self.modified += len(index)
        self.last = WritePlan(
            self.latents, index, token.flatten()[index], (token.shape[0], token.shape[1])
        )
        return self.last

    def _visual(self, ordinal: Tensor | None) -> Tensor | None:
        """Return the row of the latents that each visual token reads, −1 for all other positions;
        None where there are no visual tokens.
        """
        if ordinal is None:
            return None
        token = torch.full_like(ordinal, -1)
        for i, r in enumerate(self.tracker.rows_of(len(ordinal))):
            visual = ordinal[i] >= 0
            token[i, visual] = self.maps[r].to(token.device)[ordinal[i, visual]]
        return token

    def _means(self, here: ForwardTokens, selection: TokenSelection) -> Tensor:
        """Return the mean of the row's latents for every position selected, −1 for all others."""
        rows = torch.tensor(
            [self.means[r] for r in self.tracker.rows_of(len(here.mask))], device=here.mask.device
        )
        return torch.where(selection.choose(here), rows[:, None], -1)


def chosen_steps(places: Tensor, grid: VisualGrid, steps: Sequence[int] | None) -> Tensor:
    """Return which placeholders (``places``: their visual token, or −1) show one of ``steps``; all
    visual ones when that is None.

    Raises :class:`ConditioningError` for a step that the clip does not have.
    """
    if steps is None:
        return places >= 0
    wrong = [step for step in steps if not -grid.steps <= step < grid.steps]
    if wrong:
        raise ConditioningError(
            f"This modulation writes on step {wrong[0]} (`injection.tokens.steps`), but a clip has"
            f" {grid.steps} steps."
        )
    return (places >= 0) & torch.isin(
        places // grid.tokens_per_step, torch.tensor([step % grid.steps for step in steps])
    )
