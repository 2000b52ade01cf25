"""Speedups of modulate do not change its results, and the baseline computes the same."""

import json
import random
import threading
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.naive import Naive, cut
from benchmarks.speed import fixtures
from benchmarks.speed.training import saved_for_backward
from modulate.config.recipe import validate
from modulate.data.clip_reader import ClipReader
from modulate.data.feature_extractor import FrameCache
from modulate.data.video import read_frames
from modulate.errors import DataError, RecipeError
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.inference.shared_prefix import shared_prefix, shared_prefix_forward
from modulate.modulation.attachment import ModulatedHost
from modulate.runs.run import Run
from modulate.training.data_loader import PrefetchLoader
from modulate.training.epoch_sampler import epoch_batches
from modulate.training.loss import smoothed_cross_entropy
from modulate.training.trainer import train
from modulate.utils.lru_cache import LRUCache
from tests.samples import one_clip_sample


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A small version of the bench, and a modulation of it with non-zero residuals."""
    root = tmp_path_factory.mktemp("bench")
    fixtures.save_host(root / "host", pixels=64**2, patch=8, layers=4, width=256, vocabulary=512)
    fixtures.write_dataset(root / "world", videos=1, seconds=8, size=(160, 120), moments=(6,))
    recipe = fixtures.recipe(
        root / "world",
        root / "host",
        injection={"layers": [1, 2]},
        sampling={"fps": 1.0, "max_frames": 4},
        data={
            "name": "streamgaze",
            "params": {"root": str(root / "world"), "split": "split.json", "present_seconds": 3.0},
        },
        backbone={
            "name": "vjepa2_1",
            "params": {
                "weights": "random",
                "dims": {"dim": 24, "depth": 1, "heads": 2},
                "image_size": 64,
            },
        },
    )
    pipeline = Pipeline(recipe, root / "cache")
    pipeline.make_data()
    modulation = pipeline.fresh_modulation()
    torch.manual_seed(1)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.5)
    return pipeline, modulation


def naive_for(pipeline, modulation):
    recipe = pipeline.recipe
    return Naive(
        pipeline.model,
        pipeline.host,
        pipeline.processor,
        pipeline.backbone,
        dict(modulation.state_dict()),
        recipe.injection.layers,
        frames=recipe.sampling.max_frames,
        scale=fixtures.SCALE,
        blocks=2,
        lr=1e-3,
    )


def test_the_naive_baseline_computes_the_same_losses_and_gradients(bench):
    pipeline, modulation = bench
    samples = pipeline.samples("train")
    naive = naive_for(pipeline, modulation)
    prompt = lambda sample: pipeline.dataset.prompt(sample, "letter")
    batch = pipeline.collate([pipeline.prepare(s) for s in samples])
    host = ModulatedHost(modulation, pipeline.model)
    try:
        host.zero_grad()
        rows = [p.clip_inputs() for p in batch.prepared]
        logits = batch.option_logits(host(rows, **batch.inputs, **LAST_LOGITS))
        loss = smoothed_cross_entropy(logits, batch.answers, 0.0)
        loss.backward()
    finally:
        host.attachment.detach()
    theirs = torch.stack([naive.logits(s, prompt(s)) for s in samples])
    torch.testing.assert_close(theirs, logits, atol=1e-4, rtol=1e-4)
    torch.nn.functional.cross_entropy(theirs, batch.answers).backward()
    ours = {name: p.grad for name, p in modulation.named_parameters() if p.grad is not None}
    assert naive.weights.keys() >= ours.keys() and len(ours) > 20
    for name, gradient in ours.items():
        torch.testing.assert_close(naive.weights[name].grad, gradient, atol=1e-5, rtol=1e-3)
    bare = batch.option_logits(pipeline.model(**batch.inputs, **LAST_LOGITS))
    assert (bare - logits).abs().max() > 1e-2  # and the residuals do something here


def test_a_cut_shows_the_very_frames_of_its_video(bench, tmp_path):
    pipeline, modulation = bench
    sample = pipeline.samples("train")[0]
    ours = pipeline.extractor.frames(sample.clip)
    theirs = naive_for(pipeline, modulation).read(sample)
    assert (ours.images == theirs.images).all() and ours.times == pytest.approx(
        theirs.times, abs=1e-6
    )
    assert cut(sample.clip.file, 2.51, 4.0, tmp_path / "cut.mp4") == pytest.approx(
        60 / fixtures.RATE
    )


def test_questions_on_one_clip_asked_together_are_answered_as_one_by_one(bench):
    pipeline, modulation = bench
    prepared = [pipeline.prepare(s) for s in pipeline.samples("train")]
    longer = replace(
        prepared[1].sample,
        question="Which object on the table is looked at?",
        options=("cup", "pan"),
        answer=0,
    )
    prepared[1] = pipeline.prepare(replace(longer, id="longer"))
    common = shared_prefix(prepared, list(pipeline.host.visual_ids.values()))
    lengths = {p.inputs["input_ids"].shape[1] for p in prepared}
    assert prepared[0].clips[0].grid.tokens < common < min(lengths) and len(lengths) == 2
    batch = pipeline.collate(prepared)
    clips = prepared[0].clip_inputs()
    found = []
    host = ModulatedHost(modulation, pipeline.model)
    try:
        for together in (False, True):
            host.zero_grad()
            if together:
                output = shared_prefix_forward(host, pipeline.model, prepared, clips, common)
            else:
                output = host([p.clip_inputs() for p in prepared], **batch.inputs, **LAST_LOGITS)
            logits = batch.option_logits(output)
            smoothed_cross_entropy(logits, batch.answers, 0.0).backward()
            found.append(
                (
                    logits.detach(),
                    {
                        n: p.grad.clone()
                        for n, p in modulation.named_parameters()
                        if p.grad is not None
                    },
                )
            )
    finally:
        host.attachment.detach()
    (alone, gradients), (shared, same) = found
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == same.keys() and len(same) > 20
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, atol=1e-5, rtol=1e-3)


def test_nothing_is_kept_for_backward_below_the_first_injected_layer(bench):
    pipeline, modulation = bench
    prepared = pipeline.prepare(pipeline.samples("train")[0])
    below, above = saved_for_backward(
        pipeline,
        modulation,
        pipeline.collate([prepared]).inputs,
        [prepared.clip_inputs()],
    )
    assert below == 0 < above


def test_only_questions_on_one_clip_with_one_signal_are_asked_together(bench):
    pipeline, _ = bench
    first, second = (pipeline.prepare(s) for s in pipeline.samples("train")[:2])
    ids = list(pipeline.host.visual_ids.values())
    assert shared_prefix([first, second], ids) > 0
    assert shared_prefix([first], ids) == 0
    (clip,) = second.clips
    for change in ({"signal": clip.signal.moved(0.5)}, {"window": (2.0, 6.0)}):
        assert shared_prefix([first, replace(second, clips=(replace(clip, **change),))], ids) == 0
    other = first.inputs["input_ids"].clone()
    other[0, 0] += 1
    assert (
        shared_prefix([first, replace(second, inputs={**second.inputs, "input_ids": other})], ids)
        == 0
    )  # they part before the clip


def sample(i, video="a", window=(0.0, 8.0)):
    return one_clip_sample(str(i), video, window, signals={"gaze": Path("g")})


def test_batches_hold_every_sample_once_and_what_belongs_together():
    samples = [sample(i, "ab"[i % 2], (0.0, 4.0 + i % 3)) for i in range(23)]
    ids = {s.id for s in samples}
    for together in ("any", "length", "clip"):
        first, again, other = (
            epoch_batches(
                samples, 4, together, random.Random(seed), lambda s: int(s.clip.window[1])
            )
            for seed in (1, 1, 2)
        )
        assert first == again != other and len(first) == len(other)
        for batches in (first, other):
            assert (
                {s.id for b in batches for s in b} == ids
                and sum(map(len, batches)) == 23
                and max(map(len, batches)) == 4
            )
    assert all(
        len({(s.clip.file, s.clip.window) for s in b}) == 1
        for b in epoch_batches(samples, 4, "clip", random.Random(0))
    )
    spread = [
        len({s.clip.window for s in b})
        for b in epoch_batches(
            samples, 4, "length", random.Random(0), lambda s: int(s.clip.window[1])
        )
    ]
    assert sum(spread) <= len(spread) + 2  # only batches on a border mix two lengths


def test_any_order_is_the_plain_shuffle():
    samples = [sample(i) for i in range(10)]
    order = list(samples)
    random.Random("7:stage:0").shuffle(order)
    assert epoch_batches(samples, 3, "any", random.Random("7:stage:0")) == [
        order[i : i + 3] for i in range(0, 10, 3)
    ]


def test_the_loader_prepares_ahead_in_a_thread_and_raises_where_the_sample_is_asked_for():
    batches = [[sample(i), sample(i + 1)] for i in range(0, 12, 2)]
    done = []
    free = threading.Semaphore(0)

    def prepare(s):
        assert threading.current_thread() is not threading.main_thread()
        free.acquire()
        done.append(s.id)
        if s.id == "1":
            raise DataError("sample 1 is bad")
        return s.id * 2

    with PrefetchLoader(prepare, ahead=2) as loader:
        ahead = loader.iterate(iter(batches))
        assert next(ahead) == batches[0]
        free.release(6)  # three batches are in preparation, no more
        assert loader.get(batches[0][0]) == "00"
        with pytest.raises(DataError, match="sample 1 is bad"):
            loader.get(batches[0][1])
        assert [loader.get(s) for s in next(ahead)] == ["22", "33"]
        assert [loader.get(s) for s in batches[2]] == ["44", "55"] and done == list("012345")
        free.release(6)
        assert list(ahead) == batches[2:]


def test_without_ahead_nothing_is_prepared_before_it_is_asked_for():
    asked = []
    with PrefetchLoader(
        lambda s: (asked.append(s.id), threading.current_thread())[1], ahead=0
    ) as loader:
        batches = list(loader.iterate(iter([[sample(0)], [sample(1)]])))
        assert not asked and loader.get(batches[1][0]) is threading.main_thread() and asked == ["1"]


def test_frames_on_disk_are_the_decoded_ones_and_spare_the_decoder(bench, tmp_path, monkeypatch):
    pipeline, _ = bench
    clip = pipeline.samples("train")[0].clip.file
    times = [3.0, 4.0, 5.0]
    plain = read_frames(clip, times)
    first = ClipReader(store=FrameCache(tmp_path, 1 << 20)).read(clip, times)
    monkeypatch.setattr(
        "modulate.data.clip_reader.read_frames_at", lambda *a: pytest.fail("decoded again")
    )
    second = ClipReader(store=FrameCache(tmp_path, 1 << 20)).read(clip, times)
    for found in (first, second):
        assert (found.images == plain.images).all() and found.times == plain.times
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9] + b"x" * 9)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="damaged"):
        repaired = ClipReader(store=FrameCache(tmp_path, 1 << 20)).read(clip, times)
    assert (repaired.images == plain.images).all()


def trained(pipeline, root, **changes):
    """Train the bench's recipe with changed settings; return weights and logged losses."""
    training = pipeline.recipe.training.model_copy(update=changes)
    recipe = pipeline.recipe.model_copy(
        update={"training": training, "name": "-".join(map(str, changes.values()))}
    )
    changed = copy(pipeline)
    changed.recipe = recipe
    # An empty cache: samples of an earlier training must not hide changed signals.
    changed._preparer = copy(pipeline._preparer)
    changed._preparer._cache = LRUCache(1 << 30, lambda prepared: 1)
    run = Run.create(recipe, root)
    weights = train(run, changed).state_dict()
    return weights, [
        json.loads(line)["loss"] for line in (run.folder / "log.jsonl").read_text().splitlines()
    ]


