"""Samples of several videos and pictures, trained on and evaluated on the shipped small host."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from modulate.checks.check import check
from modulate.config.recipe import load_recipe
from modulate.data.alignment import align
from modulate.data.clip_shards import planned_clips
from modulate.data.picture import read_picture
from modulate.data.precompute import FeatureFiller
from modulate.data.video import read_frames
from modulate.errors import ConditioningError, DataError, VideoError
from modulate.evaluation.evaluate import evaluate
from modulate.evaluation.scoring import score
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.controls import ShufflePool
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import refuse_untransformable
from modulate.inference.shared_prefix import shared_prefix
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Message, Picture, VideoClip
from modulate.modulation.clip_inputs import ClipInput
from modulate.modulation.module import Modulation
from modulate.report.gallery import build_gallery
from modulate.report.pictures import gallery_section
from modulate.report.runs import read_run
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate_gaze.scanpath import Scanpath
from tests.paths import SMALL

CONDITIONS = ("none", "blank", "shuffled", "centre", "shifted", "host", "no_frames", "no_pixels")
WORLD = ("data.params.train=3", "data.params.test=3")
OPTIONS = ["mug", "tray", "box", "plate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with a table of questions, three videos a split, and pictures from them."""
    root = tmp_path_factory.mktemp("clips")
    pipeline = Pipeline(load_recipe(SMALL, [f"data.params.root={root}/world", *WORLD]), root)
    pipeline.make_data()
    rows = []
    for split in ("train", "val", "test"):
        clips = {s.clip.file: s.clip for s in pipeline.samples(split)}.values()
        rows += [{**row, "split": split, "id": f"{split}-{row['id']}"} for row in rows_of(clips)]
    lines = [json.dumps({"question": "which object ?", "options": OPTIONS, **row}) for row in rows]
    (root / "questions.jsonl").write_text("\n".join(lines))
    return root


def rows_of(clips):
    """Return questions on one video, two, one of them without gaze, a picture, and both."""
    videos = [str(clip.file) for clip in clips]
    gaze = [str(clip.signals["gaze"]) for clip in clips]
    pictures = [picture_of(clip.file) for clip in clips]
    rows = {}
    for number in {0, len(videos) - 1}:
        of = {"gaze": [gaze[number]]}
        rows[f"one{number}"] = {"videos": [videos[number]], **of, "start": [3], "end": [9]}
        rows[f"picture{number}"] = {"images": [pictures[number]], **of}
    last = {"images": pictures[-1:], "gaze": gaze[-1:]}
    rows["window"] = {**last, "start": [2], "end": [6]}
    both = {"videos": videos[:1], "images": pictures[:1], "gaze": [gaze[0], gaze[0]]}
    rows["both"] = {**both, "start": [8, 1], "end": [12, 4]}
    if len(videos) > 1:
        two = {"videos": videos[:2], "start": [3, 5], "end": [8, 12]}
        rows["two"] = {**two, "gaze": gaze[:2]}
        rows["without"] = {**two, "gaze": [None, gaze[1]]}
    return [
        {**row, "id": name, "answer": OPTIONS[place % 4]}
        for place, (name, row) in enumerate(rows.items())
    ]


def picture_of(video):
    """Save a part of a frame, higher than wide, and return its path."""
    image = read_frames(video, [5.0]).images[0]
    path = video.with_suffix(".png")
    Image.fromarray(image[:, 16:112]).save(path)
    return str(path)


def recipe_of(folder, *overrides):
    data = f"data={{name: table, params: {{root: {folder}}}}}"
    settings = (
        "sampling={fps: 1.0, max_frames: 4}",
        "training.stages=[{name: joint, train: [modulator, lora], epochs: 1}]",
        f"evaluation.conditions=[{', '.join(CONDITIONS)}]",
    )
    return load_recipe(SMALL, [data, *settings, *overrides])


@pytest.fixture(scope="module")
def run(folder):
    return Run.create(recipe_of(folder), folder / "runs")


@pytest.fixture(scope="module")
def pipeline(folder, run):
    return Pipeline(run.recipe, folder / "cache")


@pytest.fixture(scope="module")
def metrics(run, pipeline):
    return evaluate(run, pipeline, train(run, pipeline))


