"""The steps of docs/how-to/use-the-released-checkpoint.md, with a small checkpoint and host."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from modulate.cli import main
from modulate.config.recipe import load_recipe
from modulate.modulation.module import Modulation
from modulate.runs.import_weights import mismatches
from modulate.utils.paths import resolve
from modulate_gaze.convert import convert
from modulate_tabletop.make import make_world
from tests.plugins.gaze.released_content import released_content

PAGE = Path("docs/how-to/use-the-released-checkpoint.md").read_text(encoding="utf-8")
REPRODUCE = Path("docs/how-to/reproduce-gazeqwen.md").read_text(encoding="utf-8")
VJEPA = "package:modulate_tabletop/vjepa/model.safetensors"
WORLD = [
    "data.params.train=1",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.seed=5",
    "data.params.max_per_split=4",
    "evaluation.conditions=[none]",
]
SMALL = [
    (
        "host.params={path: small-host, dtype: float32, video_min_pixels: null, video_max_pixels:"
        " null}"
    ),
    (
        f"backbone.params={{weights: '{VJEPA}', preset: null, image_size: 128, pad_to: 16,"
        " antialias: false}"
    ),
]


def commands(page):
    """Every line of the page's shell blocks that calls modulate."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.S)
    return [
        line.partition("#")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.startswith("modulate ")
    ]


def released_yaml():
    ((name, text),) = re.findall(r"<!-- file: (\S+) -->\n```yaml\n(.*?)^```", PAGE, re.S | re.M)
    return name, text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Create the reader's folder: the hub's file, a host, the world as data, StreamGaze's tree."""
    folder = tmp_path_factory.mktemp("released")
    make_world(folder / "data/tabletop", train=1, val=1, test=2, seed=5, workers=1)
    make_world(folder / "data/streamgaze", train=5, val=1, test=2, seed=6, workers=1)
    host = Path(resolve("package:modulate_tabletop/host"))
    shutil.copytree(
        host, folder / "small-host", ignore=shutil.ignore_patterns("model.safetensors", "README.md")
    )
    config = AutoConfig.from_pretrained(host)
    config.text_config.num_hidden_layers = 28
    config.text_config.layer_types = ["full_attention"] * 28
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder / "small-host")
    width = int(load_recipe("gazeqwen_tiny").backbone.build("backbone").d_features)
    content = released_content(
        d_vjepa=width, d_llm=128, n_latents=32, d_latent=256, rank=8, d_value=128
    )
    (folder / "gazeqwen").mkdir()
    torch.save(content, folder / "gazeqwen/best_model.pt")
    name, text = released_yaml()
    lines = [
        line for line in text.splitlines() if not line.startswith(("host:", "backbone:"))
    ]  # theirs is a 7B host: ours is small
    lines += [
        "host: {name: qwen2_5_vl, params: {path: small-host}}",
        f"backbone: {{name: vjepa2_1, params: {{weights: '{VJEPA}', image_size: 128}}}}",
    ]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def run(line, *more):
    arguments = shlex.split(
        line.replace(" --option … --option …", " --option cup --option pan")
        .replace("--option …", "--option jar")
        .replace("--question …", "--question Which?")
    )
    with pytest.raises(SystemExit) as ended:
        main([*arguments[1:], *more])
    assert not ended.value.code, line


def test_the_steps_work_as_they_are_written_one_after_the_other(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    video = sorted(Path("data/tabletop/videos/original_video").glob("*.mp4"))[0]
    csv = Path("data/tabletop/fixations") / f"{video.stem}_fixation_filtered.csv"
    more = {
        "adopt gazeqwen-modulation released.yaml": WORLD,
        "adopt gazeqwen-modulation gazeqwen_released": [
            *SMALL,
            "data.params.limits={test: 4}",
            "evaluation={conditions: [none], inputs: {}}",
        ],
    }
    lines = commands(PAGE)
    for line in lines:
        filled = line.replace("VIDEO", str(video)).replace("CSV", str(csv)).replace("SECONDS", "12")
        extra = next((added for prefix, added in more.items() if prefix in line), [])
        run(filled, *extra)
    verbs = [line.split()[1] for line in lines]
    assert verbs == ["convert", "ask", "adopt", "ask", "adopt", "eval"]
    assert "The signal reached" in capsys.readouterr().out
    adopted = Modulation.from_pretrained("runs/gazeqwen_released/modulation").config
    assert adopted.injection.empty == "none" and adopted.encoder.params["active"] == "released"
    assert json.loads(Path("runs/gazeqwen_theirs/metrics.json").read_text())["n"] == 4


@pytest.mark.parametrize("recipe", ["released.yaml", "gazeqwen_released"])
def test_a_checkpoint_of_the_released_sizes_is_one_that_the_page_s_recipes_describe(
    recipe, tmp_path
):
    """The published widths of resampler and encoder, the host's aside."""
    torch.save(
        released_content(d_vjepa=768, d_llm=32, n_latents=32, d_latent=256, rank=8, d_value=16),
        tmp_path / "best_model.pt",
    )
    config = convert(tmp_path / "best_model.pt", tmp_path / "out").modulation.config
    name, text = released_yaml()
    (tmp_path / name).write_text(text)
    assert mismatches(load_recipe(str(tmp_path / name) if recipe == name else recipe), config) == []


def test_the_reproduction_page_adopts_what_it_converts(place, tmp_path):
    lines = [line for line in commands(REPRODUCE) if line.split()[1] == "adopt"]
    config = convert(place / "gazeqwen/best_model.pt", tmp_path / "out").modulation.config
    assert len(lines) == 2
    for line in lines:
        _, _, weights, recipe, *overrides = shlex.split(line)
        assert (
            weights == "gazeqwen-modulation"
            and mismatches(load_recipe(recipe, overrides), config) == []
        )
