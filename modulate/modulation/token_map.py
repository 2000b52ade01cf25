"""Which latent each visual token of a batch's rows reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modulate.config.injection import Injection
from modulate.errors import ConditioningError
from modulate.hosts.host import Host
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.clip_inputs import ClipInput


@dataclass(frozen=True)
class TokenMap:
    """The visual tokens of one row, and the latents that they read.

    ``latent``: (visual token of the row,) long, its latent among those of all rows; −1 where
    nothing is written. ``span``: the row's own latents, the first and one past the last.
    ``has_clips``: a row without clips is left alone, whatever visual tokens it holds.
    """

    latent: Tensor
    span: tuple[int, int]
    has_clips: bool

    @property
    def expected(self) -> int | None:
        """Return how many visual tokens the row must hold; None for any number."""
        return len(self.latent) if self.has_clips else None

    @property
    def has_latents(self) -> bool:
        """Return whether any clip of the row has a signal."""
        begin, end = self.span
        return begin < end


def map_rows(
    rows: Sequence[Sequence[ClipInput]], injection: Injection, host: Host, tokens_only: bool
) -> list[TokenMap]:
    """Return the token map of every row.

    ``tokens_only``: the caller's positions name the grids' tokens alone, without the further
    placeholders (ends of rows, of steps) that a host may put into a clip. Raises
    :class:`ConditioningError` for a clip without any visual token, or without a step that the
    modulation writes on.
    """
    maps: list[TokenMap] = []
    begin = 0
    for row, clips in enumerate(rows):
        parts = [torch.empty(0, dtype=torch.long)]  # a row without clips has no tensor to join
        end = begin
        for number, clip in enumerate(clips):
            places = range(clip.grid.tokens) if tokens_only else host.placeholders(clip.grid)
            place = torch.tensor(places, dtype=torch.long)
            if not bool((place >= 0).any()):
                raise ConditioningError(
                    f"Row {row}, clip {number}: its grid has no visual token in this host"
                    f" ({type(host).__name__}.placeholders names none)."
                )
            # A place counts within its grid; the latents of all clips lie end to end.
            parts.append(torch.where(_is_written(clip, place, injection), place + end, -1))
            # Clips without a signal never reach the modulator, so they have no latents to count.
            end += clip.grid.tokens if clip.signal is not None else 0
        maps.append(TokenMap(torch.cat(parts), (begin, end), has_clips=bool(clips)))
        begin = end
    return maps


def _is_written(clip: ClipInput, place: Tensor, injection: Injection) -> Tensor:
    """Return (placeholder,) bool: which placeholders of a clip get residuals."""
    signal = clip.signal
    # A clip whose signal is empty has latents like any other; they are only not written here.
    if signal is None or (injection.empty == "none" and len(signal) == 0):
        return torch.zeros_like(place, dtype=torch.bool)
    return chosen_steps(place, clip.grid, injection.tokens.steps)


def chosen_steps(place: Tensor, grid: VisualGrid, steps: Sequence[int] | None) -> Tensor:
    """Return (placeholder,) bool: which placeholders show one of ``steps``; None: all visual ones.

    ``place``: (placeholder,) long, the grid's token that each one stands for, or −1. Raises
    :class:`ConditioningError` for a step that the clip does not have.
    """
    is_visual = place >= 0
    if steps is None:
        return is_visual
    missing = [step for step in steps if not -grid.steps <= step < grid.steps]
    if missing:
        raise ConditioningError(
            f"This modulation writes on step {missing[0]} (`injection.tokens.steps`), but a clip"
            f" has {grid.steps} steps."
        )
    # Negative steps count from the end of the clip, and clips differ in length.
    chosen = torch.tensor([step % grid.steps for step in steps])
    return is_visual & torch.isin(place // grid.tokens_per_step, chosen)
