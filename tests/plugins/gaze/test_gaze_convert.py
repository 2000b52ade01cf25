"""The released checkpoint as a modulation: the golden numbers, the logits of a whole host, and what
is refused.
"""

import dataclasses
import io
import math
import pickle  # noqa: TID251  (to show what is refused)
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from modulate import ClipInput, Modulation, cli
from modulate.config.recipe import load_recipe
from modulate.errors import CheckpointError, MissingFileError
from modulate.interfaces.visual_grid import VisualGrid
from modulate.utils.pickle_check import check_pickle
from modulate_gaze import checkpoint as reading
from modulate_gaze.checkpoint import PREFIXES, ReleasedConfig, read_checkpoint, released_shapes
from modulate_gaze.convert import FEATURES, convert
from modulate_gaze.coordinates import CoordPEParams
from modulate_gaze.resampler import GazeResamplerParams
from modulate_gaze.scanpath import Scanpath
from tests.tiny import GRID, inputs, qwen

GOLDEN = "tests/fixtures/gazeqwen_resampler.safetensors"
LAYERS = (6, 13, 20, 27)


def made(
    d_vjepa=6,
    d_llm=8,
    n_latents=3,
    d_latent=8,
    n_blocks=2,
    n_layers=28,
    modules=4,
    rank=2,
    d_value=4,
    prefix=PREFIXES[1],
    seed=0,
):
    """What the released code saves, with random numbers everywhere, amplitudes included."""
    config = dict(
        d_vjepa=d_vjepa,
        d_llm=d_llm,
        n_latents=n_latents,
        d_latent=d_latent,
        n_blocks=n_blocks,
        n_layers=n_layers,
        version="gazelens",
    )
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])
    state = {
        name: random(*shape)
        for name, shape in released_shapes(ReleasedConfig(**config), modules).items()
    }
    state["amplitude"] = torch.rand(n_layers, generator=generator) + 0.5
    lora = {}
    for layer in range(n_layers):
        for name, d_out in (("q_proj", d_llm), ("v_proj", d_value)):
            lora[f"{prefix}.{layer}.self_attn.{name}.lora_A"] = random(rank, d_llm)
            lora[f"{prefix}.{layer}.self_attn.{name}.lora_B"] = random(d_out, rank)
    return {
        "state_dict": state,
        "config": config,
        "lora_state_dict": lora,
        "lora_config": {"rank": rank, "alpha": 16.0},
    }