@pytest.fixture(scope="module")
def records(run, metrics):
    lines = run.predictions("test").read_text().splitlines()
    return {(r["condition"], r["id"].removeprefix("test-")): r for r in map(json.loads, lines)}


@pytest.fixture(scope="module")
def samples(pipeline):
    return {sample.id.removeprefix("test-"): sample for sample in pipeline.samples("test")}


def by_hand(pipeline, sample, signals):
    """Return the logits of a sample's letters, of parts put together here.

    ``signals``: for each clip its signal or None.
    """
    contents, clips = [], []
    for clip in sample.clips:
        if clip.is_image:
            image = np.array(Image.open(clip.file).convert("RGB"))
            start, end = clip.window
            if (start, end) == (0.0, 0.0):
                end = float(Scanpath.read(clip.signals["gaze"]).ends.max())
            contents.append(Picture(image, (start, end)))
            frames = Frames(image[None], (0.0,))
        else:
            start, end = clip.window
            times = np.linspace(start, end, 4).tolist()
            frames = read_frames(clip.file, times)
            contents.append(VideoClip(frames, (start, end)))
        with torch.no_grad():
            clips.append(pipeline.backbone(torch.from_numpy(frames.images), frames.times))
    text = pipeline.dataset.prompt(sample, "letter")
    prompt = pipeline.host.encode(pipeline.processor, [Message("user", (*contents, text))])
    row = [
        ClipInput(signal, grid, align(raw, grid))
        for signal, grid, raw in zip(signals, prompt.grids, clips, strict=True)
    ]
    letters = pipeline.processor.tokenizer.convert_tokens_to_ids(list("ABCD"))
    return row, prompt.inputs, letters


def own_signals(sample):
    found = []
    for clip in sample.clips:
        whole = Scanpath.read(clip.signals["gaze"]) if clip.signals else None
        is_whole = clip.is_image and clip.window == (0.0, 0.0)
        found.append(whole if whole is None or is_whole else whole.within(*clip.window))
    return found


def test_every_sample_is_answered_under_every_condition(metrics, records, samples):
    assert metrics["failed"] == [] and metrics["n"] == len(samples) == 8
    assert set(records) == {(c, name) for c in ("signal", *CONDITIONS) for name in samples}
    steps = {name: records["signal", name]["active_steps"] for name in samples}
    assert steps["picture0"] == steps["window"] == 1 and steps["one0"] == 2
    # All steps of both clips; of one, where the other has no gaze.
    assert (steps["two"], steps["without"], steps["both"]) == (4, 2, 3)
    assert {records["blank", name]["active_steps"] for name in samples} == {0}


@pytest.mark.parametrize("name", ["two", "without", "picture0", "window", "both"])
def test_answers_equal_forwards_of_parts_put_together_by_hand(
    run, pipeline, records, samples, name
):
    sample = samples[name]
    own = own_signals(sample)
    blank = [None if signal is None else signal.blank() for signal in own]
    modulation = Modulation.from_pretrained(run.weights).eval()
    with modulation.attached(pipeline.model) as attachment, torch.inference_mode():
        for condition, signals in {"signal": own, "blank": blank}.items():
            row, inputs, letters = by_hand(pipeline, sample, signals)
            with attachment.condition([row]):
                logits = pipeline.model(**inputs, **LAST_LOGITS).logits[0, -1, letters]
            assert records[condition, name]["logits"] == pytest.approx(logits.tolist(), abs=2e-3)
        none = pipeline.model(**inputs, **LAST_LOGITS).logits[0, -1, letters]
        assert records["none", name]["logits"] == pytest.approx(none.tolist(), abs=2e-3)


def moved(pipeline, strong, *samples):
    with strong.attached(pipeline.model) as attachment:
        return [record.logits for record in score(pipeline, attachment, samples, "signal")]


@pytest.fixture
def strong(pipeline):
    """Return a modulation whose residuals are large enough to tell signals apart."""
    modulation = pipeline.fresh_modulation().eval()
    with torch.no_grad():
        for writer in modulation.out:
            writer.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    return modulation


