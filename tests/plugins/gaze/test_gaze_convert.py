"""The released checkpoint as a modulation: golden numbers, and the logits of a whole host."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from modulate import ClipInput, Modulation, cli
from modulate.config.recipe import load_recipe
from modulate.errors import CheckpointError
from modulate.interfaces.visual_grid import VisualGrid
from modulate_gaze.checkpoint import PREFIXES, ReleasedConfig, released_shapes
from modulate_gaze.convert import FEATURES, convert
from modulate_gaze.coordinates import CoordPEParams
from modulate_gaze.resampler import GazeResamplerParams
from modulate_gaze.scanpath import Scanpath
from tests.plugins.gaze.released_content import released_content
from tests.tiny import GRID, inputs, qwen

GOLDEN = "tests/fixtures/gazeqwen_resampler.safetensors"
LAYERS = (6, 13, 20, 27)


# --- the numbers


def test_the_golden_residuals_come_out_of_the_converted_folder(saved, tmp_path):
    golden = load_file(GOLDEN)
    with safe_open(GOLDEN, "pt") as file:
        _, rows, cols = map(int, file.metadata()["grid"].split(","))
    content = released_content(d_vjepa=24, d_llm=40, n_latents=5, d_latent=16)
    content["state_dict"] = {
        key.removeprefix("state_dict."): value
        for key, value in golden.items()
        if key.startswith("state_dict.")
    }
    convert(saved(content), tmp_path / "out")
    modulation = Modulation.from_pretrained(tmp_path / "out")
    times = tuple(golden["frame_times"].tolist())
    grid = VisualGrid(rows, cols, times, tuple((time, time) for time in times))
    latents = modulation.latents(
        [ClipInput(Scanpath(golden["scanpath"]), grid, golden["features"])]
    )
    assert latents.active == (2,)
    for index, layer in enumerate(LAYERS):
        expected = golden[f"residual.layer{layer}"].flatten(0, 1)
        error = (modulation.residual(index, latents.layers[index]) - expected).abs().max()
        assert error < 1e-5 and error < 1e-4 * expected.abs().max()


def plain_residual(state, m, features, gaze, alpha):
    """Return one step of one layer, (token, d_llm), directly from the formulas."""
    linear = lambda name, x: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    norm = lambda name, x: torch.nn.functional.layer_norm(
        x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"]
    )
    x = features @ state[f"proj_ins.{m}.weight"].T
    latents = state[f"latents.{m}"]
    width = latents.shape[-1]
    b = 0
    while f"q_projs.{m}.{b}.weight" in state:
        places = torch.cat([x, latents])
        guidance = torch.cat([gaze.expand(len(x), -1), torch.zeros_like(latents)])
        keys = linear(f"k_projs.{m}.{b}", places) + linear(f"g_projs.{m}.{b}", guidance)
        weights = (linear(f"q_projs.{m}.{b}", latents) @ keys.T / width**0.5).softmax(-1)
        latents = latents + weights @ linear(f"v_projs.{m}.{b}", places)
        hidden = linear(f"ff_blocks.{m}.{b}.1", norm(f"ff_blocks.{m}.{b}.0", latents))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        latents = norm(f"block_norms.{m}.{b}", latents + linear(f"ff_blocks.{m}.{b}.3", hidden))
        b += 1
    return (
        alpha
        * ((x @ latents.T / width**0.5).softmax(-1) @ latents)
        @ state[f"proj_outs.{m}.weight"].T
    )


def plain_encoding(fixations, time, width):
    """Return the mean encoding of the fixations that contain ``time``, number by number."""
    active = [fixation for fixation in fixations if abs(time - fixation[2]) <= fixation[3] / 2]
    if not active:
        return torch.zeros(width)
    half = width // 2
    angle = lambda v, i: v / 10000 ** (2 * (i // 2) / half)
    rows = [
        [
            (math.cos if index % 2 else math.sin)(angle(v, index))
            for v in f[:2]
            for index in range(half)
        ]
        for f in active
    ]
    return torch.tensor(rows).mean(0)


def plain_logits(content, features, fixations, batch):
    """Return the host's logits with LoRA merged and residuals added by plain hooks, one row."""
    host = qwen(layers=28)
    state = content["state_dict"]
    alpha = content["lora_config"]["alpha"] / content["lora_config"]["rank"]
    decoder = host.model.language_model.layers
    for index, layer in enumerate(decoder):
        for name in ("q_proj", "v_proj"):
            a, b = (
                next(
                    value
                    for key, value in content["lora_state_dict"].items()
                    if f".layers.{index}.self_attn.{name}.lora_{side}" in key
                )
                for side in "AB"
            )
            getattr(layer.self_attn, name).weight.data += alpha * b @ a
    (visual,) = (batch["input_ids"] == host.config.video_token_id).nonzero()[:, 1:].T

    def hook(m, layer):
        def add(module, args, output):
            steps = [
                plain_residual(
                    state,
                    m,
                    feature,
                    plain_encoding(fixations, time, 256),
                    state["amplitude"][layer],
                )
                for feature, time in zip(features, GRID.times)
            ]
            changed = (output[0] if isinstance(output, tuple) else output).clone()
            changed[0, visual] += torch.cat(steps)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return add

    for m, layer in enumerate(LAYERS):
        decoder[layer].register_forward_hook(hook(m, layer))
    return host(**batch).logits


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_whole_host_answers_as_by_a_plain_implementation(prefix, saved, tmp_path):
    content = released_content(
        d_vjepa=768, d_llm=32, n_latents=32, d_latent=256, rank=8, d_value=16, prefix=prefix
    )
    for name, tensor in content["state_dict"].items():
        tensor *= 10 if name.startswith("g_projs") else 1  # gaze moves logits little otherwise
    convert(saved(content), tmp_path / "out")
    modulation = Modulation.from_pretrained(tmp_path / "out")
    host = qwen(layers=28)
    features = torch.randn(
        GRID.steps, GRID.tokens_per_step, 768, generator=torch.Generator().manual_seed(2)
    )
    batch = inputs(texts=((7, 8, 9),))
    fixations = [
        [0.2, 0.7, 0.5, 1.0],
        [0.9, 0.1, 0.6, 0.4],
        [0.5, 0.5, 1.6, 0.3],
    ]  # two at the first step, none at the second
    clip = ClipInput(Scanpath(fixations), GRID, features)
    before = host(**batch).logits
    with torch.no_grad(), modulation.attached(host) as attachment:
        without = host(**batch).logits
        with attachment.condition([[clip]]):
            ours = host(**batch).logits
        assert attachment.report().tokens == GRID.tokens and attachment.report().active_steps == (
            1,
        )
        with attachment.condition([[dataclasses.replace(clip, signal=clip.signal.blank())]]):
            blank = host(**batch).logits
    with torch.no_grad():
        plain = plain_logits(content, features, fixations, batch)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    for less in (
        before,
        without,
        blank,
    ):  # LoRA, residuals and gaze must each show, or their agreement would say nothing
        assert (plain - less).abs().max() > 20 * (ours - plain).abs().max() + 1e-4
    assert torch.equal(before, host(**batch).logits)


