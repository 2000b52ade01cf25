"""`check` finds before training what would go wrong in it; `reach` finds dead layers by gradient."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.tracking import get_available_trackers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import modulate_tabletop
from modulate.checks.check import check
from modulate.checks.dead_layers import reach, twin_reach
from modulate.checks.findings import CheckReport
from modulate.checks.settings import check_settings
from modulate.config.recipe import load_recipe
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate_tabletop.make import make_world
from tests.paths import SMALL
from tests.tiny import CLIP, fresh, inputs, qwen

TABLETOP = Path(modulate_tabletop.__file__).parent


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("check") / "world"
    make_world(root, train=2, val=1, test=2, seed=0, workers=1)
    return root


@pytest.fixture
def checked(world, tmp_path):
    def run(*overrides, root=world, **more):
        return check(
            load_recipe(SMALL, [f"data.params.root={root}", *overrides]), tmp_path / "cache", **more
        )

    return run


def texts(report, level):
    return "\n".join(f.text for f in report.findings if f.level == level)


# --- dead layers


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
            # from here on, positions no longer talk to each other
            layer.self_attn.o_proj.weight.zero_()
    found = reach(host, fresh(host, layers=(0, 1, 2, 3)), inputs(texts=((7, 8, 9),)), CLIP.grid)
    assert found[0] > 0 and found[1] == found[2] == found[3] == 0.0


def test_reach_leaves_host_and_modulation_as_they_were(host):
    modulation = fresh(host)
    before = {k: v.clone() for k, v in modulation.state_dict().items()}
    reach(host, modulation, inputs(texts=((7, 8, 9),)), CLIP.grid)
    assert all(torch.equal(v, before[k]) for k, v in modulation.state_dict().items())
    assert not {"residual", "latents"} & modulation.__dict__.keys()
    assert all(p.grad is None for p in [*host.parameters(), *modulation.parameters()])


def config_of(layers, **text):
    """The configuration of the tabletop host, with other decoder layers."""
    config = AutoConfig.from_pretrained(TABLETOP / "host")
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return config


@pytest.mark.parametrize("layers", [5, 40])
def test_without_weights_dead_layers_are_found_on_a_narrow_twin_of_any_depth(layers):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(layers))
    at = [layers // 2, layers - 2, layers - 1]
    found = twin_reach(
        load_recipe(SMALL, [f"injection.layers={at}"]),
        model,
        AutoProcessor.from_pretrained(TABLETOP / "host"),
        48,
    )
    assert list(found) == at and [
        layer for layer, gradient in found.items() if gradient == 0.0
    ] == [layers - 1]
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_twin_finds_dead_layers_by_gradient_and_not_from_a_list():
    """Sliding windows of one token keep the last position from looking back, so that earlier layers
    are dead as well.
    """
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config_of(4, layer_types=kinds, use_sliding_window=True, sliding_window=1)
        )
    found = twin_reach(
        load_recipe(SMALL, ["injection.layers=[0, 1, 2, 3]"]),
        model,
        AutoProcessor.from_pretrained(TABLETOP / "host"),
        48,
    )
    assert found[0] > 0 and found[1] == found[2] == found[3] == 0.0


# --- whole recipes


def samples_of(root):
    data = load_recipe(SMALL, [f"data.params.root={root}"]).data.build("dataset")
    return [sample for split in ("train", "val", "test") for sample in data.samples(split)]


def test_a_good_recipe_has_all_figures_and_no_error(checked, world):
    report = checked()
    assert report.ok, report.findings
    assert (
        set(report.samples) == set(report.coverage) == {"train", "val", "test"}
        and min(report.samples.values()) > 0
    )
    assert report.coverage["test"] == 1.0
    assert min(report.reach.values()) > 0
    assert report.parameters["LoRA"] > 0 and report.parameters["output projections"] == 3 * 32 * 128
    assert report.figures["visual tokens of a clip"].startswith("64 = 4 steps × 4 × 4")
    assert (
        list(report.memory)
        == list(report.flops)
        == ["features", "stage modulator", "stage joint", "evaluation"]
    )
    assert (
        sum(report.weights.values())
        < report.memory["stage modulator"]
        < report.memory["stage joint"]
    )
    clips = {(s.video, s.window) for s in samples_of(world)}
    assert report.cache == len(clips) * 4 * 16 * 48 * 4  # 4 steps of 4 × 4 places, 48 float32 each


def test_features_of_gray_frames_count_if_a_condition_needs_them(checked, world):
    clips = {(s.video, s.window) for s in samples_of(world)}
    tested = {
        (s.video, s.window)
        for s in (
            load_recipe(SMALL, [f"data.params.root={world}"]).data.build("dataset").samples("test")
        )
    }
    assert (
        checked("evaluation.conditions=[no_pixels]", meta=True).cache
        == (len(clips) + len(tested)) * 4 * 16 * 48 * 4
    )


def test_on_meta_tensors_the_same_is_found_without_the_weights(checked, monkeypatch):
    full = checked()
    monkeypatch.setattr(
        "transformers.AutoModelForImageTextToText.from_pretrained",
        lambda *a, **k: pytest.fail("weights were loaded"),
    )
    bare = checked(meta=True)
    assert (
        bare.ok
        and bare.parameters == full.parameters
        and bare.coverage == full.coverage
        and bare.cache == full.cache
    )
    assert bare.figures["visual tokens of a clip"] == full.figures["visual tokens of a clip"]
    assert {layer for layer, g in bare.reach.items() if g > 0} == {
        layer for layer, g in full.reach.items() if g > 0
    }
    assert checked("host.params.device=cpu", meta=True).memory == full.memory
    assert "no weights were loaded, nothing was computed" in texts(bare, "info")


@pytest.mark.slow
def test_the_papers_recipe_is_checked_without_weights_in_less_than_two_gigabytes():
    sizes = ["host.params.video_min_pixels=100352", "host.params.video_max_pixels=602112"]
    code = (
        "import resource, modulate.cli as c\ntry: c.main()\nfinally: print('peak',"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "gazeqwen", "--meta", *sizes],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (
        "6144 = 8 steps × 24 × 32" in done.stdout
        and "2,523,136 LoRA" in done.stdout
        and "8,292,166,656 host" in done.stdout
    )
    assert (
        "Injection into layer 27 cannot change the answer" in done.stdout
        and "No errors." in done.stdout
    )
    assert int(done.stdout.rpartition("peak")[2]) < 2e6  # KiB


def test_a_host_that_cannot_be_loaded_is_an_error_and_everything_else_is_still_checked(
    checked, monkeypatch
):
    monkeypatch.setattr(
        "modulate.checks.check.add_costs", lambda *found: None
    )  # 7 billion parameters take a while, even on paper
    pixels = ["host.params.video_min_pixels=12544", "host.params.video_max_pixels=12544"]
    report = checked(
        "host.params.path=Qwen/Qwen2.5-VL-7B-Instruct",
        "injection.layers=[13, 27]",
        *pixels,
        root="nowhere",
    )
    assert "cannot be loaded" in texts(report, "error") and "as with --meta" in texts(
        report, "error"
    )
    assert report.parameters["host"] == 8_292_166_656
    assert "Injection into layer 27 cannot change the answer" in texts(report, "warning")
    unknown = checked("host.params.path=someone/unknown")
    assert (
        "No configuration of 'someone/unknown' ships with this plugin" in texts(unknown, "error")
        and not unknown.parameters
    )


def test_a_dead_layer_is_a_warning_and_nothing_but_dead_layers_an_error(checked):
    assert "Injection into layer 5 cannot change the answer" in texts(
        checked("injection.layers=[1, 5]"), "warning"
    )
    report = checked("injection.layers=[5]")
    assert not report.ok and "Injection into layer 5 cannot change the answer" in texts(
        report, "error"
    )


def test_a_layer_out_of_range_is_an_error(checked):
    report = checked("injection.layers=[1, 6]")
    assert (
        "Injection asks for decoder layer 6, but Qwen2_5_VLForConditionalGeneration has layers 0"
        " to 5." in texts(report, "error")
    )


def test_settings_without_effect_are_reported(checked):
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


def steps_of(report, stage):
    return report.figures[f"stage {stage}"].split(", training")[0]


@pytest.mark.parametrize(("accumulation", "of"), [(1, "a clip"), (2, "2 clips")])
def test_steps_with_batches_by_clip_match_those_of_training(
    checked, world, tmp_path, accumulation, of
):
    overrides = [
        "training.batch_by=clip",
        f"training.accumulation={accumulation}",
        "training.batch_size=32",
        "training.stages.0.epochs=1",
        "training.stages.1.epochs=1",
    ]
    report = checked(*overrides)
    samples = [
        s
        for s in samples_of(world)
        if s
        in load_recipe(SMALL, [f"data.params.root={world}"]).data.build("dataset").samples("train")
    ]
    clips = len({(s.video, s.window) for s in samples})
    steps = -(-clips // accumulation)
    assert (
        clips > 2
        and steps_of(report, "modulator")
        == f"{steps} optimizer steps of {of}, {len(samples) / clips * accumulation:.1f} samples on"
        " average"
    )
    assert (
        "an optimizer step sees a single clip. Raise training.accumulation"
        in texts(report, "warning")
    ) is (accumulation == 1)
    recipe = load_recipe(SMALL, [f"data.params.root={world}", *overrides])
    run = Run.create(recipe, tmp_path)
    train(run, Pipeline(recipe, tmp_path / "cache"))
    assert run.read_json("state.json")["steps"] == 2 * steps


def test_sizes_below_a_gibibyte_are_given_in_mebibytes(checked):
    report = checked("features.disk_gib=0.0001", meta=True)
    assert f"features of all clips {report.figures['features of all clips']}".startswith(
        f"features of all clips {report.cache / 2**20:.1f} MiB on disk"
    )
    assert (
        f"All features take {report.cache / 2**20:.1f} MiB, features.disk_gib keeps 0.1 MiB: some"
        " are computed again" in texts(report, "warning")
    )


def test_patience_that_can_never_run_out_is_reported(checked):
    assert "`patience` cannot stop stage 'joint'" in texts(
        checked("training.patience=3"), "warning"
    )


def test_missing_data_are_a_warning_and_everything_else_is_checked(checked, tmp_path):
    report = checked(root=tmp_path / "nowhere")
    assert (
        report.ok
        and "There are no data to check" in texts(report, "warning")
        and "--prepare" in texts(report, "warning")
    )
    assert report.reach and not report.coverage and report.memory and not report.cache
    assert "clips are assumed to have 8 frames of 1280 × 960 pixels" in texts(report, "info")


def test_signals_that_are_never_active_are_counted(checked, world, tmp_path):
    root = copied(world, tmp_path)
    for path in (root / "fixations").glob("*.csv"):
        header = path.read_text().partition("\n")[0]
        path.write_text(header + "\n")
    report = checked(root=root)
    assert report.coverage["train"] == 0.0
    assert "In 100.0 % of the train samples the signal is active at no sampled step." in texts(
        report, "error"
    )


def test_a_question_after_the_end_of_its_video_is_an_error(checked, world, tmp_path):
    root = copied(world, tmp_path)
    videos = sorted((root / "videos").rglob("*.mp4"))
    shorten(videos[0])
    report = checked(root=root)
    assert f"lies after the end of {videos[0]}, which ends at" in texts(report, "error")


def copied(world, tmp_path):
    return shutil.copytree(world, tmp_path / "copy")


def shorten(path):
    """Replace a video by two seconds of gray."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(10):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 127, np.uint8)))
            )
        container.mux(stream.encode())


