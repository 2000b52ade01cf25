"""modulate.load: an assistant from a run, a folder, or a loaded host."""

import json

import pytest
import torch

import modulate
from modulate.config.recipe import load_recipe
from modulate.config.usage import Usage
from modulate.errors import HostError, MissingFileError, RecipeError
from modulate.modulation.module import Modulation
from modulate_gaze.scanpath import Scanpath
from tests.paths import FIXTURES, SMALL
from tests.video_files import write_video

OLD_RUN = FIXTURES / "saved_by_0_1" / "run"
GAZE = Scanpath([(0.2, 0.3, 1.0, 0.8), (0.8, 0.6, 2.5, 1.0)])
OPTIONS = ("plate", "bowl", "box", "fork")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("load") / "v.mp4", seconds=4.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved modulation with residuals that are not zero, as a recipe's training writes it."""
    recipe = load_recipe(SMALL, ["answer=word"])
    family, params = recipe.host.resolved("host")
    model, _ = family.load(params)
    modulation = Modulation.for_host(
        model,
        encoder=recipe.encoder,
        modulator=recipe.modulator,
        injection=recipe.injection,
        d_features=48,
        backbone=recipe.backbone,
        usage=Usage.of(recipe),
    )
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    folder = tmp_path_factory.mktemp("saved")
    modulation.save_pretrained(folder)
    return folder


def changed(saved, tmp_path, change):
    """A copy of the saved modulation whose configuration is changed in place by ``change``."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_folder_is_enough_to_ask(saved, video):
    answer = modulate.load(saved).ask(video, "What is it?", options=OPTIONS, gaze=GAZE)
    assert answer.report.active_steps == (2,)
    assert answer.probabilities != answer.without_signal.probabilities
    assert modulate.load(str(saved), device="cpu", dtype="bfloat16").host.dtype == torch.bfloat16


def test_a_run_is_enough_to_ask_also_one_saved_by_the_version_before(video):
    answer = modulate.load(OLD_RUN).ask(video, "What is it?", options=OPTIONS, gaze=GAZE)
    assert set(answer.probabilities) == set(OPTIONS)


def test_a_loaded_host_is_used_as_it_is(saved, video):
    first = modulate.load(saved)
    second = modulate.load(saved, host=first.host, processor=first.processor)
    assert second.host is first.host
    ask = {"options": OPTIONS, "gaze": GAZE}
    assert (
        second.ask(video, "What?", **ask).probabilities
        == first.ask(video, "What?", **ask).probabilities
    )
    with pytest.raises(HostError, match="needs its processor"):
        modulate.load(saved, host=first.host)


def test_a_host_from_a_folder_elsewhere_must_be_named(saved, tmp_path, video):
    def forget(config):
        config["usage"]["host"] = None

    folder = changed(saved, tmp_path, forget)
    with pytest.raises(RecipeError, match=r"does not say where its host, a qwen2_5_vl of 6 layers"):
        modulate.load(folder)
    named = modulate.load(folder, host="package:modulate_tabletop/host")
    assert named.ask(video, "What?", options=OPTIONS, gaze=GAZE).text in OPTIONS


def test_a_backbone_from_a_file_elsewhere_must_be_built_here(saved, tmp_path, video):
    def local(config):
        config["backbone"]["params"]["weights"] = "/data/vjepa.safetensors"

    folder = changed(saved, tmp_path, local)
    with pytest.raises(RecipeError, match=r"has weights '/data/vjepa\.safetensors', a file of"):
        modulate.load(folder)
    own = modulate.load(saved).backbone
    assert modulate.load(folder, backbone=own).ask(video, "What?", gaze=GAZE).text is not None


def test_what_is_no_modulation_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="is not a saved modulation"):
        modulate.load(tmp_path)
