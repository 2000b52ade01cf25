"""The page of supported names: complete, up to date, and its examples run."""

import ast
import shutil
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import modulate
from modulate import ClipInput, Modulation, plugins, visual_grid
from modulate.cli import api_page
from modulate.utils.paths import resolve
from tests.paths import ROOT, SMALL
from tests.processes import python
from tests.tiny import modulation_of_shipped, our_hooks
from tests.video_files import write_video

EXAMPLES = ROOT / "docs" / "examples"
SMALL_HOST = resolve("package:modulate_tabletop/host")


def code_of(group):
    text = (EXAMPLES / f"{api_page.EXAMPLES[group]}.py").read_text()
    return text.replace('"Qwen/Qwen2.5-VL-7B-Instruct"', repr(str(SMALL_HOST)))


def run(group):
    names = {"__name__": "example"}
    exec(compile(code_of(group), f"{group}.py", "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a video, its gaze, a recipe, and a modulation that does something."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "kitchen.mp4", seconds=4.0, size=(64, 64))
    header = "start_time,end_time,center_x,center_y"
    (tmp_path / "gaze.csv").write_text(f"{header}\n0.0,1.2,0.2,0.7\n1.5,3.0,0.8,0.4\n")
    shutil.copy(SMALL, tmp_path / "my.yaml")
    host = AutoModelForImageTextToText.from_pretrained(SMALL_HOST)
    modulation = modulation_of_shipped(host)
    modulation.save_pretrained(tmp_path / "my-modulation")
    return tmp_path


def test_each_supported_name_is_in_its_groups_example_and_has_a_docstring():
    assert api_page.EXAMPLES.keys() == modulate.PUBLIC.keys()
    for group, names in modulate.PUBLIC.items():
        tree = ast.parse(code_of(group))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert names.keys() <= used, group
        assert all(getattr(modulate, name).__doc__ for name in names)


def test_all_is_what_is_supported():
    assert set(modulate.__all__) - {"__version__"} == {
        name for names in modulate.PUBLIC.values() for name in names
    }


def test_a_modulation_is_attached_and_trained(folder, capsys):
    names = run("Attach a modulation to a loaded host")
    assert capsys.readouterr().out.endswith("visual tokens got a residual\n")
    assert names["report"].tokens == names["grid"].tokens and not our_hooks(names["model"])
    assert any(parameter.grad is not None for parameter in names["trainable"].parameters())


def test_questions_are_asked(folder, capsys):
    saved = Modulation.from_pretrained(folder / "my-modulation").config
    recipe = modulate.load_recipe(SMALL, ["answer=word"])
    modulation = Modulation.for_host(
        AutoModelForImageTextToText.from_pretrained(SMALL_HOST),
        encoder=saved.encoder,
        modulator=saved.modulator,
        injection=saved.injection,
        d_features=48,
        backbone=recipe.backbone,
        usage=modulate.Usage.of(recipe),
    )
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    modulation.save_pretrained(folder / "my-modulation")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "photo.jpg")
    names = run("Ask about your own videos and pictures")
    assert names["answer"].report.active_steps == (2,)
    assert names["answer"].text != names["answer"].without_signal.text
    assert sum(names["choice"].probabilities.values()) == pytest.approx(1.0)
    assert names["choice"].report.active_steps == (1,)
    assert len(names["many"]) == 2 and len(names["chat"].turns) == 4
    assert not our_hooks(names["vqa"].host)


def test_a_modulation_is_configured(folder):
    run("Configure a modulation")
    assert Modulation.from_pretrained(folder / "my-modulation").config.lora is not None


def test_a_recipe_is_trained_and_evaluated(folder, capsys):
    names = run("Train and evaluate recipes")
    assert names["metrics"]["overall"] == names["run"].read_json("metrics.json")["overall"]


def test_errors_are_caught_by_what_is_to_be_mended(folder, capsys):
    run("Catch errors")
    assert "nowhere" in capsys.readouterr().out


def test_the_plugins_tests_pass(tmp_path):
    shutil.copy(EXAMPLES / "plugin.py", tmp_path / "loudness.py")
    shutil.copy(EXAMPLES / "test_plugin.py", tmp_path / "test_loudness.py")
    info = tmp_path / "loudness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loudness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[modulate]\nloudness = loudness\n")
    code, out, err = python("-m", "pytest", "-q", tmp_path, cwd=tmp_path, path=tmp_path)
    assert code == 0 and " passed" in out, out + err


def test_the_plugin_is_found_and_each_of_its_components_works(folder, monkeypatch):
    shutil.copy(EXAMPLES / "plugin.py", folder / "loudness.py")
    monkeypatch.syspath_prepend(str(folder))
    registry = plugins.Registry([EntryPoint("loudness", "loudness", plugins.GROUP)])
    assert [info.error for info in registry.plugins.values() if info.error] == []
    import loudness

    (folder / "clip.csv").write_text("time,level\n0.5,0.2\n2.5,0.8\n")
    signal = registry.get("signal", "loudness").read(folder / "clip.csv")
    assert len(signal) == 2 and len(signal.within(0, 1)) == 1 and len(signal.blank()) == 0
    backbone = registry.get("backbone", "mean_color")(loudness.Params())
    times = (0.0, 1.0, 2.0, 3.0)
    raw = backbone(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), times)
    raw.check()
    grid = visual_grid(times, 2, 2, 3)
    encoder = registry.get("signal_encoder", "loudness")(loudness.Width())
    encoded = encoder([signal], [grid])
    modulator = registry.get("modulator", "loudness")(
        loudness.Width(), d_features=3, d_signal=encoder.d_signal, n_layers=2
    )
    features = torch.randn(grid.steps, grid.tokens_per_step, 3)
    first, _ = modulator(features, encoded)
    writer = modulator.writer(0, 8)
    latents = first.dense().flatten(0, 1)
    memory = loudness.Memory(latents, torch.tensor([[0, 6]] * 6 + [[6, 12]] * 6))
    assert not writer(latents, torch.randn(len(latents), 8), memory).any()
    assert ClipInput(signal, grid, features).signal is signal
    questions = registry.get("dataset", "loud_questions")(loudness.Folder(root=folder))
    assert questions.samples("test") == [] and questions.fingerprint() == "kitchen.mp4"
    stated = registry.get("input", "loudness_told")(loudness.Params())
    frames = modulate.Frames(np.zeros((4, 8, 8, 3), np.uint8), times)
    turn = stated(loudness.HostInput(frames, "Is it loud?"), signal, (0.0, 4.0))
    assert turn.text.startswith("(The loudest sound is 0.8.)")
    assert issubclass(registry.get("host", "quiet_host"), modulate.Host)
