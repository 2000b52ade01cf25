"""Which latent each visual token of a batch's rows reads, and whether a prompt shows its clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modulate.config.injection import Injection
from modulate.errors import ConditioningError
from modulate.hosts.host import Host
from modulate.hosts.prompt_clips import (
    ClipSize,
    are_closed,
    are_entangled,
    raster_of,
    runs_of,
    sizes_by_row,
)
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.token_positions import ForwardTokens


@dataclass(frozen=True)
class TokenMap:
    """The visual tokens of one row, and the latents that they read.

    ``latent``: (visual token of the row,) long, its latent among those of all rows; −1 where
    nothing is written. ``span``: the row's own latents, the first and one past the last.
    ``grids``, ``lengths``: of each clip, its grid and its number of placeholders. A row without
    clips is left alone, whatever visual tokens it holds.
    """

    latent: Tensor
    span: tuple[int, int]
    grids: tuple[VisualGrid, ...]
    lengths: tuple[int, ...]

    @property
    def has_clips(self) -> bool:
        """Return whether the row has clips."""
        return bool(self.grids)

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
        maps.append(
            TokenMap(
                torch.cat(parts),
                (begin, end),
                tuple(clip.grid for clip in clips),
                tuple(len(part) for part in parts[1:]),
            )
        )
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


# --- whether a prompt shows the clips of a row in their order


def check_clips(
    token_map: TokenMap, row: int, visual: Tensor, ids: Tensor | None, sizes: Sequence[ClipSize]
) -> None:
    """Raise :class:`ConditioningError` where a prompt shows other clips than its row has.

    The numbers of visual tokens agree in all. Where the prompt does not tell one clip from the
    next, nothing is refused.

    Args:
        token_map: of the row.
        row: its number in the batch, for errors.
        visual: (position,) bool, the placeholders of the prompt.
        ids: (position,), its token ids, if they are known.
        sizes: of its clips, as the host's arguments give them; none if they do not.
    """
    if sizes:
        _check_sizes(token_map, row, sizes)
    if len(token_map.grids) < 2:
        return
    runs = runs_of(visual, ids)
    counts = [run.tokens for run in runs]
    # Clips may follow each other in one run, and separators may split a clip: only a prompt that
    # closes every run, or whose runs are the clips in another order, says that these are wrong.
    if are_entangled(token_map.lengths, counts) and (
        are_closed(runs) or sorted(counts) == sorted(token_map.lengths)
    ):
        raise ConditioningError(
            f"Row {row}: the clips have {_listed(token_map.lengths)} visual tokens, in their order,"
            f" but the prompt's runs of placeholders have {_listed(counts)}. Give the clips in the"
            " order in which the prompt shows them, each with the grid that the host really used."
            " (If they are right, name their tokens yourself: `condition(rows, positions=mask)`.)"
        )


def _check_sizes(token_map: TokenMap, row: int, sizes: Sequence[ClipSize]) -> None:
    """Raise :class:`ConditioningError` where the clips differ from the sizes that the host got."""
    shown = [size.tokens for size in sizes]
    lengths = token_map.lengths
    if are_entangled(lengths, shown):
        raise ConditioningError(
            f"Row {row}: the clips have {_listed(lengths)} visual tokens, in their order, but the"
            f" host was given clips of {_listed(shown)}. Give them in the order in which the prompt"
            " shows them, each with the grid that the host really used."
        )
    begin = 0
    for number, (grid, length) in enumerate(zip(token_map.grids, lengths, strict=True)):
        # A family with further placeholders counts other tokens than its grids have.
        if length == grid.tokens:
            for size in _sizes_within(sizes, begin, begin + length):
                is_whole = size.tokens == length
                if (grid.rows, grid.cols) != (size.rows, size.cols) or (
                    is_whole and grid.steps != size.steps
                ):
                    raise _wrong_grid(
                        row, number, grid, f"{size.steps} steps of {size.rows}×{size.cols}"
                    )
        begin += length


def _sizes_within(sizes: Sequence[ClipSize], begin: int, end: int) -> list[ClipSize]:
    """Return the sizes of the clips that have tokens from ``begin`` to ``end``."""
    found = []
    place = 0
    for size in sizes:
        if place < end and place + size.tokens > begin:
            found.append(size)
        place += size.tokens
    return found


def check_rasters(token_map: TokenMap, row: int, visual: Tensor, position_ids: Tensor) -> None:
    """Raise :class:`ConditioningError` where positions count over other rows and columns.

    Args:
        token_map: of the row.
        row: its number in the batch, for errors.
        visual: (position,) bool, the placeholders of the prompt.
        position_ids: (axis, position), M-RoPE's positions, whose last axes are height and width.
    """
    positions = position_ids[:, visual]
    begin = 0
    for number, (grid, length) in enumerate(zip(token_map.grids, token_map.lengths, strict=True)):
        if length == grid.tokens:
            raster = raster_of(positions[:, begin : begin + grid.tokens_per_step])
            if raster is not None and raster != (grid.rows, grid.cols):
                raise _wrong_grid(row, number, grid, f"steps of {raster[0]}×{raster[1]}")
        begin += length


def _wrong_grid(row: int, clip: int, grid: VisualGrid, shown: str) -> ConditioningError:
    return ConditioningError(
        f"Row {row}, clip {clip}: its grid has {grid.steps} steps of {grid.rows}×{grid.cols}, but"
        f" the host was given {shown} there. Give the clips in the order in which the prompt shows"
        " them, each with the grid that the host really used."
    )


def _listed(numbers: Sequence[int], most: int = 12) -> str:
    """Return numbers as a list in words, cut to ``most``."""
    more = ", …" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more


def check_prompt(
    host: Host,
    maps: Sequence[TokenMap],
    rows: Sequence[int],
    visual: Tensor,
    ids: Tensor | None,
    whole: ForwardTokens | None,
) -> None:
    """Check the clips of every row of a complete prompt against what it shows.

    Args:
        host: the host.
        maps: of each conditioned row.
        rows: of each input row, its conditioned row; several may share one, as beams do.
        visual: (row, position) bool, the prompt's placeholders in rows with clips.
        ids: (row, position), its token ids, if they are known.
        whole: the forward that brought the whole prompt; None if several did.

    Raises :class:`ConditioningError` where a row shows other clips than its own.
    """
    sizes = None
    position_ids = None
    if whole is not None and whole.ids is not None:
        sizes = sizes_by_row(host, whole.arguments, whole.ids, whole.visual)
        position_ids = whole.arguments.get("position_ids")
    for row, token_map in enumerate(maps[each] for each in rows):
        if not token_map.has_clips:
            continue
        shown = visual[row].cpu()
        row_ids = None if ids is None else ids[row].cpu()
        check_clips(token_map, row, shown, row_ids, sizes[row] if sizes is not None else ())
        # The sizes say more; `generate` leaves them out of its forwards.
        if sizes is None and isinstance(position_ids, Tensor) and position_ids.ndim == 3:
            check_rasters(token_map, row, shown, position_ids[:, row].cpu())
