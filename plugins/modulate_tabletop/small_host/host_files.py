"""The small host's configuration, tokenizer and processor, in the formats of transformers."""

from pathlib import Path
from typing import Any

from modulate_tabletop.text import VOCABULARY

WIDTH = 128
LAYERS = 6
PATCH = 8
PIXELS = 64
ID = {word: index for index, word in enumerate(VOCABULARY)}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is"
    " string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if"
    " part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] =="
    " 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text']"
    " }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt"
    " %}<|im_start|>assistant\n{% endif %}"
)


def configuration() -> Any:
    """Return a Qwen2.5-VL of 1.5 M parameters.

    The M-RoPE base is 100, so that positions of neighboring columns differ enough.
    """
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": PIXELS,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 1,
    }
    language = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [4, 6, 6],
            "rope_theta": 100.0,
        },
        "bos_token_id": None,
        "eos_token_id": ID["<|im_end|>"],
        "pad_token_id": ID["<|endoftext|>"],
    }
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=language,
        image_token_id=ID["<|image_pad|>"],
        video_token_id=ID["<|video_pad|>"],
        vision_start_token_id=ID["<|vision_start|>"],
        vision_end_token_id=ID["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def rescale(model: Any, factor: float) -> None:
    """Multiply the residual stream by ``factor``, in place; the answers stay the same.

    Training from scratch with tied embeddings leaves visual tokens with norms of about 50. A
    modulation must add a residual of similar size to have an effect, which an output projection
    that starts at zero does not reach in a few hundred updates. Every layer normalizes its input,
    so scaling everything written to the stream (embeddings, visual tokens, both outputs of each
    layer) and the norms' epsilon changes nothing else. The final norm is divided by ``factor``,
    because the output embeddings are tied to the scaled input embeddings.
    """
    core = model.model.language_model
    written = [core.embed_tokens.weight, *model.model.visual.merger.mlp[-1].parameters()]
    written += [
        weight
        for layer in core.layers
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)
    ]
    for weight in written:
        weight.data.mul_(factor)
    core.norm.weight.data.div_(factor)
    epsilon = model.config.text_config.rms_norm_eps * factor**2
    model.config.text_config.rms_norm_eps = epsilon
    for norm in (
        core.norm,
        *(
            norm
            for layer in core.layers
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ),
    ):
        norm.variance_epsilon = epsilon


def tokenizer() -> Any:
    """Return a tokenizer of words, two-digit numbers, punctuation, line breaks; rest: ``<unk>``."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[ \t\r]+"), behavior="removed"),
            pre_tokenizers.Split(
                Regex(r"\n\n|\n|[0-9]{1,2}|[\p{L}]+|[^\p{L}0-9\n]"), behavior="isolated"
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[
            "<|im_start|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def processor() -> Any:
    """Return a real processor that resizes to 64x64 pixels: 4x4 visual tokens for each step."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    common: dict[str, Any] = {
        "patch_size": PATCH,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": PIXELS**2, "longest_edge": PIXELS**2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    video = Qwen2VLVideoProcessor(**common, cap_pixels_per_frame=False)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**common),
        tokenizer=tokenizer(),
        video_processor=video,
        chat_template=CHAT_TEMPLATE,
    )


def save(model: Any, folder: Path) -> None:
    """Write weights, configuration, tokenizer and processor into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
