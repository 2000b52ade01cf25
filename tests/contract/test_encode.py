"""Conversations encoded by real processors: every family, and what lands on which token."""

import json

import pytest
import torch

from modulate import ClipInput
from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Message, Picture, VideoClip, user_turn
from modulate_hosts.contract import DATA
from modulate_hosts.contract.prompts import IMAGE
from modulate_hosts.contract.suite import strong
from tests.contract import test_unlisted
from tests.contract.encodings import built, encoding_of, noise
from tests.contract.processors import PICTURES_FIRST, PROCESSORS, cropped, tokenizer
from tests.tiny import D_FEATURES, scanpath

TIMES = (3.0, 3.5, 4.0, 5.2, 5.8, 6.1)
WINDOW = (2.0, 7.0)
PAIRS = tuple((first + second) / 2 for first, second in zip(TIMES[::2], TIMES[1::2], strict=True))
"""Mean times of two frames each."""

GRIDS = {
    "qwen2_vl": (2, 3),
    "qwen2_5_vl": (2, 3),
    "qwen3_vl": (2, 3),
    "qwen3_5": (2, 3),
    "glm4v": (2, 3),
    "llava_onevision": (2, 2),
    "llava_next_video": (2, 2),
    "video_llava": (2, 2),
    "internvl": (2, 2),
    "smolvlm": (2, 2),
    "gemma3": (2, 2),
    "gemma4": (6, 10),
    "video_llama_3": (2, 3),
    "minicpmv4_6": (2, 2),
    "llava": (4, 4),
    "idefics3": (2, 2),
    "lfm2_vl": (2, 3),
    "llama4": (2, 2),
    "paligemma": (4, 4),
}
"""Rows and columns of a frame of 64 × 96 pixels."""

IN_PAIRS = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"}
"""Families that merge two frames into a step."""

TIMED = {
    "qwen3_vl": [f"<{time:.1f}seconds>" for time in PAIRS],
    "qwen3_5": [f"<{time:.1f}seconds>" for time in PAIRS],
    "glm4v": ["<|end_of_image|>3", "<|end_of_image|>4", "<|end_of_image|>5"],
    "video_llama_3": [f"Time{time:.1f}s:" for time in TIMES],
    "smolvlm": ["00:03:", "00:04:", "00:05:", "00:06:"],
    "gemma4": ["00:03<", "00:04<", "00:05<", "00:06<"],
    "internvl": [f"Frame{number}:" for number in range(1, 7)],
}
"""What prompts say about time."""

ONE_KIND = {"glm4v", "smolvlm", "llava_onevision", "llava_next_video"}
"""Families that take no picture beside a clip."""


@pytest.fixture(scope="module", params=list(PROCESSORS))
def family(request):
    """The name of a family, a tiny host, and its processor."""
    return request.param, built(request.param), PROCESSORS[request.param]()


def logits(host, encoded):
    try:
        return host(**encoded.inputs).logits
    except AttributeError as error:
        pytest.skip(f"the bare host of this transformers fails: {error}")  # Llama 4 in 5.24


def clip(images=None, times=TIMES, window=WINDOW):
    return VideoClip(Frames(noise(len(times), 64, 96) if images is None else images, times), window)


def text_of(processor, inputs):
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    return text.replace("<unk>", "").replace(" ", "").replace("\n", "")


def test_a_clip_has_the_frames_true_times_and_its_family_s_tokens(family):
    name, host, processor = family
    (grid,) = understand(host).encode(processor, user_turn(clip(), "Where")).grids
    assert (grid.rows, grid.cols) == GRIDS[name]
    assert grid.times == pytest.approx(PAIRS if name in IN_PAIRS else TIMES)
    assert grid.spans[0][0] == 2.0 and grid.spans[-1][1] == 7.0


