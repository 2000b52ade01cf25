"""Estimates of memory and operations against real runs and against arithmetic by hand."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, Qwen2_5_VLConfig

import modulate_tabletop
from modulate.checks.benchmark import most_alive
from modulate.checks.cost_model import budget, count_parameters, meta_recipe
from modulate.checks.dead_layers import AnySignal
from modulate.checks.examples import Example, ExampleClip
from modulate.checks.meta_tensors import META, Rehearsal
from modulate.config.recipe import load_recipe
from modulate.errors import HostError
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import VideoClip, user_turn
from modulate.modulation.attachment import ModulatedHost
from modulate.modulation.module import ClipInput
from modulate.training.optimizer import select
from modulate_hosts.qwen2_5_vl import Qwen25VL
from modulate_hosts.qwen_params import QwenParams
from tests.paths import SMALL

HOST = Path(modulate_tabletop.__file__).parent / "host"
MID = dict(
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    vocab_size=2000,
)
EYES = dict(
    depth=2,
    hidden_size=128,
    num_heads=4,
    intermediate_size=256,
    out_hidden_size=512,
    fullatt_block_indexes=[1],
    patch_size=8,
    window_size=64,
)


# --- rehearsals


# --- hosts without weights


def loaded(**params):
    return Qwen25VL.load(
        QwenParams(
            path=params.pop("path", "Qwen/Qwen2.5-VL-7B-Instruct"), weights="random", **params
        )
    )


@pytest.fixture(scope="module")
def seven_billion():
    return loaded(
        device="meta", dtype="bfloat16", video_min_pixels=100_352, video_max_pixels=602_112
    )


def test_the_shipped_configuration_is_that_of_the_published_model(seven_billion):
    model, processor = seven_billion
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == 8_292_166_656
    )  # as the hub counts it
    ids = {
        t: processor.tokenizer.convert_tokens_to_ids(t)
        for t in ("<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>")
    }
    assert (
        list(ids.values())
        == [151645, 151652, 151655, 151656]
        == [
            model.config.text_config.eos_token_id,
            model.config.vision_start_token_id,
            model.config.image_token_id,
            model.config.video_token_id,
        ]
    )
    defaults = Qwen2_5_VLConfig().vision_config  # transformers' own, of this very size but for two
    ours = model.config.vision_config
    same = (
        "depth",
        "intermediate_size",
        "num_heads",
        "patch_size",
        "spatial_merge_size",
        "temporal_patch_size",
        "window_size",
        "out_hidden_size",
    )
    assert [getattr(ours, n) for n in same] == [getattr(defaults, n) for n in same]
    assert list(ours.fullatt_block_indexes) == [7, 15, 23, 31]


@pytest.mark.parametrize(
    ("frames", "height", "width", "grid"),
    [(8, 960, 1280, (4, 24, 32)), (3, 504, 896, (2, 18, 32)), (2, 120, 160, (1, 10, 14))],
)
def test_visual_tokens_are_those_of_the_real_processor_and_text_is_about_right(
    seven_billion, frames, height, width, grid
):
    """Expected: sides are multiples of 28, 100,352 to 602,112 pixels, two frames per step."""
    model, processor = seven_billion
    images = torch.zeros(frames, height, width, 3, dtype=torch.uint8).numpy()
    text = (
        "Question: What is the person holding in the left hand?\nOptions:\nA. a red cup\nB. the"
        " knife\n\nThe best option is:"
    )
    window = (0.0, frames - 1.0)
    prompt = Qwen25VL(model).encode(
        processor,
        user_turn(VideoClip(Frames(images, tuple(map(float, range(frames)))), window), text),
    )
    (found,) = prompt.grids
    assert (found.steps, found.rows, found.cols) == grid
    words = prompt.inputs["input_ids"].shape[1] - found.tokens
    assert 40 < words < 75  # the real tokenizer returns 53
    assert int((prompt.inputs["input_ids"] == 151656).sum()) == found.tokens


def test_letters_are_tokens_of_their_own_for_the_stand_in_tokenizer(seven_billion):
    ids = [seven_billion[1].tokenizer.encode(letter, add_special_tokens=False) for letter in "ABCD"]
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids}) == 4
    assert seven_billion[1].tokenizer.unk_token_id not in [i[0] for i in ids]


def test_random_weights_depend_on_their_seed_and_leave_the_global_generator_unchanged():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (
        loaded(path=str(HOST), device="cpu", seed=seed)[0].state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    name = "lm_head.weight"
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])


def test_pixels_of_frames_follow_the_parameters():
    assert loaded(device="meta")[1].video_processor.size["longest_edge"] == 12_845_056
    processor = loaded(path=str(HOST), device="meta", video_min_pixels=1024, video_max_pixels=2048)[
        1
    ]
    assert (
        processor.video_processor.size["shortest_edge"],
        processor.video_processor.size["longest_edge"],
    ) == (1024, 2048)
    with pytest.raises(
        ValidationError, match=r"video_min_pixels \(9\) must not be above video_max_pixels \(8\)"
    ):
        QwenParams(path="x", video_min_pixels=9, video_max_pixels=8)


def test_a_host_that_cannot_be_built_says_what_is_missing(tmp_path):
    with pytest.raises(
        HostError,
        match=(
            r"No configuration of 'Qwen/Qwen2.5-VL-72B-Instruct' ships with this plugin; give a"
            r" folder with its config.json"
        ),
    ):
        loaded(path="Qwen/Qwen2.5-VL-72B-Instruct")
    with pytest.raises(HostError, match="cannot be built with random weights"):
        loaded(path=str(tmp_path))


# --- budgets


@pytest.fixture(scope="module")
def mid_host(tmp_path_factory):
    """Return a folder with a mid-size host: 4 layers of width 512, heads as in Qwen2.5-VL."""
    import shutil

    folder = tmp_path_factory.mktemp("mid") / "host"
    shutil.copytree(HOST, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    own = AutoConfig.from_pretrained(HOST)
    special = {
        name: getattr(own, name)
        for name in (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        )
    }
    rope = dict(rope_type="default", mrope_section=[8, 12, 12], rope_theta=1e6)
    Qwen2_5_VLConfig(
        text_config=dict(rope_parameters=rope, bos_token_id=1, eos_token_id=2, **MID),
        vision_config=EYES,
        **special,
    ).save_pretrained(folder)
    return folder


def mid_recipe(folder, *overrides):
    changes = [
        (
            f"host.params={{path: '{folder}', weights: random, device: cpu, video_min_pixels:"
            " 16384, video_max_pixels: 16384}"
        ),
        "backbone.params={weights: random, dims: {dim: 192, depth: 3, heads: 3}, image_size: 128}",
        "modulator.params={width: 64, latents: 16, blocks: 2}",
        "encoder={name: coord_pe, params: {dim: 64}}",
        "injection.layers=[0, 1, 2]",
        "lora={rank: 8}",
    ]
    return load_recipe(SMALL, [*changes, *overrides])


def example_of(pipeline, frames=6):
    times = tuple(map(float, range(frames)))
    clip = ExampleClip((frames, 256, 256), times, (0.0, times[-1]))
    prompt = pipeline.host.encode(pipeline.processor, user_turn(clip.noise(), "what is it ?"))
    return Example(prompt, (clip,))


def rehearsed(recipe):
    with META:
        pipeline = Pipeline(meta_recipe(recipe), Path("nowhere"))
    example = example_of(pipeline)
    return budget(pipeline, pipeline.fresh_modulation(), example, example, "cpu")


def measured(recipe, stage, size):
    """Return the allocator's peak over some training steps; without a stage, of one forward."""
    pipeline = Pipeline(recipe, Path("nowhere"))
    example = example_of(pipeline)
    modulation = pipeline.fresh_modulation()
    grid = example.prompt.grids[0]
    row = example.prompt.inputs
    longer = {
        key: (
            torch.cat([value, value[:, -1:]], 1)
            if key in ("input_ids", "attention_mask", "mm_token_type_ids")
            else value
        )
        for key, value in row.items()
    }
    inputs = pipeline.host.collate([longer, *[row] * (size - 1)] if size > 1 else [row], 0)
    features = torch.zeros(grid.steps, grid.tokens_per_step, pipeline.backbone.d_features)
    modulation.encoder.forward = lambda signals, grids: _given(
        sum(grid.steps for grid in grids), grid.tokens_per_step, modulation.encoder.d_signal
    )
    resident = sum(
        t.nbytes
        for m in (pipeline.model, pipeline.backbone, modulation)
        for t in [*m.parameters(), *m.buffers()]
    )
    host = ModulatedHost(modulation, pipeline.model)
    rows = [[ClipInput(AnySignal(), grid, features)]] * size
    try:
        with torch.set_grad_enabled(stage is not None):
            if stage is not None:
                select(modulation, stage)
                adamw = torch.optim.AdamW(
                    [parameter for parameter in modulation.parameters() if parameter.requires_grad]
                )
            moments = 0
            for step in range(
                1 if stage is None else 2
            ):  # the moments exist from the second step on
                with torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CPU],
                    profile_memory=True,
                    acc_events=True,
                ) as profile:
                    logits = host(rows, **inputs, **LAST_LOGITS).logits[:, -1].float()
                    if stage is not None:
                        torch.nn.functional.cross_entropy(
                            logits[:, :4], torch.zeros(size, dtype=torch.long)
                        ).backward()
                if stage is not None and step == 0:
                    adamw.step()
                    adamw.zero_grad()
                    moments = sum(
                        t.nbytes for state in adamw.state.values() for t in state.values()
                    )
    finally:
        host.attachment.detach()
    return resident + moments + inputs["pixel_values_videos"].nbytes + most_alive(profile)