def test_the_released_sizes_have_the_released_numbers_of_parameters():
    sizes = ReleasedConfig(
        d_vjepa=768,
        d_llm=3584,
        n_latents=32,
        d_latent=256,
        n_blocks=2,
        n_layers=28,
        version="gazelens",
    )
    assert sum(math.prod(shape) for shape in released_shapes(sizes, 4).values()) == 10_807_324
    assert 28 * 8 * (3584 + 3584 + 3584 + 512) == 2_523_136


def test_only_four_amplitudes_are_kept_each_of_its_own_layer(saved, tmp_path):
    content = released_content()
    converted = convert(saved(content), tmp_path / "out")
    assert torch.equal(
        converted.modulation.amplitude.detach(), content["state_dict"]["amplitude"][list(LAYERS)]
    )
    assert converted.resampler - converted.written == 24 and converted.dead == 27


def test_half_precision_is_widened_exactly(saved, tmp_path):
    content = released_content()
    content["state_dict"] = {key: value.bfloat16() for key, value in content["state_dict"].items()}
    modulation = convert(saved(content), tmp_path / "out").modulation
    assert modulation.out[2].weight.dtype == torch.float32
    assert torch.equal(
        modulation.out[2].weight.detach(), content["state_dict"]["proj_outs.2.weight"].float()
    )


def test_the_configuration_says_what_it_was_made_of(saved, tmp_path):
    config = convert(saved(released_content(d_vjepa=768)), tmp_path / "out").modulation.config
    assert config.host.model_type == "qwen2_5_vl" and (
        config.host.d_model,
        config.host.n_layers,
    ) == (8, 28)
    assert config.encoder.params == {
        "dim": 8,
        "temperature": 10000.0,
        "scale": 1.0,
        "active": "released",
        "to_features": False,
    }
    assert config.backbone.name == "vjepa2_1" and config.backbone.params["preset"] == "base"
    assert (
        config.injection.layers == LAYERS
        and config.lora.params.alpha == 16
        and config.lora.layers_path == "model.language_model.layers"
    )
    histories_on = config.training["converted_from"]
    assert (
        histories_on["file"] == "best_model.pt"
        and len(histories_on["sha256"]) == 64
        and histories_on["version"] == "gazelens"
    )


