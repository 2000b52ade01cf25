"""Qwen-VL models without weights: shipped configurations, a stand-in tokenizer, narrow twins.

The numbers of visual tokens are exact, since the image and video processors are transformers' own
with the model's parameters. The numbers of text tokens are approximate: the stand-in tokenizer
makes one token of every piece of up to five letters. Its special tokens have their real ids.
"""

import copy
import json
from pathlib import Path
from typing import Any

from modulate.errors import HostError, near_matches

CONFIGS = Path(__file__).parent / "configs"

TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful"
    " assistant.<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message.role"
    " }}\n{% if message.content is string %}{{ message.content }}{% else %}{% for part in"
    " message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{%"
    " elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text"
    " }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt"
    " %}<|im_start|>assistant\n{% endif %}"
)
"""The format of conversations (ChatML) on which the family's models were trained."""

PIECE = r" ?\p{L}{1,5}|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
UNKNOWN = "<piece>"
"""The token of every piece, except for single letters, digits and signs, which have their own:
answers are letters.
"""


def shipped_model(path: str) -> dict[str, Any]:
    """Return the shipped facts about the model with the hub id ``path``.

    Keys: "config", "pixels" (limits of the image processor), "tokens" (special ones and their ids).
    Raises :class:`HostError` naming the nearest shipped model.
    """
    name = path.rpartition("/")[2]
    names = {file.stem: file for file in CONFIGS.glob("*.json")}
    if name not in names:
        raise HostError(
            f"No configuration of {path!r} ships with this plugin; give a folder with its"
            f" config.json as path. {near_matches(name, names)}"
        )
    facts: dict[str, Any] = json.loads(names[name].read_text(encoding="utf-8"))
    return facts


def shipped_config(path: str) -> Any:
    """Return the transformers configuration of the hub id ``path``."""
    from transformers import AutoConfig

    values = dict(shipped_model(path)["config"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def processor(path: str) -> Any:
    """Return Qwen2.5-VL's processor for the hub id ``path``, with a stand-in tokenizer."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    facts = shipped_model(path)
    vision = facts["config"]["vision_config"]
    sizes = {
        "patch_size": vision["patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(facts["pixels"]), **sizes),
        video_processor=Qwen2VLVideoProcessor(
            size=dict(facts["pixels"]), cap_pixels_per_frame=False, **sizes
        ),
        tokenizer=tokenizer(facts["tokens"]),
        chat_template=TEMPLATE,
    )


def tokenizer(special: dict[str, int]) -> Any:
    """Return the stand-in tokenizer, with ``special`` tokens at their ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = [chr(code) for code in range(33, 127)]
    vocabulary = {token: number for number, token in enumerate([UNKNOWN, *signs])}
    backend = Tokenizer(models.WordLevel({**vocabulary, **special}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def narrow(config: Any) -> Any:
    """Return a copy of ``config`` with all decoder layers, each one attention head wide.

    The vision tower is as shallow as its outputs to further layers (deepstack) allow.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    vision = small.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    text.hidden_size = head
    text.intermediate_size = 32
    text.num_attention_heads = 1
    text.num_key_value_heads = 1
    side = getattr(vision, "embed_dim", vision.hidden_size) // vision.num_heads
    taps = getattr(vision, "deepstack_visual_indexes", None)
    vision.num_heads = 1
    vision.intermediate_size = 32
    vision.depth = 1 + max(taps or [0])
    if hasattr(vision, "embed_dim"):
        # Qwen2-VL, where `hidden_size` is the width of the output
        vision.embed_dim = side
        vision.hidden_size = head
    else:
        vision.hidden_size = side
        vision.out_hidden_size = head
    if hasattr(vision, "fullatt_block_indexes"):
        vision.fullatt_block_indexes = [0]
    if hasattr(text, "moe_intermediate_size"):
        text.moe_intermediate_size = 32
    return small
