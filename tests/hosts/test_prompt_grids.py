"""modulate.hosts.prompt_grids: grids from what processors return, checked against the prompt."""

import numpy as np
import pytest
import torch

from modulate.errors import HostError
from modulate.hosts.host import Host, understand
from modulate.hosts.prompt_grids import Shown, entry_sizes, grids_of, picture_sizes
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Picture, VideoClip, user_turn
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.prompts import IMAGE
from tests.contract.processors import PROCESSORS

BUILD = {family.name: family.build for family in FAMILIES}


def frames(*times):
    return Frames(np.zeros((len(times), 16, 24, 3), np.uint8), times)


def test_sizes_are_read_from_what_the_processor_returns():
    lengths = {"image": [1, 1], "video": [3]}
    sizes = lambda modality, **outputs: picture_sizes(outputs, modality, lengths)
    grid = torch.tensor([[2, 4, 6]])
    assert sizes("video", video_grid_thw=grid) == [(2, 4, 6)]
    shapes = torch.tensor([[4, 6], [8, 2]])
    assert sizes("image", spatial_shapes=shapes) == [(1, 4, 6), (1, 8, 2)]
    assert sizes("video", target_sizes_videos=torch.tensor([[4, 6]] * 3)) == [(3, 4, 6)]
    apart = dict(pixel_values=torch.ones(2, 3, 8, 12), pixel_values_videos=torch.ones(3, 3, 4, 8))
    assert sizes("image", **apart) == [(1, 8, 12)] * 2
    assert sizes("video", **apart) == [(3, 4, 8)]
    assert sizes("video", pixel_values=torch.ones(5, 3, 4, 8)) == [(3, 4, 8)]


def test_pictures_cut_into_tiles_are_refused():
    with pytest.raises(
        HostError, match=r"made 5 pictures \(pixel_values\) of 2: it cuts them into"
    ):
        picture_sizes({"pixel_values": torch.ones(5, 3, 4, 4)}, "image", {"image": [2]})
    with pytest.raises(HostError, match=r"made 3 pictures \(target_sizes\) of 2: it cuts"):
        entry_sizes([(2, 2)] * 3, [1, 1], "target_sizes")
    with pytest.raises(HostError, match="gives the frames of a clip different sizes"):
        entry_sizes([(2, 2), (2, 3)], [2], "target_sizes")


def test_outputs_that_name_no_size_are_refused_with_what_was_looked_for():
    outputs = {"input_ids": torch.ones(1, 3), "pixel_values": torch.ones(1, 16, 48)}
    with pytest.raises(
        HostError, match=r"looked for image_grid_thw, .*; it returned input_ids, pixel_values\."
    ):
        picture_sizes(outputs, "image", {"image": [1]})


def test_clips_are_shown_frame_by_frame_to_a_processor_without_videos():
    host = understand(BUILD["gemma3"]())
    clip = VideoClip(frames(0.0, 1.0), (0.0, 1.0))
    shown = Shown.of(host, PROCESSORS["gemma3"](), clip)
    assert shown.modality == "image" and shown.lengths == [1, 1]
    video = Shown.of(host, PROCESSORS["qwen2_vl"](), clip)
    assert video.modality == "video" and video.lengths == [2]


def test_a_clip_shorter_than_a_step_has_its_frame_repeated():
    host = understand(BUILD["qwen3_vl"]())
    clip = VideoClip(frames(2.0), (1.0, 2.0))
    processor = PROCESSORS["qwen3_vl"]()
    assert len(Shown.of(host, processor, clip).pictures) == 2
    (grid,) = host.encode(processor, user_turn(clip, "Where")).grids
    assert grid.times == (2.0,) and grid.spans == ((1.0, 2.0),)


@pytest.fixture
def two_pictures():
    """A host, its processor, two pictures of different shape, what the processor makes of them."""
    host = understand(BUILD["qwen2_vl"]())
    processor = PROCESSORS["qwen2_vl"]()
    shown = [
        Shown.of(host, processor, Picture(np.zeros((*size, 3), np.uint8)))
        for size in ((16, 24), (24, 16))
    ]
    outputs = {
        "input_ids": torch.tensor([[1, *[IMAGE] * 12, 2]]),
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 6, 4]]),
    }
    return host, processor, shown, outputs


def replaced(*counts):
    return [{"type": "image", "replacement": "<|image_pad|>" * count} for count in counts]


def test_each_picture_is_checked_against_its_own_placeholders(two_pictures):
    first, second = grids_of(*two_pictures, replaced(6, 6))
    assert (first.rows, first.cols, second.rows, second.cols) == (2, 3, 3, 2)
    with pytest.raises(HostError, match="5 placeholders in 1 steps fit no grid in the ratio 4:6"):
        grids_of(*two_pictures, replaced(5, 7))


def test_a_processor_that_does_not_say_what_belongs_to_which_picture_may_get_one(two_pictures):
    host, processor, shown, outputs = two_pictures
    with pytest.raises(HostError, match="does not say which of the 12 placeholders belong"):
        grids_of(host, processor, shown, outputs, None)
    outputs["input_ids"] = torch.tensor([[1, *[IMAGE] * 6, 2]])
    (grid,) = grids_of(host, processor, shown[:1], outputs, None)
    assert grid.tokens == 6


def test_a_template_that_leaves_out_a_picture_is_refused(two_pictures):
    with pytest.raises(HostError, match="chat template shows 1 of the conversation's 2 clips and"):
        grids_of(*two_pictures, replaced(12))


def test_placeholders_that_the_tokenizer_lost_are_refused(two_pictures):
    host, processor, shown, outputs = two_pictures
    outputs["input_ids"] = outputs["input_ids"][:, 3:]
    with pytest.raises(
        HostError, match=r"wrote 12 placeholders .*, of which the tokenizer made 10"
    ):
        grids_of(host, processor, shown, outputs, replaced(6, 6))


def test_another_number_of_steps_than_the_frames_make_is_refused():
    host = understand(BUILD["qwen2_vl"]())
    processor = PROCESSORS["qwen2_vl"]()
    shown = [Shown.of(host, processor, VideoClip(frames(0.0, 1.0, 2.0, 3.0), (0.0, 3.0)))]
    outputs = {
        "input_ids": torch.tensor([[5] * 18]),
        "video_grid_thw": torch.tensor([[3, 4, 6]]),
    }
    with pytest.raises(HostError, match="made 3 steps and 18 placeholders of 4 frames, the grid"):
        grids_of(host, processor, shown, outputs, None)


def test_placeholders_without_a_place_count_too():
    class Ended(Host):
        def placeholders(self, grid):
            return [*range(grid.tokens), -1]

    host = Ended(BUILD["qwen2_vl"]())
    processor = PROCESSORS["qwen2_vl"]()
    shown = [Shown.of(host, processor, Picture(np.zeros((16, 24, 3), np.uint8)))]
    outputs = {
        "input_ids": torch.tensor([[IMAGE] * 7]),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }
    (grid,) = grids_of(host, processor, shown, outputs, None)
    assert (grid.rows, grid.cols) == (2, 3)
