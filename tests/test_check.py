"""`check` finds before training what would go wrong in it; `reach` finds dead layers by gradient."""

from pathlib import Path

import pytest
import torch
from tiny import CLIP, fresh, inputs, qwen

from modulate.check import check
from modulate.reach import kept_bytes, reach
from modulate.recipe import load_recipe
from modulate_tabletop.make import make_world

SMALL = str(Path(__file__).parent / "data" / "small.yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("check") / "world"
    make_world(root, train=2, val=1, test=2, seed=0, workers=1)
    return root


@pytest.fixture
def checked(world, tmp_path):
    def run(*overrides, root=world):
        return check(load_recipe(SMALL, [f"data.params.root={root}", *overrides]), tmp_path / "cache")

    return run


def texts(report, level):
    return "\n".join(f.text for f in report.findings if f.level == level)


# --- dead layers ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_only_the_last_layer_of_a_decoder_of_any_depth_is_dead(layers):
    host = qwen(layers=layers)
    modulation = fresh(host, layers=tuple(range(layers)))
    found = reach(host, modulation, inputs(texts=((7, 8, 9),)), CLIP.grid)
    assert list(found) == list(range(layers))
    assert [layer for layer, gradient in found.items() if gradient == 0.0] == [layers - 1]


def test_a_layer_followed_by_deaf_attention_is_dead_too():
    host = qwen(layers=4)
    with torch.no_grad():
        for layer in host.model.language_model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()  # from here on, positions no longer talk to each other
    found = reach(host, fresh(host, layers=(0, 1, 2, 3)), inputs(texts=((7, 8, 9),)), CLIP.grid)
    assert found[0] > 0 and found[1] == found[2] == found[3] == 0.0


def test_reach_leaves_host_and_modulation_as_they_were(host):
    modulation = fresh(host)
    before = {k: v.clone() for k, v in modulation.state_dict().items()}
    reach(host, modulation, inputs(texts=((7, 8, 9),)), CLIP.grid)
    assert all(torch.equal(v, before[k]) for k, v in modulation.state_dict().items())
    assert not {"residual", "latents"} & modulation.__dict__.keys()
    assert all(p.grad is None for p in [*host.parameters(), *modulation.parameters()])


def test_kept_bytes_counts_activations_once_and_no_parameters():
    weight, x = torch.nn.Parameter(torch.ones(8, 8)), torch.ones(4, 8)
    assert kept_bytes(lambda: (x @ weight).sum()) == x.nbytes
    assert kept_bytes(lambda: ((x @ weight) + (x @ weight)).sum()) == x.nbytes


# --- whole recipes ----------------------------------------------------------------------------------------------------------------------


def test_a_good_recipe_has_no_error_and_all_figures(checked):
    report = checked()
    assert report.ok, report.findings
    assert set(report.samples) == set(report.coverage) == {"train", "val", "test"} and min(report.samples.values()) > 0
    assert report.coverage["test"] == 1.0
    assert min(report.reach.values()) > 0
    assert report.parameters["LoRA"] > 0 and report.parameters["output projections"] == 3 * 32 * 128
    assert report.figures["visual tokens of a clip"].startswith("64 = 4 steps × 4 × 4")
    assert report.memory["activations"] > 0 and report.memory["modulation"] > 0


def test_a_dead_layer_is_a_warning_and_nothing_but_dead_layers_an_error(checked):
    assert "Injection into layer 5 cannot change the answer" in texts(checked("injection.layers=[1, 5]"), "warning")
    report = checked("injection.layers=[5]")
    assert not report.ok and "Injection into layer 5 cannot change the answer" in texts(report, "error")


def test_a_layer_out_of_range_is_an_error(checked):
    report = checked("injection.layers=[1, 6]")
    assert "Injection asks for decoder layer 6, but Qwen2_5_VLForConditionalGeneration has layers 0 to 5." in texts(report, "error")


def test_settings_without_effect_are_named(checked):
    report = checked(
        "training.stages.1.train=[modulator]",
        "training.stages.0.lora_lr=1.0e-3",
        "training.patience=3",
        "training.validate_every=null",
        "injection.layers=[1, 1]",
    )
    found = texts(report, "warning")
    assert "`lora` is given, but no stage trains it" in found
    assert "Stage 'modulator' has a lora_lr, but does not train lora." in found
    assert "`patience` has no effect without validation" in found
    assert "injection.layers names layer 1 more than once" in found
    assert "warm-up is shortened" in texts(report, "info")


def test_patience_that_can_never_run_out_is_named(checked):
    assert "`patience` cannot stop stage 'joint'" in texts(checked("training.patience=3"), "warning")


def test_missing_data_are_a_warning_and_the_rest_is_checked(checked, tmp_path):
    report = checked(root=tmp_path / "nowhere")
    assert report.ok and "There are no data to check" in texts(report, "warning") and "--prepare" in texts(report, "warning")
    assert report.reach and not report.coverage and "activations" not in report.memory


def test_signals_that_are_never_active_are_counted(checked, world, tmp_path):
    root = copied(world, tmp_path)
    for path in (root / "fixations").glob("*.csv"):
        header = path.read_text().partition("\n")[0]
        path.write_text(header + "\n")
    report = checked(root=root)
    assert report.coverage["train"] == 0.0
    assert "In 100.0 % of the train samples the signal is active at no sampled step." in texts(report, "error")


def test_a_question_beyond_the_end_of_its_video_is_an_error(checked, world, tmp_path):
    root = copied(world, tmp_path)
    videos = sorted((root / "videos").rglob("*.mp4"))
    shorten(videos[0])
    report = checked(root=root)
    assert f"lies beyond the end of {videos[0]}, which ends at" in texts(report, "error")


def copied(world, tmp_path):
    import shutil

    return shutil.copytree(world, tmp_path / "copy")


def shorten(path):
    """Replace a video by two seconds of grey."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 127, np.uint8))))
        container.mux(stream.encode())
