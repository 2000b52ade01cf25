"""Which latent each visual token of a row reads, and whether a prompt shows the row's clips."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from modulate import ClipInput, Injection, Tokens, visual_grid
from modulate.errors import ConditioningError
from modulate.modulation.token_map import check_clips, chosen_steps, map_rows
from modulate_gaze.scanpath import Scanpath
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import Case
from tests.tiny import CLIP, END, GRID, START, VIDEO, features, scanpath

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
    first = N - GRID.tokens_per_step
    assert row.latent.tolist() == [-1] * first + list(range(first, N))


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


# --- whether a prompt shows the clips of a row in their order

WIDE = visual_grid([0.0, 1.0, 2.0, 3.0], 2, 5, 3)  # 2 steps of 15
SQUARE = visual_grid([0.0, 1.0, 2.0, 3.0], 2, 4, 4)  # 2 steps of 16
TALL = visual_grid([0.0, 1.0, 2.0, 3.0], 2, 3, 5)  # 2 steps of 15
LONG = visual_grid([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2, 5, 3)  # 3 steps of 15
A = 12
B = 13


def clip(grid):
    return ClipInput(scanpath(), grid, features(grid))


def prompt(*rows, side="left"):
    """A batch for the tiny Qwen2.5-VL: rows of grids (videos) and token ids (text)."""
    written = [[1] for _ in rows]
    grids = [part for row in rows for part in row if not isinstance(part, int)]
    for ids, row in zip(written, rows, strict=True):
        for part in row:
            ids += [part] if isinstance(part, int) else [START, *[VIDEO] * part.tokens, END]
    width = max(map(len, written))
    gaps = [[0] * (width - len(ids)) for ids in written]
    pad = lambda row, gap: gap + row if side == "left" else row + gap
    ids = torch.tensor([pad(row, gap) for row, gap in zip(written, gaps, strict=True)])
    patches = sum(grid.tokens for grid in grids) * 4
    return dict(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        mm_token_type_ids=(ids == VIDEO).int() * 2,
        pixel_values_videos=torch.randn(patches, 96, generator=torch.Generator().manual_seed(0)),
        video_grid_thw=torch.tensor([[grid.steps, grid.rows * 2, grid.cols * 2] for grid in grids]),
        second_per_grid_ts=torch.ones(len(grids)),
    )


def generate(host, batch, **options):
    return host.generate(**batch, max_new_tokens=2, **options)


CALLS = {
    "forward": lambda host, batch: host(**batch),
    "generate": generate,
    "beams": lambda host, batch: generate(host, batch, num_beams=2),
    "without a cache": lambda host, batch: generate(host, batch, use_cache=False),
    "in chunks": lambda host, batch: generate(host, batch, prefill_chunk_size=7),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_clips_in_swapped_order_are_refused_and_in_their_own_order_not(
    host, modulation, side, call
):
    batch = prompt([WIDE, A, SQUARE, B], [A, LONG, WIDE], side=side)
    first = [clip(WIDE), clip(SQUARE)]
    second = [clip(LONG), clip(WIDE)]
    try:
        CALLS[call](host, batch)
    except RuntimeError as error:
        pytest.skip(f"the bare host of this transformers fails, too: {error}")
    with modulation.attached(host) as attachment:
        with attachment.condition([first, second]):
            CALLS[call](host, batch)
        for rows, message in (
            ([first, second[::-1]], r"Row \d: the clips have 30, 45 visual tokens, .* 45, 30\. "),
            ([first[::-1], second], r"Row 0: the clips have 32, 30 visual tokens, .* 30, 32\. "),
        ):
            with pytest.raises(ConditioningError, match=message), attachment.condition(rows):
                CALLS[call](host, batch)


@pytest.mark.parametrize("call", ["forward", "generate", "beams", "without a cache"])
def test_clips_of_as_many_tokens_but_other_rows_and_columns_are_refused(host, modulation, call):
    batch = prompt([WIDE, A, TALL, B])
    right = [clip(WIDE), clip(TALL)]
    with modulation.attached(host) as attachment:
        with attachment.condition([right]):
            CALLS[call](host, batch)
        message = r"Row 0, clip 0: its grid has 2 steps of 3×5, but the host was given .* of 5×3"
        with pytest.raises(ConditioningError, match=message), attachment.condition([right[::-1]]):
            CALLS[call](host, batch)
        with (
            pytest.raises(ConditioningError, match="Row 0, clip 1: its grid has 2 steps of 5×3"),
            attachment.condition([[clip(WIDE), clip(WIDE)]]),
        ):
            CALLS[call](host, batch)


def shown(token_map, ids):
    ids = torch.tensor(ids)
    check_clips(token_map, 0, ids == VIDEO, ids, ())


def test_a_prompt_that_does_not_tell_its_clips_apart_refuses_none():
    four, six = (visual_grid([0.0, 1.0], 1, 2, cols) for cols in (2, 3))  # 2 steps of 4, of 6
    (row,) = mapped([clip(four), clip(six)])
    right = [*[VIDEO] * 8, END, *[VIDEO] * 12, END]
    swapped = [*[VIDEO] * 12, END, *[VIDEO] * 8, END]
    shown(row, right)
    shown(row, [VIDEO] * 20)  # nothing between them
    shown(row, [*[VIDEO] * 4, A, *[VIDEO] * 16, B])  # a separator within the first clip alone
    for steps in (2, 4, 6):  # every step, every row, and the halves of rows
        pieces = [*[8 // steps] * steps, *[12 // steps] * steps]
        shown(row, [token for piece in pieces for token in [*[VIDEO] * piece, END]])
    for wrong in (swapped, [*[VIDEO] * 12, A, *[VIDEO] * 8, B]):
        with pytest.raises(ConditioningError, match=r"clips have 8, 12 .* have 12, 8"):
            shown(row, wrong)
    # As many runs as clips, each closed, but of other numbers: a wrong grid each.
    with pytest.raises(ConditioningError, match=r"clips have 8, 12 .* have 10, 10"):
        shown(row, [*[VIDEO] * 10, END, *[VIDEO] * 10, END])


def test_positions_of_the_caller_are_taken_as_they_are(host, modulation):
    batch = prompt([WIDE, A, SQUARE])
    positions = batch["input_ids"] == VIDEO
    rows = [[clip(SQUARE), clip(WIDE)]]
    with modulation.attached(host) as attachment, attachment.condition(rows, positions=positions):
        host(**batch)


CHECKED = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "video_llama_3", "video_llava"}
"""Families whose prompts tell a video from a picture; the others show frames as pictures."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_tells_swapped_clips_apart_where_its_prompt_does(family):
    case = Case(family)
    batch = case.write(["video", (A, B), "image", (A,)], ["image", "video", "image", (B,)])
    clips = case.clips(batch)
    swapped = [clips[0][::-1], clips[1]]
    with case.modulation.attached(case.host) as attachment:
        with attachment.condition(clips):
            case.host(**batch.inputs)
        error = pytest.raises(ConditioningError, match=r"Row 0(:|,).* in the order in which")
        with error if family.name in CHECKED else nullcontext(), attachment.condition(swapped):
            case.host(**batch.inputs)
