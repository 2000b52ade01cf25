"""Prompts encoded from frames by real processors: grids, placeholders and times fit the frames."""

import numpy as np
import pytest
import torch
import transformers

from modulate import ClipInput
from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Picture, VideoClip, user_turn
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import Case, close, strong
from tests.tiny import D_FEATURES, scanpath

WORDS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<|image_pad|>",
    "<unk>",
    "user",
    "assistant",
    "Where",
    "<",
    ">",
    ".",
    "seconds",
    "\n",
    *map(str, range(10)),
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] =="
    " 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif"
    " %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
)
PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
}
TIMES = (3.0, 3.5, 4.0, 5.2, 5.8, 6.1)


def processor(name):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\n|[0-9]|[A-Za-z]+|[^A-Za-z0-9\n]"), behavior="isolated"
    )
    special = [word for word in WORDS if word.startswith("<|")]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=special,
    )
    common = dict(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 24, "longest_edge": 16 * 24},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    video = (
        transformers.Qwen3VLVideoProcessor
        if name == "qwen3_vl"
        else transformers.Qwen2VLVideoProcessor
    )
    if name == "qwen3_vl":
        common["size"] = {"shortest_edge": 16 * 24, "longest_edge": 16 * 24 * len(TIMES)}
    return getattr(transformers, PROCESSORS[name])(
        image_processor=transformers.Qwen2VLImageProcessor(**common),
        tokenizer=tokenizer,
        video_processor=video(**common),
        chat_template=TEMPLATE,
    )


@pytest.fixture(params=list(PROCESSORS))
def encoded(request):
    """A case, its processor, and a prompt that it encoded."""
    case = Case(next(family for family in FAMILIES if family.name == request.param))
    images = np.random.default_rng(0).integers(0, 256, (len(TIMES), 16, 24, 3), dtype=np.uint8)
    encoder = processor(request.param)
    clip = VideoClip(Frames(images, TIMES), (2.0, 7.0))
    prompt = understand(case.host).encode(encoder, user_turn(clip, "Where"))
    return case, encoder, prompt


def test_the_grid_has_the_frames_true_times_and_the_host_s_tokens(encoded):
    case, _, prompt = encoded
    grid = prompt.grids[0]
    assert grid.times == pytest.approx((3.25, 4.6, 5.95))
    assert grid.spans[0][0] == 2.0 and grid.spans[-1][1] == 7.0
    assert (grid.rows, grid.cols) == (2, 3)
    assert int((prompt.inputs["input_ids"] == 5).sum()) == grid.tokens
    clip = ClipInput(scanpath(), grid, torch.randn(grid.steps, grid.tokens_per_step, D_FEATURES))
    modulation = strong(case.host)
    bare = case.host(**prompt.inputs).logits
    with modulation.attached(case.host) as attachment, attachment.condition([[clip]]):
        assert not torch.allclose(case.host(**prompt.inputs).logits, bare, atol=1e-2)
    assert attachment.report().tokens == grid.tokens


def test_the_prompt_gives_times_to_the_model_as_its_family_does(encoded):
    case, encoder, prompt = encoded
    text = encoder.tokenizer.decode(prompt.inputs["input_ids"][0])
    text = text.replace("<unk>", "").replace(" ", "")
    if case.family.name == "qwen3_vl":
        assert len(prompt.grids[0].times) == 3
        assert all(f"<{time:.1f}seconds>" in text for time in prompt.grids[0].times)
    elif case.family.name == "qwen2_5_vl":
        close(
            prompt.inputs["second_per_grid_ts"].double(),
            torch.tensor([2 * (TIMES[-1] - TIMES[0]) / (len(TIMES) - 1)]).double(),
        )
    else:
        assert "second_per_grid_ts" not in prompt.inputs and "seconds" not in text


def test_a_family_that_cannot_encode_says_so():
    host = understand(Case(next(family for family in FAMILIES if family.name == "internvl")).host)
    with pytest.raises(
        HostError, match=r"Encoding prompts for Host \(internvl\) is not supported yet"
    ):
        host.encode(None, user_turn(Picture(np.zeros((2, 2, 3), np.uint8)), "Where"))
