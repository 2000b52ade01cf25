"""One conditioning: the plans of its forwards, and the hints that it accepts."""

import pytest
import torch

from modulate import ClipInput
from modulate.errors import ConditioningError
from modulate.hosts.host import understand
from modulate.modulation.conditioning import Conditioning, TokenHints
from tests.tiny import CLIP, GRID, VIDEO, inputs, selecting

SILENT = ClipInput(None, GRID)


def conditioned(host, modulation, rows, **hints):
    return Conditioning.build(modulation, rows, understand(host), TokenHints(**hints))


def test_a_plan_names_the_latent_of_every_visual_token_in_the_order_of_rows_and_clips(
    host, modulation
):
    batch = inputs(videos=2)
    conditioning = conditioned(host, modulation, [[SILENT, CLIP], [CLIP, CLIP]])
    plan = conditioning.plan(batch)
    visual = (batch["input_ids"] == VIDEO).flatten().nonzero()[:, 0]
    assert plan.index.tolist() == visual[GRID.tokens :].tolist()
    assert plan.token.tolist() == list(range(3 * GRID.tokens))
    assert plan.shape == tuple(batch["input_ids"].shape)
    assert conditioning.modified == 3 * GRID.tokens
    assert conditioning.last_plan is plan


def test_rows_without_any_signal_have_no_plan(host, modulation):
    conditioning = conditioned(host, modulation, [[SILENT], []])
    assert conditioning.plan(inputs()) is None
    assert conditioning.latents is None
    assert conditioning.modified == 0


def test_positions_of_other_visual_tokens_than_the_clips_are_named_with_both_numbers(
    host, modulation
):
    positions = inputs()["input_ids"] == VIDEO
    conditioning = conditioned(host, modulation, [[CLIP], [CLIP]], positions=positions)
    assert conditioning.tracker.expected == [GRID.tokens] * 2
    positions[0, :] = False
    conditioned(host, modulation, [[], [CLIP]], positions=positions)
    with pytest.raises(
        ConditioningError, match="Row 0: the positions name 0 visual tokens, the conditioning 12"
    ):
        conditioned(host, modulation, [[CLIP], [CLIP]], positions=positions)


@pytest.mark.parametrize("kind", ["text", "last", "mask"])
def test_rows_are_told_apart_in_every_forward_where_other_than_visual_tokens_are_written(
    host, modulation, kind
):
    hints = {"mask": torch.ones(1, 30)} if kind == "mask" else {}
    assert conditioned(host, selecting(host, kind), [[CLIP]], **hints).tracker.everywhere
    assert not conditioned(host, modulation, [[CLIP]]).tracker.everywhere


def test_every_row_reads_the_mean_of_its_own_clips_and_a_row_without_clips_reads_none(host):
    conditioning = conditioned(host, selecting(host, "text"), [[CLIP, CLIP], [], [CLIP]])
    first = 3 * GRID.tokens
    assert conditioning.means == [first, -1, first + 1]
    assert len(conditioning.latents.span) == first + 2


def test_a_conditioning_that_no_forward_reached_is_refused(host, modulation):
    with pytest.raises(ConditioningError, match="No forward reached the host"):
        conditioned(host, modulation, [[CLIP]]).finish()
