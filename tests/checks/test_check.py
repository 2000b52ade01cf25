"""`check` finds mistakes and costs of a whole recipe before training."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.tracking import get_available_trackers

from modulate.checks.findings import CheckReport
from modulate.checks.settings import check_settings
from modulate.config.recipe import load_recipe
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.trainer import train
from tests.checks.conftest import samples_of, texts
from tests.paths import SMALL

# --- whole recipes


def test_a_good_recipe_has_all_figures_and_no_error(checked, world):
    report = checked()
    assert report.ok, report.findings
    assert set(report.samples) == set(report.coverage) == {"train", "val", "test"}
    assert min(report.samples.values()) > 0
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
    clips = {(s.clip.file, s.clip.window) for s in samples_of(world)}
    assert report.cache == len(clips) * 4 * 16 * 48 * 4  # 4 steps of 4 × 4 places, 48 float32 each


def test_features_of_gray_frames_count_if_a_condition_needs_them(checked, world):
    clips = {(s.clip.file, s.clip.window) for s in samples_of(world)}
    tested = {
        (s.clip.file, s.clip.window)
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
    assert bare.ok
    assert bare.parameters == full.parameters
    assert bare.coverage == full.coverage
    assert bare.cache == full.cache
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
    assert "6144 = 8 steps × 24 × 32" in done.stdout
    assert "2,523,136 LoRA" in done.stdout
    assert "8,292,166,656 host" in done.stdout
    assert "Injection into layer 27 cannot change the answer" in done.stdout
    assert "No errors." in done.stdout
    assert int(done.stdout.rpartition("peak")[2]) < 2e6  # KiB


def test_a_host_that_cannot_be_loaded_is_an_error_and_everything_else_is_still_checked(
    checked, monkeypatch
):
    monkeypatch.setattr(
        "modulate.checks.check.add_costs", lambda *args: None
    )  # 7 billion parameters take a while, even on meta tensors
    pixels = ["host.params.video_min_pixels=12544", "host.params.video_max_pixels=12544"]
    report = checked(
        "host.params.path=Qwen/Qwen2.5-VL-7B-Instruct",
        "injection.layers=[13, 27]",
        *pixels,
        root="nowhere",
    )
    assert "cannot be loaded" in texts(report, "error")
    assert "as with --meta" in texts(report, "error")
    assert report.parameters["host"] == 8_292_166_656
    assert "Injection into layer 27 cannot change the answer" in texts(report, "warning")
    unknown = checked("host.params.path=someone/unknown")
    assert "No configuration of 'someone/unknown' ships with this plugin" in texts(unknown, "error")
    assert not unknown.parameters


def test_a_dead_layer_is_a_warning_and_nothing_but_dead_layers_an_error(checked):
    assert "Injection into layer 5 cannot change the answer" in texts(
        checked("injection.layers=[1, 5]"), "warning"
    )
    report = checked("injection.layers=[5]")
    assert not report.ok
    assert "Injection into layer 5 cannot change the answer" in texts(report, "error")


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
    )
    warnings = texts(report, "warning")
    assert "`lora` is set, but no stage trains it" in warnings
    assert "Stage 'modulator' has a lora_lr, but does not train lora." in warnings
    assert "`patience` has no effect without validation" in warnings
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
    clips = len({(s.clip.file, s.clip.window) for s in samples})
    steps = -(-clips // accumulation)
    assert clips > 2
    assert (
        steps_of(report, "modulator")
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
    assert report.ok
    assert "There are no data to check" in texts(report, "warning")
    assert "--prepare" in texts(report, "warning")
    assert report.reach and not report.coverage and report.memory and not report.cache
    assert "clips are assumed to have 8 frames of 1280 × 960 pixels" in texts(report, "info")


# --- departures, trackers


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
        ("sampling.antialias=false", "warning", "no token sees the others"),
        (
            "sampling.train_max_frames=3",
            "info",
            "training sees fewer frames than the 8 of the evaluation",
        ),
        ("training.schedule=one_cycle", "info", "momentum cycles with it"),
        ("training.empty=skip", "info", "excluded from training"),
        ("letters=four", "warning", "an answer that was never offered can win"),
        ("evaluation.failed=left_out", "warning", "samples that fail leave the count"),
    ],
)
def test_each_departure_of_the_released_code_is_reported_with_its_consequence(
    override, level, says
):
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
    """Every key by which `gazeqwen_released` follows the released code is reported.

    The exception is the length of training, which is not a mistake.
    """
    released = yaml.safe_load(Path("recipes/gazeqwen_released.yaml").read_text())
    named = {
        f"{section}.{key}"
        for section in ("sampling", "training", "evaluation", "injection")
        for key in released[section]
    }
    named |= {
        f"{part}.params.{key}"
        for part in ("encoder", "backbone", "data")
        for key in released[part]["params"]
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
