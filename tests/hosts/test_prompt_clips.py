"""What a prompt says of its clips: runs, sizes and positions; nothing is guessed."""

from itertools import permutations

import pytest
import torch

from modulate.hosts.host import understand
from modulate.hosts.prompt_clips import (
    ClipSize,
    Run,
    are_closed,
    are_entangled,
    raster_of,
    runs_of,
    sizes_by_row,
)
from tests.tiny import IMAGE, VIDEO, inputs

TEXT = 9
END = 4


def runs(*ids):
    row = torch.tensor(ids)
    return runs_of((row == VIDEO) | (row == IMAGE), row)


def test_runs_end_at_text_and_where_the_id_changes():
    assert runs(TEXT, VIDEO, VIDEO, END, VIDEO, IMAGE, IMAGE, IMAGE) == [
        Run(VIDEO, 2, END),
        Run(VIDEO, 1, IMAGE),
        Run(IMAGE, 3, None),
    ]
    assert runs(TEXT, TEXT) == []
    visual = torch.tensor([True, True, False, True])
    assert runs_of(visual, None) == [Run(None, 2), Run(None, 1)]


def test_runs_are_closed_by_the_same_token_behind_each_that_has_one():
    assert are_closed(runs(VIDEO, END, TEXT, VIDEO, VIDEO, END))
    assert are_closed(runs(VIDEO, END, VIDEO, END, VIDEO))
    assert not are_closed(runs(VIDEO, TEXT, VIDEO, END))
    assert not are_closed(runs(VIDEO, END))
    assert not are_closed(runs(VIDEO, END, VIDEO))


@pytest.mark.parametrize(
    ("lengths", "parts", "expected"),
    [
        ([30, 32], [30, 32], False),
        ([32, 30], [30, 32], True),
        ([30, 32], [15, 15, 16, 16], False),  # steps of their own
        ([32, 30], [15, 15, 16, 16], True),
        ([30, 32], [62], False),  # one after the other
        ([30, 32, 4], [62, 4], False),
        ([30, 4, 32], [62, 4], True),
        ([62, 4], [30, 32, 4], False),
        ([6, 6], [4, 4, 4], True),
        ([6, 6, 6], [4, 4, 4, 6], True),
    ],
)
def test_clips_are_entangled_where_they_cut_across_runs(lengths, parts, expected):
    assert are_entangled(lengths, parts) is expected
    assert are_entangled(parts, lengths) is expected


def test_any_order_that_is_right_and_any_split_of_its_clips_is_not_entangled():
    for lengths in permutations([4, 6, 10, 4]):
        pieces = [piece for length in lengths for piece in (length // 2,) * 2]
        assert not are_entangled(lengths, pieces)
        assert not are_entangled(lengths, [lengths[0], sum(lengths[1:3]), lengths[3]])


def sizes(host, batch):
    ids = batch["input_ids"]
    return sizes_by_row(understand(host), batch, ids, (ids == VIDEO) | (ids == IMAGE))


def test_sizes_are_read_from_the_grids_by_row_and_only_where_they_add_up(host):
    batch = inputs(videos=2)
    batch["video_grid_thw"] = torch.tensor([[1, 4, 12], [2, 4, 6], [3, 4, 4], [2, 6, 4]])
    assert sizes(host, batch) == [
        [ClipSize(1, 2, 6), ClipSize(2, 2, 3)],
        [ClipSize(3, 2, 2), ClipSize(2, 3, 2)],
    ]
    for wrong in (
        [[2, 4, 6]] * 3,
        [[2, 4, 6]] * 5,
        [[2, 4, 8]] * 4,
        [[4, 4, 6], [2, 4, 6], [2, 4, 6], [0, 4, 6]],
        [[3, 4, 6], [3, 4, 6], [1, 4, 6], [1, 4, 6]],
    ):
        assert sizes(host, batch | {"video_grid_thw": torch.tensor(wrong)}) is None
    del batch["video_grid_thw"]
    assert sizes(host, batch) is None
    assert sizes(host, dict(input_ids=torch.tensor([[1, 7]]))) == [[]]


def test_sizes_of_pictures_and_videos_stand_in_the_order_of_the_prompt(host):
    ids = torch.tensor(
        [[1, *[IMAGE] * 4, *[VIDEO] * 12, *[IMAGE] * 6], [1, *[VIDEO] * 12, *[0] * 10]]
    )
    batch = dict(
        input_ids=ids,
        image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 6]]),
        video_grid_thw=torch.tensor([[2, 4, 6], [1, 6, 8]]),
    )
    assert sizes(host, batch) == [
        [ClipSize(1, 2, 2), ClipSize(2, 2, 3), ClipSize(1, 2, 3)],
        [ClipSize(1, 3, 4)],
    ]
    # By clip: two patches a side, and one.
    batch["video_merge_sizes"] = torch.tensor([2, 1])
    batch["video_grid_thw"] = torch.tensor([[2, 4, 6], [1, 3, 4]])
    assert sizes(host, batch)[1] == [ClipSize(1, 3, 4)]
    del batch["image_grid_thw"]
    assert sizes(host, batch) is None


def positions(rows, cols, scale=1):
    token = torch.arange(rows * cols)
    return torch.stack([torch.full_like(token, 7), 5 + token // cols * scale, 9 + token % cols])


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 6), (6, 1), (5, 3)])
def test_a_raster_has_the_rows_and_columns_over_which_positions_count(shape):
    assert raster_of(positions(*shape)) == shape
    assert raster_of(positions(*shape, scale=2)) == shape


def test_positions_that_count_otherwise_have_no_raster():
    text = torch.arange(6).expand(3, 6)
    assert raster_of(text) is None
    assert raster_of(torch.zeros(3, 6)) is None
    assert raster_of(positions(2, 3)[:, :5]) is None
    assert raster_of(torch.cat([positions(2, 3), positions(2, 3)], 1)) is None
