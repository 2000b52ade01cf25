"""The files that are measured: a small random host, two real videos, questions like StreamGaze's.

The host is a Qwen2.5-VL of 12 layers and width 512. Layers are injected at the paper's fractions of
the depth, a clip has 16 frames and about 2,000 visual tokens. The size of the vocabulary gives the
output layer a tenth of the cost, as in a 7B model. The backbone has V-JEPA 2.1's architecture and
is cheaper than the host's forward, as in the paper.
"""

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from modulate.config.recipe import Recipe, validate
from modulate_tabletop.small_host.host_files import CHAT_TEMPLATE, ID, tokenizer

LAYERS = 12
WIDTH = 512
VOCABULARY = 8192
# The paper's layers 6, 13 and 20 of 28. Its 27 cannot reach the answer; here, the last that can.
INJECTED = (2, 5, 8, 10)
SCALE = 6.283185  # of coord_pe
SECONDS = 40
RATE = 24
SIZE = (640, 480)
FRAMES = 16
MOMENTS = (17, 21, 25, 30)  # seconds at which questions are asked, each seeing the 16 s before
TASKS = (
    "present_object_identification_easy",
    "present_object_identification_hard",
    "present_object_attribute_recognition",
    "present_future_action_prediction",
)


def configuration(
    layers: int = LAYERS, width: int = WIDTH, vocabulary: int = VOCABULARY, patch: int = 14
) -> Any:
    """Return the bench host's configuration; head size 64, so ``width`` is a multiple of that."""
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 4,
        "hidden_size": width // 2,
        "intermediate_size": 3 * width // 2,
        "num_heads": max(1, width // 128),
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 8 * patch,
        "out_hidden_size": width,
        "fullatt_block_indexes": [3],
        "tokens_per_second": 2,
    }
    language = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, width // 256),
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [8, 12, 12],
            "rope_theta": 1e6,
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
        tie_word_embeddings=False,
    )


def processor(pixels: int = 448**2, patch: int = 14) -> Any:
    """Return the real processor, which brings every frame to about ``pixels`` pixels."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    common: dict[str, Any] = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": pixels // 2, "longest_edge": pixels},
    }
    video = Qwen2VLVideoProcessor(**common, cap_pixels_per_frame=False)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**common),
        tokenizer=tokenizer(),
        video_processor=video,
        chat_template=CHAT_TEMPLATE,
    )


def save_host(folder: Path, pixels: int = 448**2, patch: int = 14, **dims: int) -> None:
    """Write a host with seeded random weights, as transformers reads it."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(configuration(patch=patch, **dims))
    model.save_pretrained(folder)
    processor(pixels, patch).save_pretrained(folder)


def write_video(
    path: Path, seed: int, seconds: int = SECONDS, size: tuple[int, int] = SIZE
) -> None:
    """Write an H.264 video of textured patches that move, with enough detail for a decoder to have
    work.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    ground = (
        rng.integers(60, 190, (height // 8, width // 8, 3), dtype=np.uint8)
        .repeat(8, 0)
        .repeat(8, 1)
    )
    patches = [
        (
            rng.integers(0, 255, (height // 6, width // 6, 3), dtype=np.uint8),
            rng.uniform(0, 2 * np.pi, 2),
        )
        for _ in range(6)
    ]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(
            "libx264", rate=RATE, options={"crf": "23", "preset": "superfast", "g": "48"}
        )
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"
        for index in range(seconds * RATE):
            image = ground.copy()
            for texture, phase in patches:
                top = int(
                    (height - texture.shape[0]) * (0.5 + 0.5 * np.sin(index / RATE + phase[0]))
                )
                left = int(
                    (width - texture.shape[1]) * (0.5 + 0.5 * np.cos(index / RATE / 2 + phase[1]))
                )
                image[top : top + texture.shape[0], left : left + texture.shape[1]] = texture
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            frame.time_base = Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_dataset(
    root: Path,
    videos: int = 2,
    seconds: int = SECONDS,
    size: tuple[int, int] = SIZE,
    moments: tuple[int, ...] = MOMENTS,
) -> None:
    """Write videos, fixations and questions: at every moment of every video one question of each
    task, as the benchmark's present tasks share their moments.
    """
    for folder in ("qa", "videos/original_video", "fixations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"bench{number}.mp4" for number in range(videos)]
    for number, name in enumerate(names):
        write_video(root / "videos/original_video" / name, number, seconds, size)
        rng = np.random.default_rng(number)
        with (root / "fixations" / f"bench{number}_fixation_filtered.csv").open(
            "w", newline=""
        ) as file:
            rows = csv.writer(file)
            rows.writerow(["start_time_seconds", "duration_seconds", "center_x", "center_y"])
            rows.writerows(
                [second, 0.8, *rng.uniform(0.1, 0.9, 2).round(4)] for second in range(seconds)
            )
    for task in TASKS:
        asked = lambda time: {  # noqa: E731
            "question": "What is on the table?",
            "time_stamp": f"00:{time:02d}",
            "answer": "B",
            "options": ["A. cup", "B. pan", "C. pot", "D. jug"],
        }
        entries = [
            {
                "video_path": name,
                "response_time": "[00:00 - 00:40]",
                "questions": [asked(time) for time in moments],
            }
            for name in names
        ]
        (root / "qa" / f"{task}.json").write_text(json.dumps(entries))
    (root / "split.json").write_text(json.dumps({"train": names, "val": [], "test": []}))


def recipe(root: Path, host: Path, **changes: Any) -> Recipe:
    """Return the recipe of the bench; ``changes`` replace whole sections."""
    tree: dict[str, Any] = {
        "name": "bench",
        "host": {"name": "qwen2_5_vl", "params": {"path": str(host), "device": "cpu"}},
        "backbone": {
            "name": "vjepa2_1",
            "params": {
                "weights": "random",
                "dims": {"dim": 192, "depth": 4, "heads": 4},
                "image_size": 224,
            },
        },
        "encoder": {"name": "coord_pe", "params": {"dim": 256, "scale": SCALE}},
        "modulator": {
            "name": "gaze_resampler",
            "params": {"width": 256, "latents": 32, "blocks": 2},
        },
        "injection": {"layers": list(INJECTED)},
        "data": {
            "name": "streamgaze",
            "params": {"root": str(root), "split": "split.json", "present_seconds": FRAMES - 1.0},
        },
        "sampling": {"fps": 1.0, "max_frames": FRAMES},
        "training": {
            "stages": [{"name": "modulator", "train": ["modulator"], "epochs": 2}],
            "batch_size": 4,
            "augment": False,
            "validate_every": None,
            "warmup_steps": 0,
        },
        "evaluation": {"conditions": ["none"]},
    }
    return validate(tree | changes, "the bench")
