"""Small models and inputs that many tests share."""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from modulate import ClipInput, Modulation, visual_grid
from modulate.config.injection import Injection, Tokens
from modulate.config.recipe import load_recipe
from modulate.config.usage import Usage
from modulate.inference.assistant import Assistant
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.params import ComponentSpec
from modulate_hosts.contract.suite import D_FEATURES, cached, fresh, our_hooks, scanpath
from tests.paths import SMALL

__all__ = [
    "CLIP",
    "D_FEATURES",
    "GRID",
    "cached",
    "features",
    "fresh",
    "inputs",
    "our_hooks",
    "qwen",
    "scanpath",
    "selecting",
]

VIDEO = 5
IMAGE = 6
START = 3
END = 4
PAD = 0


def qwen(layers=4, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        vision_config=dict(
            depth=1,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            patch_size=4,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=16,
            out_hidden_size=32,
            fullatt_block_indexes=[0],
            tokens_per_second=2,
        ),
        text_config=dict(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rope_parameters=dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1000.0),
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=PAD,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).to(dtype).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


GRID = visual_grid([0.0, 1.0, 2.0, 3.0], frames_per_step=2, rows=2, cols=3)


def features(grid=GRID, seed=0):
    return torch.randn(
        grid.steps, grid.tokens_per_step, D_FEATURES, generator=torch.Generator().manual_seed(seed)
    )


CLIP = ClipInput(scanpath(), GRID, features())


def inputs(texts=((7, 8, 9), (10, 11)), side="left", videos=1, seed=0, dtype=torch.float32):
    """A batch padded on `side`: every row has `videos` clips on GRID, then text tokens."""
    clip = [START, *[VIDEO] * GRID.tokens, END]
    rows = [[1, *clip * videos, *text] for text in texts]
    width = max(map(len, rows))

    def pad(row, fill):
        padding = [fill] * (width - len(row))
        return padding + row if side == "left" else row + padding

    ids = torch.tensor([pad(row, PAD) for row in rows])
    n_clips = len(rows) * videos
    generator = torch.Generator().manual_seed(seed)
    return dict(
        input_ids=ids,
        attention_mask=torch.tensor([pad([1] * len(row), 0) for row in rows]),
        mm_token_type_ids=(ids == VIDEO).int() * 2,
        pixel_values_videos=torch.randn(
            n_clips * GRID.tokens * 4, 3 * 2 * 4 * 4, generator=generator
        ).to(dtype),
        video_grid_thw=torch.tensor([[GRID.steps, GRID.rows * 2, GRID.cols * 2]] * n_clips),
        second_per_grid_ts=torch.ones(n_clips),
    )


def selecting(host, kind="visual", **tokens):
    """A modulation that writes on tokens of this kind, with weights that are not zero."""
    torch.manual_seed(3)
    modulation = Modulation.for_host(
        host,
        encoder=ComponentSpec(name="heatmap_dur", params={"dim": 16}),
        modulator=ComponentSpec(
            name="gaze_resampler", params={"width": 16, "latents": 4, "blocks": 1}
        ),
        injection=Injection(layers=(1, 2), tokens=Tokens(kind=kind, **tokens)),
        d_features=D_FEATURES,
    )
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    return modulation.eval()


def small_pipeline(folder):
    """The pipeline of the small recipe, its data made and its cache in ``folder``."""
    pipeline = Pipeline(load_recipe(SMALL, [f"data.params.root={folder}/world"]), folder / "cache")
    pipeline.make_data()
    return pipeline


def modulation_of_shipped(host):
    """A fresh modulation of the host that ships, for features of width 12."""
    return Modulation.for_host(
        host,
        encoder=ComponentSpec(name="coord_rel", params={"dim": 16}),
        modulator=ComponentSpec(
            name="gaze_resampler", params={"width": 16, "latents": 4, "blocks": 1}
        ),
        injection=Injection(layers=(0, 1)),
        d_features=12,
    )


def assistant_of_shipped():
    """An assistant around the host that ships, whose modulation's residuals are not zero."""
    recipe = load_recipe(SMALL, ["answer=word"])
    family, params = recipe.host.resolved("host")
    model, processor = family.load(params)
    backbone = recipe.backbone.build("backbone")
    torch.manual_seed(0)
    modulation = Modulation.for_host(
        model,
        encoder=recipe.encoder,
        modulator=recipe.modulator,
        injection=recipe.injection,
        d_features=backbone.d_features,
        backbone=recipe.backbone,
        usage=Usage.of(recipe),
    )
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    return Assistant(model, processor, modulation)