# --- clocks, departures, trackers


def test_signals_on_another_clock_are_counted_by_sample(checked, world, tmp_path):
    root = copied(world, tmp_path)
    moved = sorted((root / "fixations").glob("*.csv"))[0]
    header, *rows = moved.read_text().splitlines()
    columns = header.split(",")
    late = [
        ",".join(
            str(float(v) + 1e6) if name.startswith(("start_time", "end_time")) else v
            for name, v in zip(columns, row.split(","))
        )
        for row in rows
    ]
    moved.write_text("\n".join([header, *late]) + "\n")
    report = checked(root=root)
    samples = samples_of(root)
    n = sum(s.signals["gaze"] == moved for s in samples)
    assert 0 < n < len(samples)
    assert f"In {n} of {len(samples)} samples the whole signal lies outside the video" in texts(
        report, "warning"
    )


@pytest.mark.parametrize(
    ("override", "level", "says"),
    [
        ("sampling.clock=requested", "warning", "timed by the requested rate, not by their frames"),
        ("sampling.processor_fps=24", "warning", "its own sense of time is wrong"),
        ("sampling.alignment=index", "warning", "features meet the steps by their order"),
        (
            "data.params.fixation_rule=midpoint",
            "warning",
            "data.params.fixation_rule is `midpoint`",
        ),
        ("data.params.proactive_fixations=origin", "warning", "every fixation lies at (0, 0)"),
        ("backbone.params.pad_to=16", "warning", "backbone.params.pad_to is 16"),
        ("backbone.params.antialias=false", "info", "some of their pixels count for nothing"),
        (
            "encoder={name: coord_pe, params: {dim: 64, active: midpoint}}",
            "info",
            "encoder.params.scale is 1",
        ),
        (
            "encoder={name: coord_pe, params: {dim: 64, scale: 6.28, active: released}}",
            "info",
            "compared in float32",
        ),
        ("injection.empty=none", "info", "injection.empty is `none`"),
        ("sampling.antialias=false", "warning", "others are seen by none"),
        (
            "sampling.train_max_frames=3",
            "info",
            "training sees fewer frames than the 8 of the evaluation",
        ),
        ("training.schedule=one_cycle", "info", "momentum cycles with it"),
        ("training.empty=skip", "info", "left out of training"),
        ("letters=four", "warning", "an answer that was never offered can win"),
        ("evaluation.failed=left_out", "warning", "samples that fail leave the count"),
    ],
)
def test_each_departure_of_the_released_code_is_reported_with_its_consequence(override, level, says):
    assert says in texts(settings_of(override), level)
    assert says not in texts(settings_of(), level)


