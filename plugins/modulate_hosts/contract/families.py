"""The hosts of the contract suite: real transformers classes with tiny random weights.

The end of this file has one entry for each family.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modulate import visual_grid
from modulate.interfaces.visual_grid import VisualGrid
from modulate_hosts.contract.prompts import (
    BOS,
    BOTH,
    END,
    IMAGE,
    ONE,
    PAD,
    START,
    VIDEO,
    Clips,
    Family,
    Slot,
    frame_by_frame,
    grids,
    in_one_run,
    noise,
    patches,
    pictures,
    pictures_by_row,
)

WIDTH = 32
LAYERS = 4
VOCAB = 64


def finished(model: nn.Module) -> nn.Module:
    """Return a new model frozen, and fit for comparing what it generates.

    It generates to the full length asked for, and no placeholders by chance: their logit is 0.
    """
    model.eval().requires_grad_(False)
    model.get_output_embeddings().weight[[IMAGE, VIDEO]] = 0.0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.bos_token_id = BOS
    return model


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def call() -> nn.Module:
        torch.manual_seed(0)
        return finished(build())

    return call


def language(**more: Any) -> dict[str, Any]:
    """Return the configuration of the text model that most hosts share."""
    return dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=BOS,
        eos_token_id=2,
        pad_token_id=PAD,
        head_dim=8,
        **more,
    )


MROPE = dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1000.0)
IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO, tie_word_embeddings=False)
SIGLIP = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
)


# --- clips and vision inputs of single families


def onevision(grids: dict[str, VisualGrid], rows: Clips) -> dict[str, Tensor]:
    """Return videos (video, frame, channel, height, width), and images not cut into patches.

    The processor leaves images whole in a prompt with several.
    """
    inputs: dict[str, Tensor] = {}
    steps = grids["video"].steps
    videos = [noise(steps, 3, 16, 16, seed=seed) for seed in seeds(rows, "video")]
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    images = [noise(1, 3, 16, 16, seed=seed) for seed in seeds(rows, "image")]
    if images:
        inputs["pixel_values"] = torch.stack(images)
        inputs["image_sizes"] = torch.tensor([[16, 16]] * len(images))
        # Two or more, or the model takes a single image for one that is cut into patches.
        inputs["batch_num_images"] = torch.tensor([max(2, len(images))])
    return inputs


def seeds(rows: Clips, kind: str) -> list[int]:
    """Return the numbers of the clips of one kind, in order."""
    return [seed for row in rows for clip_kind, seed in row if clip_kind == kind]


def navit(grids: dict[str, VisualGrid], rows: Clips) -> dict[str, Tensor]:
    """Return the patches of all pictures side by side, and (rows, columns) of each picture.

    Patches: (1, channel, patch height, width).
    """
    inputs: dict[str, Tensor] = {}
    for kind, suffix in (("image", ""), ("video", "_videos")):
        clips = [
            noise(1, 3, 4, grids[kind].steps * 64 * 4, seed=seed) for seed in seeds(rows, kind)
        ]
        if clips:
            pictures = grids[kind].steps * len(clips)
            inputs[f"pixel_values{suffix}"] = torch.cat(clips, -1)
            inputs[f"target_sizes{suffix}"] = torch.tensor([[8, 8]] * pictures, dtype=torch.int32)
    return inputs


def with_class_tokens(grids: dict[str, VisualGrid], ids: dict[str, int], kind: str) -> list[Slot]:
    """Return a clip in one run; in a video, a class token without a place begins every frame."""
    grid = grids[kind]
    slots = [Slot(START)]
    for step in range(grid.steps):
        if kind == "video":
            slots.append(Slot(ids[kind], 2))
        first = step * grid.tokens_per_step
        slots += [Slot(ids[kind], 2, first + offset) for offset in range(grid.tokens_per_step)]
    return [*slots, Slot(END)]


def towers(grids: dict[str, VisualGrid], rows: Clips) -> dict[str, Tensor]:
    """Return videos (video, frame, channel, height, width), images (image, channel, ...)."""
    from transformers import VideoLlavaForConditionalGeneration

    # The name of the argument depends on the release of transformers.
    parameters = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
    image_name = "pixel_values" if "pixel_values" in parameters else "pixel_values_images"
    inputs: dict[str, Tensor] = {}
    steps = grids["video"].steps
    videos = [noise(steps, 3, 8, 8, seed=seed) for seed in seeds(rows, "video")]
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    images = [noise(3, 8, 8, seed=seed) for seed in seeds(rows, "image")]
    if images:
        inputs[image_name] = torch.stack(images)
    return inputs


# --- the families


def qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = dict(
        depth=1,
        embed_dim=16,
        hidden_size=WIDTH,
        mlp_ratio=2,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            vision_config=vision,
            text_config=language(rope_parameters=MROPE),
            vision_start_token_id=START,
            vision_end_token_id=END,
            **IDS,
        )
    )


def qwen2_5_vl() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=32,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        window_size=16,
        out_hidden_size=WIDTH,
        fullatt_block_indexes=[0],
        tokens_per_second=2,
    )
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config=vision,
            text_config=language(rope_parameters=MROPE),
            vision_start_token_id=START,
            vision_end_token_id=END,
            **IDS,
        )
    )


def qwen3_vl() -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = dict(
        depth=2,
        hidden_size=16,
        intermediate_size=32,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=WIDTH,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    )
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            vision_config=vision,
            text_config=language(rope_parameters=MROPE),
            vision_start_token_id=START,
            vision_end_token_id=END,
            **IDS,
        )
    )


def llava_onevision() -> nn.Module:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    tower = dict(model_type="siglip_vision_model", vision_use_head=False, **SIGLIP)
    text_config = dict(model_type="qwen2", **language())
    ids = dict(image_token_index=IMAGE, video_token_index=VIDEO, tie_word_embeddings=False)
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=tower, text_config=text_config, image_grid_pinpoints=[[16, 16]], **ids
        )
    )


def internvl() -> nn.Module:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=[16, 16],
        patch_size=[4, 4],
    )
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=dict(model_type="qwen2", **language()),
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def smolvlm() -> nn.Module:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=dict(SIGLIP),
            text_config=dict(model_type="llama", **language()),
            image_token_id=IMAGE,
            scale_factor=2,
            tie_word_embeddings=False,
        )
    )


def gemma3() -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text_config = language(
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=8,
    )
    ids = dict(
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text_config,
            vision_config=dict(vision_use_head=False, **SIGLIP),
            mm_tokens_per_image=4,
            **ids,
        )
    )


def video_llama_3() -> nn.Module:
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=4,
    )
    return VideoLlama3ForConditionalGeneration(
        VideoLlama3Config(
            vision_config=vision, text_config=dict(model_type="qwen2", **language()), **IDS
        )
    )


def minicpmv4_6() -> nn.Module:
    from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
    )
    text_config = language(
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=dict(
            rope_type="default",
            mrope_section=[1, 1, 2],
            rope_theta=1000.0,
            partial_rotary_factor=1.0,
        ),
    )
    return MiniCPMV4_6ForConditionalGeneration(
        MiniCPMV4_6Config(
            vision_config=vision,
            text_config=dict(model_type="qwen3_5_text", **text_config),
            insert_layer_id=0,
            image_size=32,
            **IDS,
        )
    )


def video_llava() -> nn.Module:
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    text_config = dict(model_type="llama", **language())
    tower = dict(model_type="clip_vision_model", **SIGLIP | {"image_size": 8})
    return VideoLlavaForConditionalGeneration(
        VideoLlavaConfig(
            vision_config=tower,
            text_config=text_config,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )
    )


def family(
    name: str,
    build: Callable[[], nn.Module],
    places: dict[str, VisualGrid],
    clip: Callable[..., list[Slot]],
    ids: dict[str, int],
    vision: Callable[..., dict[str, Tensor]],
    **more: Any,
) -> Family:
    return Family(
        name, seeded(build), partial(clip, places, ids), partial(vision, places), places, **more
    )


WIDE = grids(2, 2, 3)
SQUARE = grids(1, 2, 2)

FAMILIES = [
    family(
        "qwen2_vl",
        qwen2_vl,
        WIDE,
        in_one_run,
        BOTH,
        lambda places, rows: patches(places, 2, 96, rows),
        types="mm_token_type_ids",
    ),
    family(
        "qwen2_5_vl",
        qwen2_5_vl,
        WIDE,
        in_one_run,
        BOTH,
        lambda places, rows: patches(places, 2, 96, rows, times=True),
        types="mm_token_type_ids",
    ),
    family(
        "qwen3_vl",
        qwen3_vl,
        WIDE,
        frame_by_frame,
        BOTH,
        lambda places, rows: patches(places, 2, 96, rows),
        types="mm_token_type_ids",
    ),
    family(
        "llava_onevision",
        llava_onevision,
        SQUARE | {"image": visual_grid([0.0], 1, 4, 4, (0.0, 4.0))},
        partial(in_one_run, tail=1),
        BOTH,
        onevision,
    ),
    family(
        "internvl",
        internvl,
        SQUARE,
        frame_by_frame,
        ONE,
        lambda places, rows: pictures(places, 16, rows),
    ),
    family(
        "smolvlm",
        smolvlm,
        SQUARE,
        frame_by_frame,
        ONE,
        lambda places, rows: pictures_by_row(places, 16, rows),
    ),
    family(
        "gemma3",
        gemma3,
        SQUARE,
        partial(frame_by_frame, code={"image": 1, "video": 1}),
        ONE,
        lambda places, rows: pictures(places, 16, rows),
        types="token_type_ids",
    ),
    family(
        "video_llama_3",
        video_llama_3,
        grids(1, 2, 3),
        in_one_run,
        BOTH,
        lambda places, rows: patches(places, 2, 48, rows, sizes=True),
    ),
    family("minicpmv4_6", minicpmv4_6, SQUARE, frame_by_frame, BOTH, navit),
    family("video_llava", video_llava, SQUARE, with_class_tokens, BOTH, towers),
]