def _given(steps, tokens, width):
    from modulate.interfaces.components import SignalFeatures

    return SignalFeatures(torch.zeros(steps, tokens, width), torch.ones(steps, dtype=torch.bool))


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 1), ("float32", 2)])
def test_estimated_memory_is_within_15_percent_of_the_allocator(mid_host, dtype, size):
    recipe = mid_recipe(
        mid_host,
        f"training.batch_size={size}",
        f"evaluation.batch_size={size}",
        f"host.params.dtype={dtype}",
    )
    found = rehearsed(recipe)
    weights = sum(found.weights.values())
    for stage, phase in zip(
        [*recipe.training.stages, None], [*found.stages, found.evaluation], strict=True
    ):
        real = measured(recipe, stage, size)
        assert abs(phase.peak / real - 1) < 0.15, (phase, real)
        assert abs((phase.peak - weights) / (real - weights) - 1) < 0.2, (
            phase.name,
            phase.peak - weights,
            real - weights,
        )


def test_accumulated_gradients_are_alive_all_the_time(mid_host):
    once, twice = (rehearsed(mid_recipe(mid_host, f"training.accumulation={n}")) for n in (1, 2))
    trained = 4 * sum(
        count
        for name, count in counted(mid_host).items()
        if name in ("modulator", "output projections", "amplitudes")
    )
    assert 0 < twice.stages[0].peak - once.stages[0].peak <= trained
    assert twice.stages[0].flops == 2 * once.stages[0].flops