def test_residuals_reach_all_tokens_of_an_encoded_clip_and_no_other(family):
    _, host, processor = family
    encoded = understand(host).encode(processor, user_turn(clip(), "Where"))
    (grid,) = encoded.grids
    bare = logits(host, encoded)
    shown = ClipInput(scanpath(), grid, torch.randn(grid.steps, grid.tokens_per_step, D_FEATURES))
    with strong(host).attached(host) as attachment, attachment.condition([[shown]]):
        assert not torch.allclose(logits(host, encoded), bare, atol=1e-2)
    assert attachment.report().tokens == grid.tokens


def visual_states(host, encoded, grid):
    """Return what enters the first layer at the tokens of a grid, (token, d_model)."""
    served = understand(host)
    states = []
    hook = served.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    try:
        host(**encoded.inputs)
    except AttributeError:
        assert states  # Llama 4 in transformers 5.24 fails behind its layers
    finally:
        hook.remove()
    visual = torch.tensor(list(served.visual_ids.values()))
    positions = torch.isin(encoded.inputs["input_ids"][0], visual).nonzero()[:, 0]
    places = torch.tensor(list(served.placeholders(grid)))
    found = states[0][0, positions[places >= 0]]
    return found[places[places >= 0].argsort()]


def look_closely(host):
    """Make each visual token depend on the pixels of its own place alone.

    Attention within the vision tower is switched off, and projections that start as zeros are not.
    """
    language = understand(host).language
    ours = {id(parameter) for parameter in language.parameters()}
    for name, parameter in host.named_parameters():
        if id(parameter) in ours:
            continue
        if name.rpartition(".")[0].endswith(("out_proj", "o_proj", "attn.proj", "o_proj.linear")):
            parameter.data.zero_()
        elif parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)


@torch.no_grad()
def test_each_part_of_each_frame_is_seen_by_the_token_of_its_place(family):
    name, _, processor = family
    host = built(name)
    look_closely(host)
    frames_per_step = 2 if name in IN_PAIRS else 1
    images = noise(6, 64, 96)
    encode = lambda images: understand(host).encode(processor, user_turn(clip(images), "Where"))
    encoded = encode(images)
    (grid,) = encoded.grids
    before = visual_states(host, encoded, grid)
    last = grid.steps - 1, grid.rows - 1, grid.cols - 1
    for step, row, col in ((0, 0, 0), (1, 0, grid.cols - 1), (1, grid.rows - 1, 0), last):
        changed = images.copy()
        top, bottom = (round(64 * edge / grid.rows) for edge in (row, row + 1))
        left, right = (round(96 * edge / grid.cols) for edge in (col, col + 1))
        frames = slice(step * frames_per_step, (step + 1) * frames_per_step)
        changed[frames, top:bottom, left:right] = 255 - images[frames, top:bottom, left:right]
        moved = (visual_states(host, encode(changed), grid) - before).norm(dim=1)
        place = (step * grid.rows + row) * grid.cols + col
        assert int(moved.argmax()) == place, (name, step, row, col)


def test_the_prompt_states_times_as_its_family_does(family):
    name, host, processor = family
    inputs = understand(host).encode(processor, user_turn(clip(), "Where")).inputs
    text = text_of(processor, inputs)
    assert [part for part in TIMED.get(name, ()) if part not in text] == []
    if name == "qwen2_5_vl":
        mean_step = 2 * (TIMES[-1] - TIMES[0]) / (len(TIMES) - 1)
        assert inputs["second_per_grid_ts"].tolist() == pytest.approx([mean_step])
    else:
        assert "second_per_grid_ts" not in inputs


def conversation_with(*shown):
    return [
        Message("system", ("is",)),
        Message("user", (clip(), "Where")),
        Message("assistant", ("A",)),
        Message("user", (*shown, "is", "?")),
    ]


