"""modulate.hosts.encoding: conversations through any processor, with a real one made offline.

Every family's encoding is in tests/contract/test_encode.py.
"""

import numpy as np
import pytest

from modulate.errors import DataError, HostError
from modulate.hosts.encoding import metadata, whole_pictures
from modulate.hosts.host import understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Message, Picture, VideoClip, user_turn
from modulate_hosts.contract.families import FAMILIES
from tests.contract.processors import HALF, PICTURES_FIRST, PROCESSORS

PICTURE = Picture(np.zeros((16, 24, 3), np.uint8), (1.0, 2.0))
CLIP = VideoClip(Frames(np.zeros((4, 16, 24, 3), np.uint8), (1.0, 1.5, 3.0, 4.0)), (0.5, 4.5))


@pytest.fixture(scope="module")
def host():
    (family,) = [family for family in FAMILIES if family.name == "qwen2_5_vl"]
    return understand(family.build())


@pytest.fixture
def processor():
    return PROCESSORS["qwen2_5_vl"]()


def test_metadata_give_each_frame_its_own_time_and_the_mean_rate():
    from transformers.video_utils import VideoMetadata

    read = VideoMetadata(**metadata(CLIP))
    assert read.timestamps == [1.0, 1.5, 3.0, 4.0]
    assert read.sampled_fps == pytest.approx(1.0)  # three intervals in three seconds
    assert read.duration == 4.5
    single = VideoClip(Frames(CLIP.frames.images[:1], (2.0,)), (2.0, 2.0))
    assert VideoMetadata(**metadata(single)).timestamps == [2.0]


def test_text_with_a_placeholder_in_it_is_refused_by_name(host, processor):
    for token in ("<|image_pad|>", "<|video_pad|>"):
        with pytest.raises(DataError, match=r"'Is [^']*' contains '<\|\w+_pad\|>', which stands"):
            host.encode(processor, user_turn(CLIP, f"Is {token} a token?"))


def test_a_template_that_puts_pictures_before_clips_is_refused(host, processor):
    shown = "<|vision_start|><|{}_pad|><|vision_end|>"
    template = PICTURES_FIRST.replace("<image>", shown.format("image"))
    processor.chat_template = template.replace("<video>", shown.format("video"))
    assert len(host.encode(processor, user_turn(PICTURE, CLIP, "Where")).grids) == 2
    with pytest.raises(HostError, match=r"\(image, video instead of video, image\); write them in"):
        host.encode(processor, user_turn(CLIP, PICTURE, "Where"))


def test_a_template_that_leaves_a_clip_out_is_refused_with_the_processor_s_words(host, processor):
    processor.chat_template = "{% for message in messages %}user{% endfor %}"
    with pytest.raises(HostError, match=r"cannot encode this .* 1 videos|shows 0 of the"):
        host.encode(processor, user_turn(CLIP, "Where"))
    processor.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(HostError, match=r"cannot encode this conversation: Roles must alternate\."):
        host.encode(processor, user_turn("Where"))


def test_without_a_template_of_its_own_a_processor_takes_its_tokenizer_s(host, processor):
    processor.chat_template = None
    processor.tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}:{{ message.content }}{% endfor %}"
    )
    encoded = host.encode(processor, user_turn(CLIP, "Where"))
    text = processor.tokenizer.decode(encoded.inputs["input_ids"][0]).replace(" ", "")
    assert text == f"user:{'<|video_pad|>' * 12}\nWhere"


def test_without_any_template_a_conversation_is_lines_with_roles(host, processor):
    processor.chat_template = None
    turns = [Message("user", (PICTURE, "Where")), Message("assistant", ("A",))]
    encoded = host.encode(processor, [*turns, Message("user", ("is",))])
    text = processor.tokenizer.decode(encoded.inputs["input_ids"][0])
    lines = text.replace(" ", "").replace("<unk>", "").split("\n")  # roles are unknown words
    assert lines == [f":{'<|image_pad|>' * 6}", "Where", ":A", ":is", ":"]
    closed = host.encode(processor, turns, add_generation_prompt=False)
    assert processor.tokenizer.decode(closed.inputs["input_ids"][0]).endswith("A")


def test_a_template_that_begins_with_the_first_token_does_not_get_it_twice(host, processor):
    processor.tokenizer.add_bos_token = True
    processor.chat_template = "<bos>" + processor.chat_template
    ids = host.encode(processor, user_turn("Where")).inputs["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_pictures_are_shown_whole():
    from transformers import CLIPImageProcessor, Idefics3ImageProcessor

    crop = CLIPImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, **HALF
    )
    settings = whole_pictures(crop)
    assert settings["size"] == {"height": 16, "width": 16} and not settings["do_center_crop"]
    assert whole_pictures(Idefics3ImageProcessor()) == {"do_image_splitting": False}
    assert whole_pictures(object()) == {}


def test_the_model_gets_no_input_that_it_does_not_take(host, processor):
    encoded = host.encode(processor, user_turn(PICTURE, CLIP, "Where"))
    assert encoded.inputs.keys() <= host.input_names()
    assert "second_per_grid_ts" in encoded.inputs
    host.model(**encoded.inputs)