def counted(folder):
    pipeline = Pipeline(mid_recipe(folder), Path("nowhere"))
    return count_parameters(pipeline.model, pipeline.backbone, pipeline.fresh_modulation())


def test_operations_of_a_forward_match_those_of_its_matrix_products(mid_host):
    """By hand: every linear map, convolution and attention, without the modulation."""
    recipe = mid_recipe(
        mid_host,
        "evaluation.batch_size=1",
        "training.batch_size=1",
        "training.stages=[{name: lora, train: [lora], epochs: 1}]",
        "training.condition=none",
    )
    with META:
        pipeline = Pipeline(meta_recipe(recipe), Path("nowhere"))
    example = example_of(pipeline)
    tokens = example.prompt.inputs["input_ids"].shape[1]
    patches = len(example.prompt.inputs["pixel_values_videos"])
    steps = example.prompt.grids[0].steps
    d = 512
    ff = 1536
    kv = 512 // 8 * 2
    v = 128
    rank = 8
    layer = (
        2 * tokens * d * (2 * d + 2 * kv + 3 * ff)
        + 2 * 2 * tokens * tokens * d
        + 2 * tokens * rank * (d + d + d + kv)
    )
    window = (64 // 8) ** 2  # patches of a window
    a_block = 2 * patches * v * (4 * v + 3 * 256)
    per_step = patches // steps
    full = 2 * 2 * steps * per_step**2 * v
    local = 2 * 2 * patches * window * v
    vision = (
        2 * patches * (3 * 2 * 8 * 8) * v
        + 2 * a_block
        + full
        + local
        + 2 * (patches // 4) * (4 * v) * (4 * v + d)
    )
    expected = 4 * layer + vision + 2 * d * 2000
    with torch.no_grad(), Rehearsal("cpu") as rehearsal:
        modulation = pipeline.fresh_modulation().to(META)
        inputs = {
            name: tensor.to(META) if name == "pixel_values_videos" else tensor
            for name, tensor in example.prompt.inputs.items()
        }
        with modulation.attached(pipeline.model) as attachment:
            attachment.model(**inputs, **LAST_LOGITS)
    assert rehearsal.flops == pytest.approx(expected, rel=0.005) and not rehearsal.uncounted


def test_the_papers_recipe_has_the_papers_parameters():
    recipe = meta_recipe(load_recipe("gazeqwen"))
    with META:
        pipeline = Pipeline(recipe, Path("nowhere"))
    found = count_parameters(pipeline.model, pipeline.backbone, pipeline.fresh_modulation())
    assert found["LoRA"] == 2_523_136
    # GazeQwen's file has an amplitude for each of its 28 layers, 24 of which are never used
    assert (
        found["encoder"] + found["modulator"] + found["output projections"] + found["amplitudes"]
        == 10_807_324 - 24
    )
    assert found["backbone"] == 86_833_152 and found["host"] == 8_292_166_656