def test_swapped_clips_and_swapped_signals_give_other_answers(pipeline, samples, strong):
    two = samples["two"]
    first, second = two.clips
    swapped = replace(two, id="swapped", clips=(second, first))
    crossed = replace(
        two,
        id="crossed",
        clips=(
            replace(first, signals=second.signals, window=second.window),
            replace(second, signals=first.signals, window=first.window),
        ),
    )
    without = replace(two, id="without-first", clips=(replace(first, signals={}), second))
    logits = moved(pipeline, strong, two, swapped, crossed, without)
    for number, one in enumerate(logits):
        for other in logits[number + 1 :]:
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3


def test_each_clip_is_shuffled_with_one_of_its_kind_that_the_sample_does_not_show(
    pipeline, samples, strong
):
    pool = ShufflePool(list(samples.values()))
    for sample in samples.values():
        for index, clip in enumerate(sample.clips):
            other, drawn = pool.draw(sample, 0, index)
            assert other.files.isdisjoint(sample.files)
            assert drawn in other.clips and drawn.is_image == clip.is_image and drawn.signals
    prepared = pipeline.prepare(samples["without"])
    assert pipeline.control("shuffled", prepared, pool)[0] is None
    for name in ("two", "both"):
        prepared = pipeline.prepare(samples[name])
        for own, other in zip(
            prepared.signals, pipeline.control("shuffled", prepared, pool), strict=True
        ):
            assert len(other) and other != own
    with pytest.raises(DataError, match="at least two pictures"):
        ShufflePool([samples["picture0"], samples["two"]]).draw(samples["picture0"], 0)


def test_a_picture_counts_from_zero_to_the_end_of_its_signal(pipeline, samples):
    (clip,) = pipeline.prepare(samples["picture0"]).clips
    whole = Scanpath.read(samples["picture0"].clip.signals["gaze"])
    assert clip.window == (0.0, whole.span()[1]) and clip.grid.spans == (clip.window,)
    assert clip.signal == whole and clip.grid.cols < clip.grid.rows
    (clip,) = pipeline.prepare(samples["window"]).clips
    assert clip.window == (2.0, 6.0) and 0 < len(clip.signal) < len(whole)


def test_features_of_all_clips_are_computed_ahead_of_a_training(folder, pipeline, samples):
    fresh = Pipeline(pipeline.recipe, folder / "ahead")
    fresh.extractor.feature_cache.require_disk = True
    clips = planned_clips(fresh.extractor)
    shown = {(c.file, c.window) for s in samples.values() for c in s.clips if not c.is_image}
    pictures = {c.file for s in samples.values() for c in s.clips if c.is_image}
    tested = [c for c in clips if any("test" in name for name in c.samples)]
    assert len(tested) == len(shown) + len(pictures)
    assert all(c.times == (0.0,) for c in tested if c.is_image)
    done = FeatureFiller(fresh.extractor).fill(clips)
    # Pictures of one size share the features of gray.
    assert done.failed == [] and done.computed == len(clips)
    assert FeatureFiller(fresh.extractor).fill(clips).cached == len(clips)
    misses = fresh.extractor.feature_cache.misses
    for sample in samples.values():
        fresh.prepare(sample)
        fresh.prepare(sample, "gray")
    assert fresh.extractor.feature_cache.misses == misses


