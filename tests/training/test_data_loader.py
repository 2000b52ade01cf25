"""Which samples there are to train on, and their preparation ahead of time."""

import threading
import time

import pytest
import torch

from modulate.config.recipe import load_recipe
from modulate.errors import DataError, SignalError
from modulate.inference.pipeline import Pipeline
from modulate.training.data_loader import FailedSamples, PrefetchLoader, training_samples
from modulate.training.train_step import TrainStep
from modulate.training.trainer import train
from modulate_tabletop.make import make_world
from tests.paths import SMALL
from tests.samples import one_clip_sample


def samples(n, first=0):
    return [one_clip_sample(f"s{i}") for i in range(first, first + n)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    make_world(root / "world", train=3, val=1, test=1, seed=0, workers=1)
    return root


def pipeline_for(root, empty):
    return Pipeline(
        load_recipe(SMALL, [f"data.params.root={root}/world", f"training.empty={empty}"]),
        root / "cache",
    )


def test_samples_with_an_empty_signal_are_left_out_and_counted_where_the_recipe_says_so(
    root, monkeypatch
):
    pipeline = pipeline_for(root, "skip")
    every = pipeline.samples("train")
    read = pipeline.signal

    def signal(sample, clip):
        if sample is every[1]:
            raise SignalError("broken")
        own = read(sample, clip)
        return own.blank() if sample is every[0] else own

    monkeypatch.setattr(pipeline, "signal", signal)
    monkeypatch.setattr(pipeline, "samples", lambda split: every)
    # What cannot be read fails when it is trained on.
    assert training_samples(pipeline) == every[1:]
    monkeypatch.setattr(pipeline, "recipe", pipeline_for(root, "train").recipe)
    assert training_samples(pipeline) == every


def test_without_anything_to_train_on_the_reason_is_said(root, monkeypatch):
    pipeline = pipeline_for(root, "skip")
    every = pipeline.samples("train")
    read = pipeline.signal
    monkeypatch.setattr(pipeline, "signal", lambda *clip: read(*clip).blank())
    with pytest.raises(
        DataError, match=f"the signal is empty in the clips of all {len(every)} training samples"
    ):
        training_samples(pipeline)
    monkeypatch.setattr(pipeline, "samples", lambda split: [])
    with pytest.raises(DataError, match="The training split has no samples"):
        training_samples(pipeline)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_as_they_are_and_so_many_are_in_preparation_ahead(ahead):
    batches = [samples(2, 2 * i) for i in range(5)]
    drawn = []
    done = []

    def source():
        for batch in batches:
            drawn.append(batch)
            yield batch

    with PrefetchLoader(
        lambda sample: (done.append(sample.id), sample.id.upper())[1], ahead
    ) as loader:
        for k, batch in enumerate(loader.iterate(source())):
            assert batch is batches[k] and len(drawn) == min(5, k + 1 + ahead)
            assert [loader.get(sample) for sample in batch] == [
                sample.id.upper() for sample in batch
            ]
    assert sorted(done) == sorted(f"s{i}" for i in range(10))


def test_each_is_prepared_once_however_often_it_is_to_come():
    done = []
    batch = samples(1)
    with PrefetchLoader(lambda sample: done.append(threading.current_thread().name), 3) as loader:
        given = loader.iterate(iter([batch, batch, batch]))
        next(given)
        assert (
            loader.get(batch[0]) is None
            and len(done) == 1
            and done[0].startswith("modulate-loader")
        )
        loader.get(batch[0])
    assert done[1:] == [threading.current_thread().name]


def test_what_does_not_fit_beside_a_forward_is_tried_again_alone_and_other_errors_are_raised():
    tries = []

    def prepare(sample):
        tries.append(sample.id)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        if sample.id == "s1":
            raise RuntimeError("shapes")
        return "ready"

    with PrefetchLoader(prepare, 1) as loader:
        first, second = samples(2)
        next(loader.iterate(iter([[first], [second]])))
        assert loader.get(first) == "ready"
        with pytest.raises(RuntimeError, match="shapes"):
            loader.get(second)
    assert tries.count("s0") == 2 and tries.count("s1") == 1


def test_leaving_gives_up_what_is_not_begun():
    begun = []
    with PrefetchLoader(lambda sample: (begun.append(sample.id), time.sleep(0.2)), 5) as loader:
        next(loader.iterate(iter([samples(1, i) for i in range(6)])))
    assert 1 <= len(begun) < 6


def test_one_failed_sample_too_many_ends_the_training_naming_it():
    errors = {"old": "VideoError: cut off"}
    failures = FailedSamples(errors, total=10, max_share=0.2)
    first, second = samples(2)
    failures.add(first, DataError("broken"))
    failures.add(first, DataError("broken again"))
    assert errors == {"old": "VideoError: cut off", "s0": "broken again"}
    with pytest.raises(DataError, match=r"3 of 10 training samples failed, .* gone"):
        failures.add(second, DataError("gone"))


def test_failures_of_a_step_are_those_of_all_processes_in_rank_order():
    errors = {"old": "1"}
    failures = FailedSamples(errors, total=10, max_share=0.5)
    (sample,) = samples(1)
    failures.add(sample, DataError("2"))
    failures.begin_step()
    (later,) = samples(1, first=5)
    failures.add(later, DataError("own"))
    assert failures.of_this_step() == {"s5": "own"}
    failures.merge_step([{"s4": "other"}, failures.of_this_step()])
    assert list(errors.items()) == [("old", "1"), ("s0", "2"), ("s4", "other"), ("s5", "own")]
    failures.begin_step()
    with pytest.raises(DataError, match=r"6 of 10 training samples failed, .* last"):
        failures.merge_step([{"a": "first"}, {"b": "last"}])


@pytest.mark.parametrize("condition", ["signal", "blank"])
def test_samples_with_an_empty_signal_are_left_out_when_the_recipe_says_so(
    begin, monkeypatch, condition
):
    run, pipeline = begin(
        "training.empty=skip", f"training.condition={condition}", "training.validate_every=null"
    )
    signal = pipeline.signal
    first, *others = pipeline.samples("train")
    monkeypatch.setattr(
        pipeline,
        "signal",
        lambda sample, clip: (
            signal(sample, clip).blank() if sample.id == first.id else signal(sample, clip)
        ),
    )
    trained = set()
    accumulate = TrainStep.accumulate
    monkeypatch.setattr(
        TrainStep,
        "accumulate",
        lambda self, batches: (
            trained.update(s.id for b in batches for s in b),
            accumulate(self, batches),
        )[1],
    )
    train(run, pipeline)
    assert trained == {s.id for s in others} and run.read_json("state.json")["left_out"] == 1
    monkeypatch.setattr(pipeline, "signal", lambda *clip: signal(*clip).blank())
    with pytest.raises(
        DataError,
        match=(
            r"training\.empty is skip, and the signal is empty in the clips of all 4 training"
            r" samples"
        ),
    ):
        train(run, pipeline, resume=False)
