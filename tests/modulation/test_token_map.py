"""Which latent each visual token of a row reads."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from modulate import ClipInput, Injection, Tokens
from modulate.errors import ConditioningError
from modulate.modulation.token_map import chosen_steps, map_rows
from modulate_gaze.scanpath import Scanpath
from tests.tiny import CLIP, GRID

SILENT = ClipInput(None, GRID)
N = GRID.tokens
PLAIN = SimpleNamespace(placeholders=lambda grid: range(grid.tokens))
WITH_ENDS = SimpleNamespace(placeholders=lambda grid: [*range(grid.tokens), -1])


def mapped(*rows, host=PLAIN, tokens_only=False, **injection):
    return map_rows(rows, Injection(layers=(0,), **injection), host, tokens_only)


def test_rows_count_their_latents_on_and_clips_without_a_signal_have_none():
    first, second, third = mapped([SILENT, CLIP], [], [CLIP])
    assert first.latent.tolist() == [-1] * N + list(range(N))
    assert third.latent.tolist() == list(range(N, 2 * N))
    assert (first.span, second.span, third.span) == ((0, N), (N, N), (N, 2 * N))
    assert [each.has_latents for each in (first, second, third)] == [True, False, True]
    assert [each.expected for each in (first, second, third)] == [2 * N, None, N]


def test_a_row_whose_clips_have_no_signal_still_expects_their_tokens():
    (row,) = mapped([SILENT])
    assert row.expected == N
    assert not row.has_latents


def test_placeholders_that_are_no_visual_token_read_nothing_unless_the_caller_left_them_out():
    (row,) = mapped([CLIP], host=WITH_ENDS)
    assert row.latent.tolist() == [*range(N), -1]
    (row,) = mapped([CLIP], host=WITH_ENDS, tokens_only=True)
    assert row.latent.tolist() == list(range(N))


def test_an_empty_signal_is_written_unless_the_injection_leaves_it_out():
    empty = replace(CLIP, signal=Scanpath())
    (row,) = mapped([empty])
    assert row.latent.tolist() == list(range(N))
    first, second = mapped([empty], [CLIP], empty="none")
    assert first.latent.tolist() == [-1] * N
    assert second.latent.tolist() == list(range(N, 2 * N))  # its latents are computed all the same


def test_only_the_chosen_steps_are_written():
    (row,) = mapped([CLIP], tokens=Tokens(steps=(-1,)))
    begin = N - GRID.tokens_per_step
    assert row.latent.tolist() == [-1] * begin + list(range(begin, N))


def test_a_clip_without_any_visual_token_is_refused():
    blind = SimpleNamespace(placeholders=lambda grid: [-1])
    with pytest.raises(ConditioningError, match="Row 1, clip 0: its grid has no visual token"):
        mapped([], [CLIP], host=blind)


def test_steps_are_counted_from_either_end():
    places = torch.tensor([-1, *range(N), -1])
    assert chosen_steps(places, GRID, None).tolist() == [False, *[True] * N, False]
    for steps, chosen in (((0,), [True, False]), ((-1,), [False, True]), ((-2, 1), [True, True])):
        expected = [is_chosen for is_chosen in chosen for _ in range(GRID.tokens_per_step)]
        assert chosen_steps(places, GRID, steps).tolist() == [False, *expected, False]
    for wrong in (GRID.steps, -GRID.steps - 1):
        with pytest.raises(
            ConditioningError, match=f"writes on step {wrong} .* has {GRID.steps} steps"
        ):
            chosen_steps(places, GRID, (0, wrong))
