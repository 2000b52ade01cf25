"""Real processors for the tiny hosts of the contract and of `test_unlisted`, made offline.

All share one vocabulary of 64 tokens, with the special tokens of a family at the ids that its
host's configuration names, and a chat template in the manner of the family's own.
"""

from collections.abc import Callable
from typing import Any

import transformers as T

from modulate_hosts.contract.families import VOCAB
from modulate_hosts.contract.prompts import BOS, END, IMAGE, PAD, START, VIDEO

WORDS = [
    "Where",
    "is",
    "the",
    "viewer",
    "looking",
    "user",
    "assistant",
    "system",
    "Frame",
    "Time",
    "seconds",
]
SIGNS = ["\n", ":", ".", ",", "?", "<", ">", "A", "B", "C", "D", "s", *map(str, range(10))]
EOS = 2

CHAT = (
    "{% for message in messages %}{{ message.role }}:{% for part in message.content %}{% if"
    " part.type == 'image' %}IMAGE{% elif part.type == 'video' %}VIDEO{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat(image: str, video: str = "") -> str:
    """Return a template that writes parts in their order."""
    return CHAT.replace("IMAGE", image).replace("VIDEO", video)


PICTURES_FIRST = (
    "{% for message in messages %}{{ message.role }}:{% for part in message.content if part.type =="
    " 'image' %}<image>\n{% endfor %}{% for part in message.content if part.type == 'video' %}"
    "<video>\n{% endfor %}{% for part in message.content if part.type == 'text' %}{{ part.text }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""LLaVA's way: a message's pictures come first, then its videos, then its text."""


def tokenizer(special: dict[str, int | None], **names: str) -> Any:
    """Return a tokenizer with ``special`` tokens at their ids (None: anywhere).

    ``names``: attributes under which a processor asks for special tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    ids = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS, **{t: i for t, i in special.items() if i}}
    free = iter(sorted(set(range(VOCAB)) - set(ids.values())))
    for token in [*(t for t, i in special.items() if i is None), "<unk>", *SIGNS, *WORDS]:
        ids[token] = next(free)
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\n|[0-9]|[A-Za-z]+|[^A-Za-z0-9\n]"), behavior="isolated"
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return T.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        extra_special_tokens=names,
    )


HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
SIDE = {"height": 16, "width": 16}
PATCHES = dict(patch_size=4, merge_size=2, **HALF)
QWEN_TOKENS = {
    "<|vision_start|>": START,
    "<|vision_end|>": END,
    "<|video_pad|>": VIDEO,
    "<|image_pad|>": IMAGE,
}
QWEN_CHAT = chat(
    "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
)
LLAVA_TOKENS = {"<image>": IMAGE, "<video>": VIDEO}


def pixels(frames: int = 1) -> dict[str, int]:
    """Return limits that keep a frame of 16 × 24 pixels as it is."""
    return {"shortest_edge": 16 * 24, "longest_edge": 16 * 24 * frames}


def qwen(cls: type, video: type, frames: int = 1) -> Any:
    more = dict(temporal_patch_size=2, cap_pixels_per_frame=False)
    return cls(
        image_processor=T.Qwen2VLImageProcessor(size=pixels(), temporal_patch_size=2, **PATCHES),
        tokenizer=tokenizer(QWEN_TOKENS),
        video_processor=video(size=pixels(frames), **more, **PATCHES),
        chat_template=QWEN_CHAT,
    )


def llava_onevision() -> Any:
    return T.LlavaOnevisionProcessor(
        image_processor=T.LlavaOnevisionImageProcessor(
            size=SIDE, image_grid_pinpoints=[[16, 16]], **HALF
        ),
        video_processor=T.LlavaOnevisionVideoProcessor(size=SIDE, **HALF),
        tokenizer=tokenizer(LLAVA_TOKENS),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=PICTURES_FIRST,
    )


def internvl() -> Any:
    names = dict(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    special = {"<img>": START, "</img>": END, "<IMG_CONTEXT>": IMAGE, "<video>": None}
    return T.InternVLProcessor(
        image_processor=T.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, **HALF),
        video_processor=T.InternVLVideoProcessor(size=SIDE, **HALF),
        tokenizer=tokenizer(special, **names),
        image_seq_length=4,
        chat_template=chat("<IMG_CONTEXT>\n", "<video>\n"),
    )


IDEFICS_TOKENS = {
    "<image>": IMAGE,
    "<fake_token_around_image>": START,
    "<global-img>": None,
    "<end_of_utterance>": None,
    "<video>": None,
}


def smolvlm() -> Any:
    size = dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, **HALF)
    return T.SmolVLMProcessor(
        image_processor=T.SmolVLMImageProcessor(**size),
        video_processor=T.SmolVLMVideoProcessor(**size),
        tokenizer=tokenizer(IDEFICS_TOKENS),
        image_seq_len=4,
        chat_template=chat("<image>", "<video>"),
    )


def idefics3() -> Any:
    size = dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, **HALF)
    return T.Idefics3Processor(
        image_processor=T.Idefics3ImageProcessor(**size),
        tokenizer=tokenizer(IDEFICS_TOKENS),
        image_seq_len=4,
        chat_template=chat("<image>"),
    )


def gemma3() -> Any:
    names = dict(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    special = {"<start_of_image>": START, "<end_of_image>": END, "<image_soft_token>": IMAGE}
    return T.Gemma3Processor(
        image_processor=T.Gemma3ImageProcessor(size=SIDE, **HALF),
        tokenizer=tokenizer(special, **names),
        image_seq_length=4,
        chat_template="<bos>" + chat("<start_of_image>"),
    )


def gemma4() -> Any:
    names = dict(
        boi_token="<|image>",
        eoi_token="<image|>",
        image_token="<|image|>",
        audio_token="<|audio|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
    )
    special = {"<|image>": START, "<image|>": END, "<|image|>": IMAGE, "<|video|>": VIDEO}
    special |= {"<|audio|>": None, "<|audio>": None, "<audio|>": None}
    patches = dict(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    return T.Gemma4Processor(
        feature_extractor=T.Gemma4AudioFeatureExtractor(),
        image_processor=T.Gemma4ImageProcessor(**patches),
        video_processor=T.Gemma4VideoProcessor(**patches),
        tokenizer=tokenizer(special, **names),
        chat_template="<bos>" + chat("<|image|>", "<|video|>"),
    )


def video_llama_3() -> Any:
    common = dict(patch_size=4, **HALF)
    return T.VideoLlama3Processor(
        image_processor=T.VideoLlama3ImageProcessor(size=pixels(), merge_size=1, **common),
        video_processor=T.VideoLlama3VideoProcessor(size=pixels(6), merge_size=2, **common),
        tokenizer=tokenizer({"<|video_pad|>": VIDEO, "<|image_pad|>": IMAGE}),
        chat_template=chat("<|image_pad|>\n", "<|video_pad|>\n"),
    )


def minicpmv4_6() -> Any:
    names = dict(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )
    special = dict.fromkeys(names.values())
    special |= {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<image>": START, "</image>": END}
    size = dict(scale_resolution=32, patch_size=4, **HALF)
    return T.MiniCPMV4_6Processor(
        image_processor=T.MiniCPMV4_6ImageProcessor(**size),
        video_processor=T.MiniCPMV4_6VideoProcessor(**size),
        tokenizer=tokenizer(special, **names),
        chat_template=chat("<|image_pad|>\n", "<|video_pad|>\n"),
    )


def cropped(side: int) -> dict[str, Any]:
    """Return the settings of CLIP's preprocessing: a resize of the short side, a center crop."""
    size = dict(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return size | dict(do_center_crop=True, **HALF)


def video_llava() -> Any:
    return T.VideoLlavaProcessor(
        image_processor=T.VideoLlavaImageProcessor(**cropped(8)),
        video_processor=T.VideoLlavaVideoProcessor(**cropped(8)),
        tokenizer=tokenizer(LLAVA_TOKENS),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PICTURES_FIRST,
    )


def llava() -> Any:
    return T.LlavaProcessor(
        image_processor=T.CLIPImageProcessor(**cropped(16)),
        tokenizer=tokenizer({"<image>": IMAGE}),
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=PICTURES_FIRST,
    )


def llava_next_video() -> Any:
    return T.LlavaNextVideoProcessor(
        image_processor=T.LlavaNextImageProcessor(image_grid_pinpoints=[[16, 16]], **cropped(16)),
        video_processor=T.LlavaNextVideoVideoProcessor(**cropped(16)),
        tokenizer=tokenizer(LLAVA_TOKENS),
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=PICTURES_FIRST,
    )


def lfm2_vl() -> Any:
    special = {"<image>": IMAGE, "<|image_start|>": START, "<|image_end|>": END}
    size = dict(encoder_patch_size=4, tile_size=16, min_image_tokens=4, max_image_tokens=8)
    return T.Lfm2VlProcessor(
        image_processor=T.Lfm2VlImageProcessor(**size, **HALF),
        tokenizer=tokenizer(special | {"<|img_thumbnail|>": None}),
        chat_template="<bos>" + chat("<image>"),
    )


def glm4v() -> Any:
    special = {
        "<|image|>": IMAGE,
        "<|video|>": VIDEO,
        "<|begin_of_image|>": START,
        "<|end_of_image|>": END,
        "<|begin_of_video|>": 10,
        "<|end_of_video|>": 11,
    }
    size = dict(size=pixels(), temporal_patch_size=2, **PATCHES)
    return T.Glm4vProcessor(
        image_processor=T.Glm4vImageProcessor(**size),
        video_processor=T.Glm4vVideoProcessor(**size | {"size": pixels(6)}),
        tokenizer=tokenizer(special),
        chat_template=chat(
            "<|begin_of_image|><|image|><|end_of_image|>",
            "<|begin_of_video|><|video|><|end_of_video|>",
        ),
    )


def llama4() -> Any:
    special = {"<|patch|>": IMAGE, "<|image_start|>": START, "<|image_end|>": END}
    special |= {"<|image|>": None, "<|tile_x_separator|>": None, "<|tile_y_separator|>": None}
    return T.Llama4Processor(
        image_processor=T.Llama4ImageProcessor(size=SIDE, max_patches=4, **HALF),
        tokenizer=tokenizer(special),
        patch_size=4,
        pixel_shuffle_ratio=0.5,
        chat_template="<bos>" + chat("<|image|>"),
    )


def paligemma() -> Any:
    """Return PaliGemma's, which has no chat template."""
    images = T.SiglipImageProcessor(size=SIDE, **HALF)
    images.image_seq_length = 16
    return T.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer({"<image>": IMAGE}))


PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen2_vl": lambda: qwen(T.Qwen2VLProcessor, T.Qwen2VLVideoProcessor),
    "qwen2_5_vl": lambda: qwen(T.Qwen2_5_VLProcessor, T.Qwen2VLVideoProcessor),
    "qwen3_vl": lambda: qwen(T.Qwen3VLProcessor, T.Qwen3VLVideoProcessor, 6),
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "video_llama_3": video_llama_3,
    "minicpmv4_6": minicpmv4_6,
    "video_llava": video_llava,
    "llava": llava,
    "llava_next_video": llava_next_video,
    "idefics3": idefics3,
    "lfm2_vl": lfm2_vl,
    "glm4v": glm4v,
    "llama4": llama4,
    "paligemma": paligemma,
    "gemma4": gemma4,
    "qwen3_5": lambda: qwen(T.Qwen3VLProcessor, T.Qwen3VLVideoProcessor, 6),
}