def test_a_conversation_s_grids_are_in_its_order_and_end_where_the_answer_begins(family):
    name, host, processor = family
    picture = Picture(noise(64, 96, seed=1), (1.0, 2.0))
    served = understand(host)
    conversation = conversation_with(clip() if name in ONE_KIND else picture)
    encoded = served.encode(processor, conversation)
    first, second = encoded.grids
    assert first.spans[0][0] == 2.0 and first.spans[-1][1] == 7.0
    assert second == first if name in ONE_KIND else second.spans == ((1.0, 2.0),)
    visual = torch.tensor(list(served.visual_ids.values()))
    placeholders = sum(len(served.placeholders(grid)) for grid in encoded.grids)
    assert int(torch.isin(encoded.inputs["input_ids"], visual).sum()) == placeholders
    assert torch.isfinite(logits(host, encoded)).all()
    text = text_of(processor, encoded.inputs)
    without = served.encode(processor, conversation, add_generation_prompt=False)
    begun = text_of(processor, without.inputs)
    assert text.startswith(begun) and len(text) > len(begun)


def test_clips_of_different_lengths_each_get_their_own_grid_or_are_refused(family):
    name, host, processor = family
    short = clip(times=TIMES[:4], window=(3.0, 5.5))
    try:
        encoded = understand(host).encode(processor, conversation_with(short))
    except HostError as error:
        # Their processors make one tensor of all clips; which ones depends on the release.
        assert "Its clips have 4 and 6 frames" in str(error)
        assert name not in {"qwen2_5_vl", "qwen3_vl", "video_llama_3", "gemma3", "llava"}
        return
    first, second = encoded.grids
    assert first.steps > second.steps and second.spans[-1][1] == 5.5
    assert torch.isfinite(logits(host, encoded)).all()


def test_one_frame_and_an_odd_number_of_frames(family):
    name, host, processor = family
    for count in (1, 5):
        shown = clip(times=TIMES[:count], window=(2.0, TIMES[count - 1]))
        encoded = understand(host).encode(processor, user_turn(shown, "Where"))
        (grid,) = encoded.grids
        assert grid.steps == (-(-count // 2) if name in IN_PAIRS else count)
        assert torch.isfinite(logits(host, encoded)).all()


def test_text_alone_has_no_grid(family):
    name, host, processor = family
    if name == "paligemma":
        with pytest.raises(HostError, match=r"encode this conversation: `images` are expected"):
            understand(host).encode(processor, user_turn("Where"))
        return
    encoded = understand(host).encode(processor, user_turn("Where"))
    assert encoded.grids == () and not any("pixel" in key for key in encoded.inputs)


@pytest.mark.parametrize("name", sorted(ONE_KIND))
def test_a_picture_beside_a_clip_is_refused_where_transformers_cannot_take_both(name):
    shown = (clip(), Picture(noise(64, 96)), "Where")
    with pytest.raises(HostError, match=r"clips and pictures|6 frames|pictures \(pixel_values\)"):
        understand(built(name)).encode(PROCESSORS[name](), user_turn(*shown))


def test_the_page_of_hosts_says_how_a_family_encodes(family):
    name, _, _ = family
    recorded = json.loads(DATA.read_text())["encodings"]
    assert recorded.keys() == PROCESSORS.keys()
    assert recorded[name] == encoding_of(name), (
        "`python -m pytest tests/contract --write-hosts` records it"
    )


def test_pictures_that_a_family_always_cuts_into_tiles_are_refused():
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    text = test_unlisted.text_config("llama")
    config = LlavaNextConfig(
        vision_config=test_unlisted.siglip(), text_config=text, image_token_index=IMAGE
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=[[16, 16]], **cropped(16)),
        tokenizer({"<image>": IMAGE}),
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=PICTURES_FIRST,
    )
    host = understand(LlavaNextForConditionalGeneration(config))
    with pytest.raises(HostError, match=r"made 2 pictures \(pixel_values\) of 1: it cuts them"):
        host.encode(processor, user_turn(Picture(noise(64, 96)), "Where"))
