"""Signals and features for the rows of a batch, and where one forward writes what comes of them."""

import threading
import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modulate.errors import ConditioningError
from modulate.hosts import Host
from modulate.localize import Ledger, columns
from modulate.modulation import ClipInput, Latents, Modulation

Rows = Sequence[Sequence[ClipInput]]


@dataclass(eq=False)
class Plan:
    """Where the layers of one forward write: ``index`` positions in the flattened (batch·position) states, ``token`` rows of the latents."""

    latents: Latents
    index: Tensor
    token: Tensor
    shape: tuple[int, int]
    thread: int
    learns: bool = False  # gradients are wanted
    fired: set[int] = field(default_factory=set)
    norms: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    inputs: dict[int, tuple["weakref.ref[Tensor]", int]] = field(default_factory=dict)  # per layer: what went in, to know it again in a recompute

    def recomputes(self, k: int, hidden: Tensor) -> bool:
        """Return whether ``hidden`` is what the ``k``-th injected layer was given in this forward: the same memory, held ever since."""
        first, pointer = self.inputs.get(k, (None, 0))
        return first is not None and first() is not None and pointer == hidden.data_ptr()


class Conditioning:
    """Signals and features of the rows of a batch, their latents computed once.

    ``positions``: (row, absolute position) bool, the grids' tokens, for forwards that get no token ids; None: placeholders are looked for.
    """

    def __init__(self, modulation: Modulation, rows: Rows, host: Host, histories: MutableMapping[Any, Tensor], positions: Tensor | None) -> None:
        self.owner = threading.get_ident()
        self.visual_ids, self.positions = list(host.visual_ids.values()), positions
        self.maps: list[Tensor] = []  # per row: ordinal of its placeholder → row of the latents, −1 where none is written
        start = 0
        for row in rows:
            parts = [torch.empty(0, dtype=torch.long)]
            for clip in row:
                places = torch.tensor(host.placeholders(clip.grid) if positions is None else range(clip.grid.tokens))
                parts.append(torch.where(places < 0, -1, places + start) if clip.signal is not None else torch.full_like(places, -1))
                start += clip.grid.tokens if clip.signal is not None else 0
            self.maps.append(torch.cat(parts))
        self.ledger = Ledger([len(m) if row else None for m, row in zip(self.maps, rows, strict=True)], histories)
        if positions is not None:
            self._check(positions)
        clips = [clip for row in rows for clip in row if clip.signal is not None]
        self.latents = modulation.latents(clips) if clips else None
        self.modified = 0
        self.last: Plan | None = None

    def _check(self, positions: Tensor) -> None:
        if positions.ndim != 2 or len(positions) != len(self.maps):
            raise ConditioningError(f"positions must be (row, position) for {len(self.maps)} rows, got shape {tuple(positions.shape)}.")
        for r, (got, expected) in enumerate(zip(positions.sum(1).tolist(), self.ledger.expected, strict=True)):
            if expected is not None and got != expected:
                raise ConditioningError(f"Row {r}: the positions name {got} visual tokens, the conditioning {expected}.")

    def plan(self, given: dict[str, Any]) -> Plan | None:
        """Locate the visual tokens of a forward with these arguments; None when it has none to modify."""
        ordinal = self.ledger.place(columns(given, self.visual_ids, self.positions))
        if self.latents is None or not bool((ordinal >= 0).any()):
            return None
        token = torch.full_like(ordinal, -1)
        for i, r in enumerate(self.ledger.rows_of(len(ordinal))):
            here = ordinal[i] >= 0
            token[i, here] = self.maps[r].to(token.device)[ordinal[i, here]]
        index = (token.flatten() >= 0).nonzero()[:, 0]
        if not len(index):
            return None
        self.modified += len(index)
        self.last = Plan(self.latents, index, token.flatten()[index], (token.shape[0], token.shape[1]), threading.get_ident())
        return self.last