@pytest.fixture
def saved(tmp_path):
    def save(content, name="best_model.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


# --- the numbers


def test_the_golden_residuals_come_out_of_the_converted_folder(saved, tmp_path):
    golden = load_file(GOLDEN)
    with safe_open(GOLDEN, "pt") as file:
        _, rows, cols = map(int, file.metadata()["grid"].split(","))
    content = made(d_vjepa=24, d_llm=40, n_latents=5, d_latent=16)
    content["state_dict"] = {
        k.removeprefix("state_dict."): v for k, v in golden.items() if k.startswith("state_dict.")
    }
    convert(saved(content), tmp_path / "out")
    modulation = Modulation.from_pretrained(tmp_path / "out")
    times = tuple(golden["frame_times"].tolist())
    grid = VisualGrid(rows, cols, times, tuple((t, t) for t in times))
    latents = modulation.latents(
        [ClipInput(Scanpath(golden["scanpath"]), grid, golden["features"])]
    )
    assert latents.active == (2,)
    for k, layer in enumerate(LAYERS):
        expected = golden[f"residual.layer{layer}"].flatten(0, 1)
        error = (modulation.residual(k, latents.layers[k]) - expected).abs().max()
        assert error < 1e-5 and error < 1e-4 * expected.abs().max()


def plain_residual(state, m, features, gaze, alpha):
    """One step at one layer, straight from the formulas: (token, d_vjepa), (d_latent,) → (token,
    d_llm).
    """
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
    """The mean encoding of the fixations that contain ``time``, number by number."""
    active = [f for f in fixations if abs(time - f[2]) <= f[3] / 2]
    if not active:
        return torch.zeros(width)
    half = width // 2
    angle = lambda v, i: v / 10000 ** (2 * (i // 2) / half)
    rows = [
        [(math.cos if i % 2 else math.sin)(angle(v, i)) for v in f[:2] for i in range(half)]
        for f in active
    ]
    return torch.tensor(rows).mean(0)


def plain_logits(content, features, fixations, batch):
    """The host's logits with LoRA added to its weights and residuals added by plain hooks, one row."""
    host = qwen(layers=28)
    state = content["state_dict"]
    alpha = content["lora_config"]["alpha"] / content["lora_config"]["rank"]
    decoder = host.model.language_model.layers
    for i, layer in enumerate(decoder):
        for name in ("q_proj", "v_proj"):
            a, b = (
                next(
                    v
                    for k, v in content["lora_state_dict"].items()
                    if f".layers.{i}.self_attn.{name}.lora_{side}" in k
                )
                for side in "AB"
            )
            getattr(layer.self_attn, name).weight.data += alpha * b @ a
    (visual,) = (batch["input_ids"] == host.config.video_token_id).nonzero()[:, 1:].T

    def hook(m, layer):
        def add(module, args, output):
            steps = [
                plain_residual(
                    state, m, f, plain_encoding(fixations, t, 256), state["amplitude"][layer]
                )
                for f, t in zip(features, GRID.times)
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
    content = made(
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
    content = made()
    done = convert(saved(content), tmp_path / "out")
    assert torch.equal(
        done.modulation.amplitude.detach(), content["state_dict"]["amplitude"][list(LAYERS)]
    )
    assert done.resampler - done.written == 24 and done.dead == 27


def test_half_precision_is_widened_exactly(saved, tmp_path):
    content = made()
    content["state_dict"] = {k: v.bfloat16() for k, v in content["state_dict"].items()}
    modulation = convert(saved(content), tmp_path / "out").modulation
    assert modulation.out[2].weight.dtype == torch.float32
    assert torch.equal(
        modulation.out[2].weight.detach(), content["state_dict"]["proj_outs.2.weight"].float()
    )


def test_the_configuration_says_what_it_was_made_of(saved, tmp_path):
    config = convert(saved(made(d_vjepa=768)), tmp_path / "out").modulation.config
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


# --- what is refused


def put(*path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def drop(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


A0 = "model.language_model.layers.0.self_attn.q_proj.lora_A"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("epoch", value=3),
            "holds an unexpected entry 'epoch' (1 in all); nothing was converted.",
        ),
        (drop("lora_config"), "lacks the entry 'lora_config' (1 in all)"),
        (
            put("config", "gaze_input", value="heatmap_tau"),
            (
                "config.gaze_input: the file was trained with another encoding of gaze than"
                " coord_pe, the only one that is read; got 'heatmap_tau'."
            ),
        ),
        (
            put("config", "gaze_input", value=""),
            "config.gaze_input: the file was trained with another encoding of gaze",
        ),
        (
            put("config", "gaze_input", value=None),
            "config.gaze_input: Input should be a valid string; got None.",
        ),
        (
            put("config", "gaze_input", value="coord_pe_rel"),
            (
                "another encoding of gaze than coord_pe, the only one that is read; got"
                " 'coord_pe_rel'."
            ),
        ),
        (
            put("config", "per_layer", value=False),
            (
                "config.per_layer: the file was trained with one module shared by all layers; only"
                " one for each layer is read; got False."
            ),
        ),
        (
            put("config", "per_layer", value=None),
            "config.per_layer: Input should be a valid boolean; got None.",
        ),
        (
            put("config", "per_layer", value="yes"),
            "config.per_layer: Input should be a valid boolean; got 'yes'.",
        ),
        (
            put("config", "amplitude_init", value=math.nan),
            "config.amplitude_init: Input should be a finite number; got nan.",
        ),
        (
            put("config", "sharing", value="shared"),
            "config.sharing: Extra inputs are not permitted; got 'shared'.",
        ),
        (
            put("config", "version", value=""),
            "config.version: String should have at least 1 character; got ''.",
        ),
        (
            drop("config", "d_llm"),
            "tensor 'proj_outs.0.weight' has shape (8, 8), but config says (3584, 8).",
        ),
        (
            put("config", "d_llm", value="8"),
            "config.d_llm: Input should be a valid integer; got '8'.",
        ),
        (
            put("config", "n_latents", value=0),
            "config.n_latents: Input should be greater than or equal to 1; got 0.",
        ),
        (
            put("config", "n_blocks", value=True),
            "config.n_blocks: Input should be a valid integer; got True.",
        ),
        (put("config", value=[1]), "config: Input should be a valid dictionary"),
        (put("lora_config", "alpha", value=float("inf")), "lora_config.alpha: Input should be"),
        (
            put("lora_config", "rank", value=4),
            f"tensor '{A0}' has shape (2, 8), but config and lora_config say (4, 8).",
        ),
        (
            put("config", "n_latents", value=4),
            "tensor 'latents.0' has shape (3, 8), but config says (4, 8).",
        ),
        (
            put("config", "d_llm", value=16),
            "tensor 'proj_outs.0.weight' has shape (8, 8), but config says (16, 8).",
        ),
        (put("config", "n_blocks", value=3), "state_dict lacks the tensor 'q_projs.0.2.weight'"),
        (
            put("config", "n_blocks", value=1),
            "state_dict holds an unexpected tensor 'block_norms.0.1.bias'",
        ),
        (
            put("config", "n_layers", value=27),
            "tensor 'amplitude' has shape (28,), but config says (27,).",
        ),
        (
            put("state_dict", "extra", value=torch.zeros(1)),
            "state_dict holds an unexpected tensor 'extra' (1 in all)",
        ),
        (
            drop("state_dict", "g_projs.3.1.bias"),
            "state_dict lacks the tensor 'g_projs.3.1.bias' (1 in all)",
        ),
        (
            put("state_dict", "amplitude", value=torch.ones(28, dtype=torch.int64)),
            "tensor 'amplitude' is torch.int64, torch.strided, on cpu; dense float32",
        ),
        (
            put("state_dict", "amplitude", value=torch.ones(28, dtype=torch.float64)),
            "tensor 'amplitude' is torch.float64",
        ),
        pytest.param(
            put("state_dict", "amplitude", value=torch.ones(28).to_sparse()),
            "tensor 'amplitude' is torch.float32, torch.sparse_coo",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants"),
        ),
        (
            put("state_dict", "amplitude", value=[1.0] * 28),
            "state_dict holds list under 'amplitude'; tensors under names are expected.",
        ),
        (
            put("state_dict", "amplitude", value=torch.full((28,), math.nan)),
            "tensor 'amplitude' holds numbers that are not finite.",
        ),
        (
            put("state_dict", value=torch.zeros(1)),
            "state_dict is a Tensor; a dictionary of tensors is expected.",
        ),
        (
            put("lora_state_dict", "visual.blocks.0.attn.q_proj.lora_A", value=torch.zeros(2, 8)),
            "unexpected tensor 'visual.blocks.0.attn.q_proj.lora_A'",
        ),
        (
            put(
                "lora_state_dict", "model.layers.0.self_attn.q_proj.lora_A", value=torch.zeros(2, 8)
            ),
            "beside 'model.language_model.layers'",
        ),
        (
            put("lora_state_dict", A0.replace(".0.", ".28."), value=torch.zeros(2, 8)),
            "unexpected tensor 'model.language_model.layers.28.self_attn",
        ),
        (
            put("lora_state_dict", A0.replace(".0.", ".00."), value=torch.zeros(2, 8)),
            "unexpected tensor 'model.language_model.layers.00.self_attn",
        ),
        (
            put("lora_state_dict", A0.replace(".0.", ".١."), value=torch.zeros(2, 8)),
            "unexpected tensor 'model.language_model.layers.١.self_attn",
        ),
        (
            drop("lora_state_dict", A0),
            "lora_state_dict lacks 1 tensors, the first is self_attn.q_proj.lora_A of layer 0.",
        ),
        (
            put(
                "lora_state_dict",
                A0.replace("q_proj.lora_A", "v_proj.lora_B"),
                value=torch.zeros(6, 2),
            ),
            "has shape (4, 2), but config and lora_config",
        ),
    ],
)
def test_anything_unexpected_is_refused_by_name_and_nothing_is_written(
    change, message, saved, tmp_path
):
    content = made()
    change(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        convert(saved(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["coord_pe", "coordpe", "Coord-PE", "G3"])
def test_what_older_checkpoints_say_of_what_is_built_anyway_is_ignored_and_told(
    name, saved, tmp_path
):
    content = made()
    plain = convert(saved(content), tmp_path / "plain")
    content["config"] |= {"gaze_input": name, "per_layer": True, "amplitude_init": 0.5}
    path = saved(content, "older.pt")
    older = convert(path, tmp_path / "older")
    assert plain.ignored == () and older.ignored == (
        f"Ignored: config.gaze_input is {name!r}; coord_pe is the only encoding that is built.",
        "Ignored: config.per_layer is True; a module for each layer is all that is built.",
        "Ignored: config.amplitude_init is 0.5; the file has the trained amplitudes.",
    )
    ours = older.modulation.state_dict()
    theirs = plain.modulation.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    told = CliRunner().invoke(cli.build(), ["convert", str(path), str(tmp_path / "told")])
    assert told.exit_code == 0 and told.output.splitlines()[3:6] == list(older.ignored)


def test_a_configuration_may_leave_out_what_the_released_class_has_defaults_for(saved, tmp_path):
    content = made(d_vjepa=768, d_llm=32, n_latents=32, d_latent=256)
    for key in ("version", "d_vjepa", "n_latents", "d_latent", "n_blocks", "n_layers"):
        del content["config"][key]
    done = convert(saved(content), tmp_path / "out")
    assert (
        done.ignored[0] == "Not in config: d_vjepa; taken to be 768, as by the released class."
        and len(done.ignored) == 6
    )
    assert done.ignored[-1] == "Not in config: version; it is noted as unknown."
    assert (
        "version"
        not in Modulation.from_pretrained(tmp_path / "out").config.training["converted_from"]
    )


def test_the_older_flat_layout_is_recognized_by_a_key(saved):
    content = made()
    content["state_dict"] = {
        "proj_in.weight": torch.zeros(8, 6),
        "latents": torch.zeros(3, 8),
        "q_projs.0.weight": torch.zeros(8, 8),
    }
    with pytest.raises(
        CheckpointError,
        match=r"tensor 'proj_in\.weight' belongs to the older layout with one shared module",
    ):
        read_checkpoint(saved(content))


class Payload:
    def __reduce__(self):
        return (print, ("code from the file runs",))


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(saved, capsys):
    content = made() | {"config": Payload()}
    with pytest.raises(CheckpointError, match="cannot be read as a file of plain tensors"):
        read_checkpoint(saved(content))
    assert "code from the file runs" not in capsys.readouterr().out


def test_a_file_too_large_is_refused_before_it_is_read(saved, tmp_path, monkeypatch):
    path = saved(made())
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("the file was read"))
    big = tmp_path / "big.pt"
    with big.open("wb") as file:
        file.truncate(reading.LIMIT + 1)  # sparse: takes no room on disk
    with pytest.raises(
        CheckpointError,
        match=f"big.pt has {reading.LIMIT + 1} bytes, more than the {reading.LIMIT} that are read.",
    ):
        read_checkpoint(big)
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w") as entry,
    ):
        for _ in range(reading.LIMIT // 2**20 + 1):
            entry.write(bytes(2**20))
    assert packed.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="bytes unpacked, more than the"):
        read_checkpoint(packed)
    monkeypatch.setattr(reading, "LIMIT", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"best_model\.pt has"):
        read_checkpoint(path)


def test_a_view_that_claims_more_numbers_than_the_file_holds_is_refused(saved):
    content = made()
    content["state_dict"]["proj_outs.0.weight"] = torch.zeros(1).expand(16384, 8192)
    path = saved(content)
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="bytes, more than the 268435456 that are read"):
        read_checkpoint(path)


def laughing(levels=30, width=9):
    """A list that names one nine times, which names one nine times …: few bytes, and more values
    than can be counted.
    """
    inner = ["lol"]
    for _ in range(levels):
        inner = [inner] * width
    return inner


@pytest.mark.parametrize(
    "place",
    [
        ("config",),
        ("lora_config",),
        ("state_dict",),
        ("config", "version"),
        ("state_dict", "amplitude"),
    ],
)
def test_values_that_multiply_are_refused_quickly(place, saved):
    content = made()
    put(*place, value=laughing())(content)
    start = time.process_time()
    with pytest.raises(
        CheckpointError, match="its pickle makes more than 20000000 values after expanding shared ones"
    ):
        read_checkpoint(saved(content))
    assert time.process_time() - start < 3


def test_a_container_that_holds_itself_is_refused(saved):
    content = made()
    content["config"]["itself"] = content["config"]
    with pytest.raises(
        CheckpointError, match="its pickle changes a container after putting it into another"
    ):
        read_checkpoint(saved(content))


def test_pickled_values_are_counted_as_if_written_out():
    shared = [1, 2, 3]
    counted = {
        name: check_pickle(pickle.dumps(value, protocol=2), "p")
        for name, value in {
            "once": [shared],
            "thrice": [shared] * 3,
            "apart": [[1, 2, 3]] * 1,
        }.items()
    }
    assert counted["once"] == counted["apart"] and counted["thrice"] - counted[
        "once"
    ] == 2 * check_pickle(pickle.dumps(shared, protocol=2), "p")
    for data, message in (
        (b"", "its pickle ends early|damaged"),
        (b"\x80\x02]", "damaged|ends early"),
        (b"\x80\x02e.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_pickle(data, "p")


def test_a_layer_s_number_of_any_length_is_refused(saved):
    content = made()
    content["lora_state_dict"][
        f"model.language_model.layers.{'1' * 5000}.self_attn.q_proj.lora_A"
    ] = torch.zeros(2, 8)
    with pytest.raises(CheckpointError, match="holds an unexpected tensor") as caught:
        read_checkpoint(saved(content))
    assert len(str(caught.value)) < 1000


def test_archives_with_damaged_directories_are_refused(saved, tmp_path):
    data = bytearray(saved(made()).read_bytes())
    at = data.rindex(b"PK\x01\x02")
    for offset in range(4, 46):
        changed = bytearray(data)
        changed[at + offset] ^= 0xFF
        (tmp_path / "changed.pt").write_bytes(changed)
        try:
            assert read_checkpoint(tmp_path / "changed.pt").modules == 4  # fields that nobody reads
        except CheckpointError as error:
            assert str(tmp_path / "changed.pt") in str(error)


def test_an_archive_whose_entry_has_a_long_second_name_gives_a_short_message(saved, tmp_path):
    data = bytearray(saved(made()).read_bytes())
    at = data.rindex(
        b"PK\x03\x04", 0, data.index(b"/data.pkl")
    )  # where the entry's own header begins
    data[at + 6 : at + 8] = bytes(2)  # names in no encoding that could fail
    data[at + 26 : at + 28] = (4000).to_bytes(2, "little")
    (tmp_path / "long.pt").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"is not a file that torch\.save writes: File name in directory"
    ) as caught:
        read_checkpoint(tmp_path / "long.pt")
    assert len(str(caught.value)) < 500


def test_other_files_are_refused(saved, tmp_path):
    with pytest.raises(MissingFileError, match="There is no checkpoint at"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(CheckpointError, match=r"is not a file that torch\.save writes"):
        read_checkpoint(tmp_path / "text.pt")
    with pytest.raises(
        CheckpointError, match="holds a list; a released checkpoint is a dictionary"
    ):
        read_checkpoint(saved([1, 2]))
    cut = saved(made()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(CheckpointError, match=r"is not a file that torch\.save writes"):
        read_checkpoint(tmp_path / "cut.pt")
    plain = io.BytesIO()
    torch.save(made(), plain, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes(plain.getvalue())
    with pytest.raises(CheckpointError, match=r"is not a file that torch\.save writes"):
        read_checkpoint(tmp_path / "old.pt")


# --- layers, folders, the command


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
        convert(saved(made(**sizes)), tmp_path / "out", layers)


def test_other_layers_may_be_named(saved, tmp_path):
    content = made(modules=2, n_layers=6)
    done = convert(saved(content), tmp_path / "out", [1, 4])
    assert done.modulation.config.injection.layers == (1, 4) and done.dead is None
    assert torch.equal(
        done.modulation.amplitude.detach(), content["state_dict"]["amplitude"][[1, 4]]
    )


def test_a_folder_with_files_is_left_alone(saved, tmp_path):
    path = saved(made())
    with pytest.raises(CheckpointError, match="exists and is not an empty folder; name another"):
        convert(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["best_model.pt"]


def test_the_command_prints_what_it_wrote(saved, tmp_path):
    path = saved(made())
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.build(), ["convert", str(path), str(out)])
    assert result.exit_code == 0, result.output
    shapes = released_shapes(ReleasedConfig(**made()["config"]), 4)
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
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "best_model.pt" in done.stdout, done.stderr


def test_the_same_file_converts_to_the_same_bytes(saved, tmp_path):
    path = saved(made())
    for name in ("a", "b"):
        convert(path, tmp_path / name)
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert files and all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