def settings_of(*overrides):
    report = CheckReport("settings")
    check_settings(report, load_recipe(SMALL, overrides), {})
    return report


def test_a_tracker_that_is_not_installed_is_an_error():
    missing = {"tensorboard", "wandb"} - {
        str(getattr(t, "value", t)) for t in get_available_trackers()
    }
    if not missing:
        pytest.skip("all trackers are installed")
    tracker = sorted(missing)[0]
    assert f"training.trackers asks for {tracker!r}, which is not installed" in texts(
        settings_of(f"training.trackers=[{tracker}]"), "error"
    )


def test_every_departure_of_the_released_recipe_is_reported():
    """Every key that `gazeqwen_released` has for the released code's sake is in a finding, except
    training's length, which is no error of anybody's.
    """
    own = yaml.safe_load(Path("recipes/gazeqwen_released.yaml").read_text())
    named = {
        f"{section}.{key}"
        for section in ("sampling", "training", "evaluation", "injection")
        for key in own[section]
    }
    named |= {
        f"{part}.params.{key}"
        for part in ("encoder", "backbone", "data")
        for key in own[part]["params"]
    } | {"letters"}
    named -= {"sampling.max_frames", "training.stages", "evaluation.max_failed_share"}
    report = CheckReport("released")
    check_settings(report, load_recipe("gazeqwen_released"), {})
    assert (
        sorted(
            key for key in named if not any(f.text.startswith(f"{key} is") for f in report.findings)
        )
        == []
    )
    plain = CheckReport("paper")
    check_settings(plain, load_recipe("gazeqwen"), {})
    assert not any(f.text.startswith(f"{key} is") for f in plain.findings for key in named)