def test_preparing_ahead_changes_no_bit_and_asking_together_only_rounding(
    bench, tmp_path, monkeypatch
):
    pipeline, _ = bench
    plain, losses = trained(pipeline, tmp_path, prefetch_batches=0, batch_by="any")
    ahead, same = trained(pipeline, tmp_path, prefetch_batches=2, batch_by="any")
    assert losses == same and all(torch.equal(plain[k], ahead[k]) for k in plain)
    together, near = trained(
        pipeline, tmp_path, prefetch_batches=1, batch_by="clip"
    )  # all four questions are on one clip, so the batches are the same
    assert len(losses) == 2 and near == pytest.approx(losses, abs=1e-4)
    fresh = pipeline.fresh_modulation().state_dict()
    moved = [k for k in plain if (plain[k] - fresh[k]).abs().max() > 1e-4]
    unshared = lambda name: Run.open(tmp_path / name).read_state().unshared_batches
    assert unshared("1-clip") == 0
    shifts = iter(range(100))
    read = pipeline.signals.read
    # Give every question a signal of its own.
    monkeypatch.setattr(
        pipeline.signals, "read", lambda *clip: read(*clip).moved(1e-3 * next(shifts))
    )
    trained(pipeline, tmp_path, prefetch_batches=0, batch_by="clip")
    assert unshared("0-clip") == 2
    assert "out.0.weight" in moved and all(
        (plain[k] - together[k]).abs().max() < 0.2 * (plain[k] - fresh[k]).abs().max()
        for k in moved
        if k.startswith("out")
    )


def test_settings_of_batches_without_effect_are_refused(bench):
    tree = bench[0].recipe.model_dump(mode="json")
    for training, more, text in (
        (
            {"batch_by": "length", "batch_size": 1},
            {},
            "`training.batch_by: length` has no effect with batch_size 1",
        ),
        (
            {"batch_by": "clip"},
            {"injection": {"layers": [1], "tokens": {"kind": "text"}}},
            "can write to visual tokens only",
        ),
    ):
        with pytest.raises(RecipeError, match=text):
            validate(tree | {"training": tree["training"] | training} | more, "a test")
