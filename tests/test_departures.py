"""Options that repeat differences of GazeQwen's released code: each has its effect, if chosen."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import interpolate

from modulate import ClipInput, visual_grid
from modulate.config.injection import Injection
from modulate.config.recipe import load_recipe
from modulate.config.sections import Sampling
from modulate.data.alignment import align
from modulate.errors import RecipeError, VideoError
from modulate.evaluation.evaluate import compute_metrics
from modulate.evaluation.predictions import Prediction
from modulate.evaluation.scoring import score
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import FrameFeatures
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.visual_grid import with_regular_steps
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate_gaze.scanpath import Scanpath
from modulate_tabletop.make import make_world
from tests.tiny import CLIP, GRID, features, fresh, inputs, qwen

RATES = [
    {"up_to": 30, "fps": 1},
    {"up_to": 60, "fps": 0.5},
    {"up_to": 300, "fps": 0.2},
    {"fps": 0.1},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("departures")
    make_world(folder / "tabletop", train=1, val=1, test=2, seed=5, workers=1)
    return folder


def pipeline_for(root, *overrides, cache=None):
    data = [
        f"data.params.root={root}/tabletop",
        "data.params.train=1",
        "data.params.val=1",
        "data.params.test=2",
        "data.params.seed=5",
    ]
    pipeline = Pipeline(load_recipe("gazeqwen_tiny", [*data, *overrides]), cache or root / "cache")
    pipeline.make_data()
    return pipeline


# --- time


def test_the_rate_depends_on_the_clip_s_length():
    sampling = Sampling.model_validate({"fps": RATES})
    assert [sampling.rate(s) for s in (5, 30, 30.1, 60, 299, 300, 4000)] == [
        1,
        1,
        0.5,
        0.5,
        0.2,
        0.2,
        0.1,
    ]
    for wrong in (
        [],
        [{"up_to": 30, "fps": 1}],
        [{"up_to": 30, "fps": 1}, {"up_to": 20, "fps": 1}, {"fps": 1}],
        [{"fps": 1}, {"fps": 2}],
    ):
        with pytest.raises(
            ValueError,
            match="rates by clip length need increasing `up_to`, and a last rate without `up_to`",
        ):
            Sampling.model_validate({"fps": wrong})


def test_training_may_have_its_own_frame_cap(root):
    pipeline = pipeline_for(root, "sampling={fps: 1.0, max_frames: 8, train_max_frames: 2}")
    sample = pipeline.samples("test")[0]
    assert len(pipeline.times(sample.clip)) == 8
    assert pipeline.times(sample.clip, training=True) == list(sample.clip.window)
    assert pipeline.prepare(sample).clips[0].grid.steps == 4
    assert pipeline.prepare(sample, training=True).clips[0].grid.steps == 1


def test_the_requested_clock_takes_a_capped_minute_for_sixteen_seconds():
    # 8 frames of 60 s: half a frame a second is requested, and two frames make a step [the released
    # code's own example: 0, 4, 8, 12 s].
    true = visual_grid([60 * k / 7 for k in range(8)], 2, 1, 1, (0.0, 60.0))
    assert [round(t, 1) for t in true.times] == [4.3, 21.4, 38.6, 55.7]
    believed = with_regular_steps(true, 0.0, 2 / Sampling.model_validate({"fps": RATES}).rate(60.0))
    assert believed.times == (0.0, 4.0, 8.0, 12.0) and believed.spans[-1] == (12.0, 16.0)


def test_the_true_clock_may_be_named_without_quotes():
    released = load_recipe("gazeqwen_released")
    # As in docs/how-to/reproduce-gazeqwen.md.
    corrected = load_recipe("gazeqwen_released", ["sampling.clock=true"])
    assert (released.sampling.clock, corrected.sampling.clock) == ("requested", "true")
    with pytest.raises(RecipeError, match=r"sampling\.clock"):
        load_recipe("gazeqwen_released", ["sampling.clock=false"])


def test_the_clock_and_the_rate_reported_to_the_processor_are_separate_options(root):
    own = pipeline_for(root, "sampling={fps: 2.0, max_frames: 8}")
    sample = own.samples("test")[0]
    start = sample.clip.window[0]
    true = own.prepare(sample)
    requested = pipeline_for(root, "sampling={fps: 2.0, max_frames: 8, clock: requested}").prepare(
        sample
    )
    assert requested.clips[0].grid.times == pytest.approx([start + step for step in range(4)])
    assert true.clips[0].grid.times != requested.clips[0].grid.times
    # The clock does not change the host's own time.
    assert all(torch.equal(requested.inputs[name], true.inputs[name]) for name in true.inputs)
    at_24 = pipeline_for(root, "sampling={fps: 2.0, max_frames: 8, processor_fps: 24}").prepare(
        sample
    )
    assert at_24.clips[0].grid == true.clips[0].grid
    assert torch.equal(at_24.inputs["pixel_values_videos"], true.inputs["pixel_values_videos"])
    assert at_24.inputs["second_per_grid_ts"].item() == pytest.approx(2 / 24)
    assert true.inputs["second_per_grid_ts"].item() == pytest.approx(2.0, rel=0.02)


# --- features


def between_centres(n, into):
    """Return (into, n) weights of linear interpolation from the centers of ``n`` cells.

    They are read at the centers of ``into`` cells, and computed one number at a time.
    """
    weights = np.zeros((into, n))
    for i in range(into):
        place = min(max((i + 0.5) * n / into - 0.5, 0.0), n - 1.0)
        left = int(place)
        right = min(left + 1, n - 1)
        weights[i, left] += 1 - (place - left)
        weights[i, right] += place - left
    return weights


def released_alignment(values, steps, rows, cols):
    """Interpolate as the released code does: first trilinear in time, then bilinear by step."""
    volume = values.permute(3, 0, 1, 2)[None]
    if len(values) != steps:
        volume = interpolate(
            volume, (steps, *values.shape[1:3]), mode="trilinear", align_corners=False
        )
    planes = [volume[0, :, t][None] for t in range(steps)]
    if tuple(values.shape[1:3]) != (rows, cols):
        planes = [
            interpolate(plane, (rows, cols), mode="bilinear", align_corners=False)
            for plane in planes
        ]
    return torch.stack([plane[0].permute(1, 2, 0).reshape(rows * cols, -1) for plane in planes])


@pytest.mark.parametrize("steps", [1, 4, 8, 11])
@pytest.mark.parametrize(
    "shape", [(18, 24), (24, 18), (8, 10), (24, 24), (25, 24), (20, 32), (28, 44), (1, 1)]
)
def test_alignment_as_released_is_plain_interpolation_on_any_grid(steps, shape):
    values = torch.randn(8, 24, 24, 5, generator=torch.Generator().manual_seed(0))
    raw = FrameFeatures(values, tuple(float(t) ** 2 for t in range(8)))
    grid = visual_grid([2.0 * k * k for k in range(2 * steps)], 2, *shape)
    found = align(raw, grid, "index", antialias=False)
    by_hand = np.einsum(
        "kt,ir,jc,trcd->kijd",
        between_centres(8, steps),
        between_centres(24, shape[0]),
        between_centres(24, shape[1]),
        values.double().numpy(),
    )
    torch.testing.assert_close(
        found.double(), torch.from_numpy(by_hand).reshape(steps, -1, 5), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(
        found, released_alignment(values, steps, *shape), atol=1e-6, rtol=1e-6
    )
    smooth = align(raw, grid, "index")
    # Smoothing has no effect where the grid is not coarser.
    assert torch.equal(smooth, found) == (min(shape) >= 24)


def test_plain_interpolation_in_space_can_be_combined_with_true_times():
    values = torch.randn(3, 24, 24, 5, generator=torch.Generator().manual_seed(0))
    grid = visual_grid([0.0, 1.0, 5.0, 6.0, 9.0, 10.0], 2, 8, 10)
    found = align(FrameFeatures(values, grid.times), grid, antialias=False)
    torch.testing.assert_close(found, released_alignment(values, 3, 8, 10))
    assert (found - align(FrameFeatures(values, grid.times), grid)).norm() > 0.2 * found.norm()


def test_a_pipeline_aligns_as_its_recipe_says(root, tmp_path):
    smooth, plain = (
        pipeline_for(root, f"sampling.antialias={choice}", cache=tmp_path)
        for choice in ("true", "false")
    )
    sample = smooth.samples("test")[0]
    (a,) = smooth.prepare(sample).clips
    (b,) = plain.prepare(sample).clips
    assert a.grid == b.grid and a.grid.rows < 8
    frames = plain.extractor.frames(sample.clip)
    raw = plain.extractor.raw_features(sample.clip.file, frames)
    # Entries are on the backbone's own grid, so that one serves both.
    assert smooth.extractor.feature_cache.misses == 1
    assert plain.extractor.feature_cache.hits == 2
    assert torch.equal(b.features, align(raw, b.grid, antialias=False))
    assert not torch.equal(a.features, b.features)


def test_frames_are_resized_for_the_backbone_with_or_without_smoothing():
    params = {"weights": "random", "dims": {"dim": 24, "depth": 1, "heads": 2}, "image_size": 32}
    smooth, plain = (
        ComponentSpec(name="vjepa2_1", params={**params, **more}).build("backbone")
        for more in ({}, {"antialias": False})
    )
    frames = torch.randint(
        0, 256, (2, 90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    small = interpolate(
        frames.permute(0, 3, 1, 2).float() / 255, (32, 32), mode="bilinear", align_corners=False
    )
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = plain.encoder(((small - mean) / std).transpose(0, 1)[None], None).reshape(
        1, 2, 2, 24
    )
    torch.testing.assert_close(plain(frames, (0.0, 1.0)).values, expected)
    assert not torch.allclose(smooth(frames, (0.0, 1.0)).values, expected, atol=1e-3)
    assert smooth.fingerprint() != plain.fingerprint()  # so that they share no cache entry


def test_padding_for_the_backbone_repeats_the_last_frame():
    params = {"weights": "random", "dims": {"dim": 24, "depth": 1, "heads": 2}, "image_size": 32}
    plain, padded = (
        ComponentSpec(name="vjepa2_1", params={**params, **more}).build("backbone")
        for more in ({}, {"pad_to": 8})
    )
    frames = torch.randint(
        0, 256, (4, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = padded(frames, (0.0, 1.0, 2.0, 3.0))
    by_hand = plain(
        torch.cat([frames, frames[-1:].expand(4, -1, -1, -1)]), tuple(float(t) for t in range(8))
    )
    assert torch.equal(found.values, by_hand.values) and found.times == by_hand.times == (
        0.5,
        2.5,
        4.5,
        6.5,
    )
    assert plain.fingerprint() != padded.fingerprint()
    with pytest.raises(VideoError, match="The clip has 9 frames, and `pad_to` of vjepa2_1 is 8"):
        padded(frames[:1].expand(9, -1, -1, -1), tuple(float(t) for t in range(9)))


# --- answers


def test_four_letters_compete_where_two_are_offered(root):
    two, four = (
        pipeline_for(root, "answer=letter", f"letters={letters}") for letters in ("offered", "four")
    )
    sample = replace(two.samples("test")[0], id="two", options=("Yes", "No"), answer=1)
    assert (len(two.prepare(sample).options), len(four.prepare(sample).options)) == (2, 4)
    three = replace(sample, id="three", options=tuple("xyz"), answer=2)
    assert (len(two.prepare(three).options), len(four.prepare(three).options)) == (3, 4)
    modulation = four.fresh_modulation()
    with modulation.attached(four.model) as attachment:
        (record,) = score(four, attachment, [sample], "host")
        # Padded to one width in the batch, but each answer has its own options only.
        offered = score(two, attachment, [sample, three], "host")
    assert len(record.logits) == 4
    assert [len(answer.logits) for answer in offered] == [2, 3]
    assert record.prediction == max(range(4), key=record.logits.__getitem__)
    with pytest.raises(RecipeError, match="`letters` has no effect on `answer: word`"):
        load_recipe("gazeqwen_tiny", ["letters=four"])


def test_failed_samples_reduce_the_number_only_if_chosen(tmp_path):
    records = {
        "signal": [
            Prediction(f"s{k}", "t", f"v{k}", "signal", 0, 0, True, (1.0,), 1) for k in range(3)
        ]
    }
    records["signal"].append(
        Prediction("s3", "t", "v3", "signal", 0, None, False, (), 0, "VideoError: torn")
    )
    for choice, accuracy, n in (("wrong", 0.75, 4), ("left_out", 1.0, 3)):
        recipe = load_recipe("gazeqwen_tiny", [f"name={choice}", f"evaluation.failed={choice}"])
        metrics = compute_metrics(Run(tmp_path, recipe), "signal", records)
        assert (metrics["overall"], metrics["n"]) == (accuracy, n) and [
            f["id"] for f in metrics["failed"]
        ] == ["s3"]


def test_text_only_asks_the_bare_host_without_the_clip(root):
    pipeline = pipeline_for(root)
    sample = pipeline.samples("test")[0]
    prepared = pipeline.prepare(sample, "text")
    assert "pixel_values_videos" not in prepared.inputs and prepared.clips == ()
    assert pipeline.host.visual_ids["video"] not in prepared.inputs["input_ids"]
    with pipeline.fresh_modulation().attached(pipeline.model) as attachment:
        (record,) = score(pipeline, attachment, [sample], "text_only")
    logits = pipeline.model(**prepared.inputs).logits[0, -1, prepared.options]
    assert record.logits == tuple(round(v, 4) for v in logits.tolist())


# --- signals


def test_an_empty_signal_gives_residuals_or_none():
    host = qwen()
    empty = [[ClipInput(Scanpath(np.empty((0, 4))), GRID, features())], [CLIP]]
    found = {}
    for rule in ("residual", "none"):
        modulation = fresh(host)
        modulation.config = modulation.config.model_copy(
            update={"injection": Injection(layers=(1, 2), empty=rule)}
        )
        for projection in modulation.out:
            torch.nn.init.normal_(projection.weight, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), modulation.attached(host) as attachment:
            bare = host(**inputs()).logits
            with attachment.condition(empty):
                found[rule] = host(**inputs()).logits
        assert attachment.report().active_steps == (0, 2) and attachment.report().tokens == (
            24 if rule == "residual" else 12
        )
    assert torch.equal(found["none"][0], bare[0]) and not torch.equal(found["residual"][0], bare[0])
    # Up to rounding: a batch in which every clip is written is computed by mixtures.
    torch.testing.assert_close(found["none"][1], found["residual"][1], atol=1e-6, rtol=1e-6)
    assert not torch.equal(found["none"][1], bare[1])
    with pytest.raises(
        RecipeError,
        match="`empty: none` applies to visual tokens; it has no effect with kind `text`",
    ):
        load_recipe("gazeqwen_tiny", ["injection.empty=none", "injection.tokens={kind: text}"])


def test_a_batch_without_any_signal_gives_no_gradient_and_no_error(tmp_path):
    make_world(tmp_path / "tabletop", train=2, val=1, test=2, seed=5, workers=1)
    first = min((tmp_path / "tabletop" / "fixations").glob("*.csv"))
    # One of the two training videos has a header and no fixations.
    first.write_text(first.read_text().splitlines()[0] + "\n")
    overrides = [
        "injection.empty=none",
        "data.params.train=2",
        "data.params.max_per_split=6",
        "training.batch_size=1",
        "training.validate_every=null",
    ]
    recipe = load_recipe(
        "gazeqwen_tiny",
        [
            f"data.params.root={tmp_path}/tabletop",
            "data.params.val=1",
            "data.params.test=2",
            "data.params.seed=5",
            *overrides,
            "training.stages=[{name: modulator, train: [modulator], epochs: 1}]",
        ],
    )
    pipeline = Pipeline(recipe, tmp_path / "cache")
    pipeline.make_data()
    run = Run.create(recipe, tmp_path / "runs")
    fresh = pipeline.fresh_modulation().state_dict()
    trained = train(run, pipeline).state_dict()
    curve = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert {line["active"] for line in curve} == {0.0, 1.0} and run.read_json("state.json")[
        "skipped"
    ] == {}
    assert any(not torch.equal(fresh[key], trained[key]) for key in fresh)  # by the other video
    with pytest.raises(
        RecipeError,
        match=r"condition `blank` with `injection\.empty: none` gives the modulator no gradient",
    ):
        load_recipe("gazeqwen_tiny", ["injection.empty=none", "training.condition=blank"])


def test_a_data_set_decides_which_part_of_a_signal_belongs_to_a_sample(root, monkeypatch):
    pipeline = pipeline_for(root)
    sample = pipeline.samples("test")[0]
    whole = Scanpath.read(sample.clip.signals["gaze"])
    assert pipeline.signal(sample, sample.clip) == whole.within(*sample.clip.window)

    def own(given: Sample, clip: SampleClip, signal: Scanpath) -> Scanpath:
        assert given is sample
        assert clip == sample.clip
        return signal.within(0.0, 1.0)

    monkeypatch.setattr(pipeline.dataset, "clip_signal", own)
    assert pipeline.signal(sample, sample.clip) == whole.within(0.0, 1.0)


def test_departures_are_written_into_a_run_s_recipe(root, tmp_path):
    recipe = load_recipe(
        "gazeqwen_tiny",
        [f"sampling={{fps: {json.dumps(RATES)}, clock: requested, alignment: index}}"],
    )
    run = Run.create(recipe, tmp_path)
    assert Run.open(run.folder).recipe == recipe


def test_features_are_cached_in_the_chosen_type_and_up_to_the_chosen_size(root, tmp_path):
    pipeline = pipeline_for(root, "features={dtype: float16, disk_gib: 0.001}", cache=tmp_path)
    sample = pipeline.samples("test")[0]
    assert pipeline.extractor.feature_cache.max_bytes == int(0.001 * 2**30)
    pipeline.prepare(sample)
    with safe_open(
        next(pipeline.extractor.feature_cache.folder.glob("*.safetensors")), framework="pt"
    ) as file:
        assert file.get_slice("values").get_dtype() == "F16"
    assert pipeline.prepare(sample).clips[0].features.dtype == torch.float32