@pytest.mark.parametrize(
    ("sizes", "layers", "message"),
    [
        (
            dict(modules=3),
            None,
            (
                "The checkpoint has 3 modules for a host of 28 layers; which layers they serve is"
                " known only for 4 of 28. Name one layer"
            ),
        ),
        (dict(n_layers=24), None, "The checkpoint has 4 modules for a host of 24 layers;"),
        (
            {},
            [6, 13, 20],
            "Layers (6, 13, 20) do not fit: 4 different ones from 0 to 27 are needed",
        ),
        ({}, [6, 13, 20, 28], "Layers (6, 13, 20, 28) do not fit"),
        ({}, [6, 13, 13, 20], "Layers (6, 13, 13, 20) do not fit"),
    ],
)
def test_layers_that_do_not_fit_are_refused(sizes, layers, message, saved, tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        convert(saved(released_content(**sizes)), tmp_path / "out", layers)


def test_other_layers_may_be_named(saved, tmp_path):
    content = released_content(modules=2, n_layers=6)
    converted = convert(saved(content), tmp_path / "out", [1, 4])
    assert converted.modulation.config.injection.layers == (1, 4) and converted.dead is None
    assert torch.equal(
        converted.modulation.amplitude.detach(), content["state_dict"]["amplitude"][[1, 4]]
    )


def test_a_folder_with_files_is_left_alone(saved, tmp_path):
    path = saved(released_content())
    with pytest.raises(CheckpointError, match="exists and is not an empty folder; name another"):
        convert(path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best_model.pt"]


def test_the_command_prints_what_it_wrote(saved, tmp_path):
    path = saved(released_content())
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.build(), ["convert", str(path), str(out)])
    assert result.exit_code == 0, result.output
    shapes = released_shapes(ReleasedConfig(**released_content()["config"]), 4)
    n = sum(map(math.prod, shapes.values()))
    lora = 28 * 2 * (8 + 8 + 8 + 4)
    assert result.output.splitlines() == [
        f"Read {path}: resampler {n:,} parameters, LoRA {lora:,} (rank 2, alpha 16).",
        (
            f"Wrote {out}: coord_pe and gaze_resampler {n - 24:,} parameters, LoRA {lora:,}; layers"
            " 6, 13, 20, 27 of a qwen2_5_vl of 28 layers of width 8."
        ),
        "Left out: the amplitudes of the 24 layers that no module serves.",
        (
            "Note: layer 27 is the host's last; as in the released code, what is added there cannot"
            " change an answer."
        ),
    ]
    assert sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    ) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "config.json",
        "model.safetensors",
    ]
    wrong = CliRunner().invoke(
        cli.build(), ["convert", str(path), str(tmp_path / "other"), "--layers", "6;13"]
    )
    assert isinstance(
        wrong.exception, CheckpointError
    ) and "--layers '6;13' is not a list of layers" in str(wrong.exception)


def test_the_recipe_of_the_how_to_fits_the_converted_checkpoint(tmp_path):
    (text,) = re.findall(
        r"<!-- file: released.yaml -->\n```yaml\n(.*?)```",
        Path("docs/how-to/use-the-released-checkpoint.md").read_text(),
        re.S,
    )
    (tmp_path / "released.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "released.yaml"))
    assert recipe.backbone.params == FEATURES[768] and recipe.injection.layers == LAYERS
    assert recipe.modulator.resolved("modulator")[1] == GazeResamplerParams()
    assert recipe.encoder.resolved("signal_encoder")[1] == CoordPEParams(
        dim=256, scale=1.0, active="released", temperature=10000.0, to_features=False
    )
    assert (recipe.lora.rank, recipe.lora.alpha) == (8, 16) and recipe.lora.targets == (
        "q_proj",
        "v_proj",
    )


def test_help_imports_no_torch():
    code = (
        "import sys, modulate.cli\n"
        "try: modulate.cli.main(['convert', '--help'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert completed.returncode == 0 and "best_model.pt" in completed.stdout, completed.stderr


def test_the_same_file_converts_to_the_same_bytes(saved, tmp_path):
    path = saved(released_content())
    for name in ("a", "b"):
        convert(path, tmp_path / name)
    files = sorted(
        path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()
    )
    assert files and all(
        (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        for file in files
    )
