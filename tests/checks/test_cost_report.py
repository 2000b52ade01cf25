"""From an estimate, which is given here, to the figures and sentences of a report."""

import pytest
import torch

from modulate.checks import cost_report as costs
from modulate.checks.cost_model import Budget, Phase, meta_recipe
from modulate.checks.cost_report import A100, A100_FLOPS, UTILIZATION, add_costs
from modulate.checks.examples import Example, ExampleClip
from modulate.checks.findings import CheckReport
from modulate.checks.meta_tensors import META
from modulate.config.recipe import load_recipe
from modulate.errors import HostError, RecipeError
from modulate.hosts.encoding import EncodedPrompt
from modulate.inference.pipeline import Pipeline
from tests.paths import SMALL
from tests.samples import one_clip_sample

GIB = 2**30


def example(times):
    clip = ExampleClip((len(times), 64, 64), times, (times[0], times[-1]))
    return Example(EncodedPrompt({}, ()), (clip,))


EXAMPLE = example((0.0, 1.0, 2.0, 3.0))
OTHER = example((0.0, 1.0, 2.0, 4.0))


def estimated_budget(device="cuda", peak=3 * GIB, flops=2 * 10**12):
    stages = (Phase("stage modulator", peak, flops), Phase("stage joint", GIB, 3 * flops))
    weights = {"host": GIB, "backbone": GIB // 2, "modulation": GIB // 2}
    return Budget(
        device,
        weights,
        Phase("features", GIB, flops),
        stages,
        Phase("evaluation", 2 * GIB, flops),
        (4, 8, 8, 16),
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    with META:
        return Pipeline(meta_recipe(load_recipe(SMALL)), tmp_path_factory.mktemp("costs"))


def samples(n, video="v"):
    return [
        one_clip_sample(f"{video}{i}", f"{video}{i // 2}.mp4", (0.0, 3.0 + i % 2)) for i in range(n)
    ]


@pytest.fixture
def report_of(monkeypatch, pipeline, tmp_path):
    def tell(budget=None, splits=None, overrides=()):
        report = CheckReport("small")
        arguments = []

        def estimate(*given):
            arguments.append(given)
            if isinstance(budget, Exception):
                raise budget
            return budget or estimated_budget(given[4])

        monkeypatch.setattr(costs, "estimate", estimate)
        add_costs(
            report, load_recipe(SMALL, overrides), pipeline, tmp_path, splits or {}, EXAMPLE, OTHER
        )
        recipe, cache, training, evaluation, device, trust = arguments[0]
        assert (recipe.name, cache, training, evaluation, trust) == (
            "small",
            tmp_path,
            EXAMPLE,
            OTHER,
            False,
        )
        return report, device

    return tell


def texts(report, level):
    return "\n".join(f.text for f in report.findings if f.level == level)


def test_memory_and_operations_are_reported_by_phase(report_of):
    report, device = report_of()
    assert device == "cuda" and report.weights == estimated_budget().weights
    assert report.memory == {
        "features": GIB,
        "stage modulator": 3 * GIB,
        "stage joint": GIB,
        "evaluation": 2 * GIB,
    }
    assert report.flops == {
        "features": 2 * 10**12,
        "stage modulator": 2 * 10**12,
        "stage joint": 6 * 10**12,
        "evaluation": 2 * 10**12,
    }
    assert report.figures["memory, about"].splitlines() == [
        "2,048 MiB weights: host 1,024 MiB, backbone 512 MiB, modulation 512 MiB",
        "1,024 MiB features, at most",
        "3,072 MiB stage modulator, at most",
        "1,024 MiB stage joint, at most",
        "2,048 MiB evaluation, at most",
    ]
    assert report.figures["operations"].splitlines() == [
        "2 TFLOP features, a clip",
        "2 TFLOP stage modulator, an optimizer step",
        "6 TFLOP stage joint, an optimizer step",
        "2 TFLOP evaluation, a sample",
    ]
    assert "Memory is that of tensors on a GPU" in texts(report, "info")
    assert not {"gradient_checkpointing", "precision"} & {
        word.strip(",.`") for word in texts(report, "info").replace("training.", "").split()
    }


def test_on_a_cpu_the_report_does_not_mention_a_gpu(report_of):
    report, device = report_of(overrides=["host.params.device=cpu"], splits={"train": samples(4)})
    assert device == "cpu"
    assert "tensors on a CPU" in texts(report, "info")
    assert not {"fits", "time, roughly"} & report.figures.keys()


def test_the_report_says_what_the_estimate_leaves_out(report_of):
    report, _ = report_of(
        overrides=["training.gradient_checkpointing=true", "training.precision=bf16"]
    )
    assert "estimated without training.gradient_checkpointing" in texts(report, "info")
    assert "estimated without training.precision 'bf16'" in texts(report, "info")
    report, _ = report_of(
        overrides=["training.batch_by=clip", "training.accumulation=3", "training.batch_size=4"]
    )
    assert (
        "stage joint, 12 samples, each with its own pass over the clip"
        in report.figures["operations"]
    )


def test_costs_that_cannot_be_estimated_are_reported_in_one_line(report_of):
    report, _ = report_of(HostError("no such host\nand more"))
    assert (
        texts(report, "info") == "Memory and operations were not estimated: HostError: no such host"
    )
    assert not report.figures


@pytest.mark.parametrize(
    ("peak", "level", "fits"),
    [(0.9, None, True), (0.91, "warning", False), (1.0, "warning", False), (1.01, "error", False)],
)
def test_a_run_that_does_not_fit_is_an_error_and_one_that_barely_fits_a_warning(
    report_of, monkeypatch, peak, level, fits
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report, _ = report_of(estimated_budget(peak=int(peak * A100)))
    assert ("fits" in report.figures) is fits
    assert [f.level for f in report.findings if "needs about" in f.text] == [level] * (not fits)
    assert A100 == 80 * GIB
    assert "an A100-80GB" in (report.figures["fits"] if fits else texts(report, level))
    if fits:
        assert report.figures["fits"] == "an A100-80GB (80.0 GiB): 72.0 GiB at most"


def test_features_of_all_clips_are_counted_each_with_its_own_frames(report_of):
    splits = {"train": samples(4), "test": samples(4, "t")}
    report, _ = report_of(splits=splits)
    a_frame = 4 * 8 * 8 * 16 * 4 // 4
    assert report.figures["features of a clip"] == "0.0 MiB as float32"
    clips = 2 * (4 + 5) * 2  # of four and five frames, two videos, two splits
    assert report.cache == a_frame * clips
    assert report.figures["features of all clips"].endswith("on disk, of 8 clips")
    small, _ = report_of(splits=splits, overrides=["features.dtype=bfloat16"])
    assert small.cache == report.cache // 2
    nothing, _ = report_of()
    assert nothing.cache == 0 and "features of all clips" not in nothing.figures


@pytest.mark.parametrize(("gib", "warned"), [(1e-9, True), (1.0, False), (0.0, True)])
def test_features_that_do_not_all_fit_are_a_warning(report_of, gib, warned):
    report, _ = report_of(splits={"train": samples(4)}, overrides=[f"features.disk_gib={gib:.10f}"])
    assert ("some are computed again in every epoch" in texts(report, "warning")) is warned


def test_hours_cover_all_steps_features_and_answers(report_of):
    overrides = ["training.batch_size=2", "evaluation.conditions=[none, host]"]
    report, _ = report_of(
        estimated_budget(flops=10**18), {"train": samples(6), "test": samples(4, "t")}, overrides
    )
    steps = 3  # six samples in batches of two, one epoch in each stage
    work = 10**18 * (steps + 3 * steps + 10 + 4 * 3)
    assert (A100_FLOPS, UTILIZATION) == (312e12, 0.4)
    assert report.figures["time, roughly"].startswith(
        f"{work / (312e12 * 0.4) / 3600:,.0f} h on an A100 at 40% of its 312 TFLOP/s"
    )
    untrained, _ = report_of(estimated_budget(flops=10**18), {"test": samples(4, "t")}, overrides)
    assert untrained.figures["time, roughly"].startswith(
        f"{10**18 * (4 + 12) / (312e12 * 0.4) / 3600:,.0f} h"
    )


def test_an_estimate_is_a_budget_of_the_recipe_without_its_weights(monkeypatch, tmp_path):
    arguments = []
    monkeypatch.setattr(costs, "budget", lambda *given: arguments.append(given))
    costs.estimate(load_recipe(SMALL), tmp_path, EXAMPLE, OTHER, "cpu")
    [(pipeline, modulation, training, evaluation, device)] = arguments
    assert (training, evaluation, device) == (
        EXAMPLE,
        OTHER,
        "cpu",
    )
    assert modulation.config.injection.layers == (0, 1, 3)
    assert all(p.is_meta for p in pipeline.model.parameters())
    assert all(p.is_meta for p in pipeline.backbone.parameters())
    with pytest.raises(RecipeError, match="trust_remote_code"):
        costs.estimate(
            load_recipe(SMALL, ["host.params.trust_remote_code=true"]),
            tmp_path,
            EXAMPLE,
            OTHER,
            "cpu",
        )