def test_a_damaged_picture_fails_its_sample_by_name(pipeline, samples, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(samples["picture0"].clip.file.read_bytes()[:900])
    sample = replace(
        samples["picture0"], id="b", clips=(replace(samples["picture0"].clip, file=broken),)
    )
    with pytest.raises(VideoError, match=r"Sample b: .*broken\.png cannot be decoded as a picture"):
        pipeline.prepare(sample)


def test_a_picture_is_read_as_its_pixels(pipeline, samples):
    clip = samples["picture0"].clip
    frames = pipeline.extractor.frames(clip)
    assert frames.times == (0.0,) and np.array_equal(frames.images[0], read_picture(clip.file))


def test_text_alone_cannot_be_conditioned(pipeline, samples):
    with pytest.raises(ConditioningError, match="was prepared for the bare host"):
        pipeline.prepare(samples["two"], "text").clip_inputs()


def twin_of(folder, pipeline, *overrides):
    """Return a pipeline of another recipe with the same host."""
    other = Pipeline(recipe_of(folder, *overrides), folder / "cache")
    other.model.load_state_dict(pipeline.model.state_dict())
    return other


def test_questions_on_the_same_clips_share_a_forward(folder, pipeline, samples, strong):
    asked = [samples["two"], replace(samples["two"], id="again", question="which tool ?")]
    by_clip = twin_of(folder, pipeline, "evaluation.batch_by=clip")
    prepared = [by_clip.prepare(sample) for sample in asked]
    ids = list(by_clip.host.visual_ids.values())
    tokens = sum(clip.grid.tokens for clip in prepared[0].clips)
    assert shared_prefix(prepared, ids) > tokens
    (first, second) = prepared[1].clips
    other = replace(prepared[1], clips=(first, replace(second, signal=second.signal.blank())))
    assert shared_prefix([prepared[0], other], ids) == 0
    logits = moved(by_clip, strong, *asked)
    for one, other in zip(logits, moved(pipeline, strong, *asked), strict=True):
        assert one == pytest.approx(other, abs=2e-3)
    assert max(abs(a - b) for a, b in zip(*logits, strict=True)) > 1e-3


@pytest.mark.parametrize("by", ["call", "clip"])
def test_caches_of_the_host_know_every_clip_and_picture(folder, pipeline, samples, strong, by):
    cached = twin_of(
        folder,
        pipeline,
        "features.vision_tower_cache_gib=0.1",
        f"features.vision_tower_cache_by={by}",
        "features.hidden_state_cache_gib=0.1",
        "injection.layers=[1, 3]",
    )
    plain = twin_of(folder, pipeline, "injection.layers=[1, 3]")
    modulation = plain.fresh_modulation().eval()
    for writer in modulation.out:
        torch.nn.init.normal_(writer.weight, std=0.5)
    two, both = samples["two"], samples["both"]
    swapped = replace(two, id="swapped", clips=two.clips[::-1])
    other = replace(both, id="other", clips=(both.clips[0], samples["picture2"].clip))
    asked = (two, swapped, both, other)
    expected = moved(plain, modulation, *asked)
    with cached.host_caches():
        for _ in range(2):
            for found, plainly in zip(moved(cached, modulation, *asked), expected, strict=True):
                assert found == pytest.approx(plainly, abs=2e-3)
    assert cached.hidden_state_cache.hits == 1
    assert max(abs(a - b) for a, b in zip(expected[2], expected[3], strict=True)) > 1e-3


def test_input_transforms_are_refused_before_the_work(folder, pipeline, samples, metrics):
    recipe = recipe_of(folder, "name=marked", "evaluation.inputs={mark: {name: gaze_overlay}}")
    marked = Pipeline(recipe, folder / "cache")
    with pytest.raises(DataError, match=r"evaluation\.inputs \(mark\) .* sample .* shows"):
        train(Run.create(recipe, folder / "runs"), marked)
    with pytest.raises(DataError, match=r"and sample test-picture0 shows a picture"):
        refuse_untransformable(recipe, [samples["one0"], samples["picture0"]])
    refuse_untransformable(recipe, [samples["one0"]])
    refuse_untransformable(pipeline.recipe, list(samples.values()))
    assert marked.prepare(samples["one0"], "mark").clips == ()
    with pytest.raises(DataError, match="Sample test-two has 2 clips, where one is needed"):
        marked.prepare(samples["two"], "mark")


def test_the_gallery_shows_every_clip(run, pipeline, metrics, samples):
    gallery = build_gallery(read_run(run.folder), pipeline, len(samples), most_steps=2)
    by_id = {shown.sample.id.removeprefix("test-"): shown for shown in gallery.samples}
    assert by_id.keys() == samples.keys() and all(s.reproduced for s in gallery.samples)
    video, picture = by_id["both"].clips
    assert (video.n_steps, picture.n_steps) == (2, 1)
    for clip in (video, picture):
        assert clip.steps[0].marks and max(float(s.max()) for s in clip.strength.values()) > 0
    blind, seen = by_id["without"].clips
    assert not blind.steps[0].marks and not any(s.any() for s in blind.strength.values())
    assert any(s.any() for s in seen.strength.values())
    page = "".join(map(str, gallery_section(gallery)))
    assert page.count("<svg") and f"Frames of {samples['both'].clips[1].file.name}" in page


def test_the_check_finds_nothing_wrong(folder, run, samples):
    report = check(run.recipe, folder / "cache")
    assert [finding.text for finding in report.findings if finding.level == "error"] == []
    assert report.coverage["test"] == 1.0
    assert " + " in report.figures["visual tokens of a clip"]
