"""A training that is stopped, killed, short of memory or disk, or given nonsense: it goes on
exactly, or says why not.
"""

import copy
import errno
import gc
import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from accelerate.utils import AutocastKwargs

from modulate.config.recipe import load_recipe
from modulate.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Interrupted,
    LockedError,
    StorageError,
)
from modulate.evaluation.evaluate import evaluate
from modulate.inference.pipeline import Pipeline
from modulate.modulation.module import Modulation
from modulate.runs.run import Run
from modulate.training import trainer as training
from modulate.training.optimizer import accelerator_for, one_cycle, schedule_for, select
from modulate.training.train_step import TrainStep
from modulate.training.trainer import train
from modulate.utils.interrupts import StopRequest
from tests.training.test_optimizer import as_torch

TINY = [
    "data.params.train=2",
    "data.params.val=1",
    "data.params.test=2",
    "data.params.max_per_split=4",
    "sampling.max_frames=2",
    "training.batch_size=2",
    "training.stages.0.epochs=2",
    "training.stages.1.epochs=1",
    "training.checkpoint_every=1",
    "evaluation.conditions=[blank,host]",
    "evaluation.bootstrap=100",
]
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def quick():
    """accelerate collects garbage before every stage, which takes long with all that tests have
    imported.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def whole(world):
    """(host, caches and all; a run that nothing happened to; its metrics)."""
    recipe = recipe_for(world)
    pipeline = Pipeline(recipe, world / "cache")
    pipeline.make_data()
    run = Run.create(recipe, world / "runs")
    return pipeline, run, evaluate(run, pipeline, train(run, pipeline))


def recipe_for(world, *overrides):
    return load_recipe("gazeqwen_tiny", [f"data.params.root={world}/tabletop", *TINY, *overrides])


@pytest.fixture
def begin(whole, world, tmp_path):
    """Make a run of the tiny recipe with changes, and a pipeline for it that shares host and caches
    with all others.
    """

    def make(*overrides):
        twin = copy.copy(whole[0])
        twin.recipe = recipe_for(world, *overrides)
        return Run.create(twin.recipe, tmp_path / "runs"), twin

    return make


def files_of(run, *but):
    """What a run leaves, but for what tells of time."""
    found = {
        p.relative_to(run.folder).as_posix(): p.read_bytes()
        for p in run.folder.rglob("*")
        if p.is_file()
    }
    account = {
        k: v
        for k, v in json.loads(found.pop("state.json")).items()
        if k not in ("seconds", "resumed")
    }
    kept = {
        k: v
        for k, v in found.items()
        if not k.startswith("checkpoint/") and k not in ("environment.json", ".lock", *but)
    }
    return kept | {"state.json": account}


def stopping(stop, *steps):
    """A listener that asks for a stop after each of the training's steps, or after those of these
    numbers in their stage.
    """

    def listen(progress):
        if not steps or progress.step in steps:
            stop.request(15)

    return listen


# --- going on


@pytest.mark.parametrize(
    "overrides", [(), ("training.schedule=one_cycle",)], ids=["cosine", "one_cycle"]
)
def test_a_training_stopped_after_every_step_ends_as_if_never_stopped(
    whole, begin, tmp_path, overrides
):
    expected = whole[1]
    if overrides:
        expected, pipeline = begin(*overrides)
        evaluate(expected, pipeline, train(expected, pipeline))
        shutil.move(expected.folder, tmp_path / "expected")
        expected = replace(expected, folder=tmp_path / "expected")
    run, pipeline = begin(*overrides)
    said = []
    for number in range(STEPS):
        stop = StopRequest()
        with pytest.raises(Interrupted, match="Stopped by SIGTERM; everything up to here is saved"):
            train(run, pipeline, stopping(stop), stop=stop, notice=said.append)
        assert (
            not (run.folder / "state.json").exists()
            and len((run.folder / "log.jsonl").read_text().splitlines()) >= number + 1
        )
    modulation = train(
        run, pipeline, lambda progress: pytest.fail("a step too many"), notice=said.append
    )
    assert (
        [int(re.search(r"step (\d+)", text)[1]) for text in said]
        == [1, 2, 3, 4, 5, 6]
        == run.read_json("state.json")["resumed"]
    )
    evaluate(run, pipeline, modulation)
    assert files_of(run) == files_of(expected)


def test_a_stop_during_validation_keeps_the_step_and_repeats_the_validation(
    whole, begin, monkeypatch
):
    run, pipeline = begin()
    stop = StopRequest()
    score = training.score
    monkeypatch.setattr(training, "score", lambda *args: (stop.request(2), score(*args))[1])
    with pytest.raises(Interrupted, match="SIGINT"):
        train(run, pipeline, stop=stop)
    assert "validation" not in (run.folder / "log.jsonl").read_text()
    monkeypatch.setattr(training, "score", score)
    evaluate(run, pipeline, train(run, pipeline))
    assert files_of(run) == files_of(whole[1])


def test_checkpoints_are_written_when_the_recipe_says_and_after_validations_and_stages(
    begin, monkeypatch
):
    run, pipeline = begin(
        "training.checkpoint_every=3", "training.stages.0.epochs=4", "training.validate_every=2"
    )
    saved = []
    save = training.Trainer._save
    monkeypatch.setattr(
        training.Trainer,
        "_save",
        lambda self: (saved.append((self.state.stage, self.state.step)), save(self))[1],
    )
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 7), stop=stop)
    assert saved == [(0, 3), (0, 4), (0, 6), (0, 7)]  # an epoch has two steps
    assert {p.suffix for p in (run.folder / "checkpoint").iterdir()} == {".json", ".safetensors"}
    train(run, pipeline)
    assert saved[4:] == [(0, 8), (1, 0), (1, 2), (2, 0)]
    assert (
        len(list((run.folder / "checkpoint").iterdir())) == 2
    )  # of a finished run only the weights it ended with


def test_a_damaged_checkpoint_costs_the_way_from_the_one_before(whole, begin):
    run, pipeline = begin()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 3), stop=stop)
    last = max((run.folder / "checkpoint").glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    heard = []
    with pytest.warns(
        UserWarning,
        match=(
            rf"the checksum of {last.name} does not match; it is removed, and the one before it is"
            r" used"
        ),
    ):
        evaluate(run, pipeline, train(run, pipeline, lambda p: heard.append((p.stage, p.step))))
    assert heard[0] == ("modulator", 3) and files_of(run) == files_of(whole[1])


def test_altered_weights_of_a_finished_run_are_made_again(whole, begin):
    run, pipeline = begin()
    train(run, pipeline)
    weights = run.weights / "model.safetensors"
    whole_bytes = weights.read_bytes()
    weights.write_bytes(whole_bytes[:-1] + bytes([whole_bytes[-1] ^ 1]))
    with pytest.raises(
        CheckpointError,
        match=(
            r"model\.safetensors was changed since training wrote it\. `modulate train` with the"
            r" run's recipe makes it again"
        ),
    ):
        run.check_weights()
    with pytest.warns(
        UserWarning,
        match=(
            r"model\.safetensors was changed since training wrote it; the modulation is made again"
            r" from the last checkpoint"
        ),
    ):
        train(run, pipeline, lambda progress: pytest.fail("trained again"))
    run.check_weights()
    assert weights.read_bytes() == whole_bytes


def test_other_data_or_another_host_is_refused_until_told_to_start_anew(begin, monkeypatch):
    run, pipeline = begin()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 2), stop=stop)
    made_of = pipeline.fingerprints()
    monkeypatch.setattr(pipeline, "fingerprints", lambda: {**made_of, "data": "other"})
    with pytest.raises(
        DataError,
        match=(
            r"was begun with other data than there is now\. Bring that back, give this run another"
            r" name with name=…, or start it anew with --no-resume"
        ),
    ):
        train(run, pipeline)
    heard = []
    train(run, pipeline, lambda p: heard.append(p.step), resume=False)
    assert heard == [1, 2, 3, 4, 1, 2] and run.read_json("state.json")["made_of"]["data"] == "other"
    monkeypatch.undo()
    with pytest.raises(
        DataError, match="was begun with other data"
    ):  # a finished one is not overwritten either
        train(run, pipeline)


def test_starting_anew_leaves_nothing_of_the_old_run(whole, begin):
    run, pipeline = begin()
    evaluate(run, pipeline, train(run, pipeline))
    (run.folder / "metrics-val.json").write_text("{}")
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 1), stop=stop, resume=False)
    assert sorted(p.name for p in run.folder.iterdir()) == [
        ".lock",
        "checkpoint",
        "environment.json",
        "log.jsonl",
        "recipe.yaml",
    ]
    evaluate(run, pipeline, train(run, pipeline))
    assert files_of(run) == files_of(whole[1])


def test_lines_that_the_log_has_lost_are_said(begin):
    run, pipeline = begin()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 2), stop=stop)
    (run.folder / "log.jsonl").write_text("")
    with pytest.warns(
        UserWarning, match=r"log\.jsonl lacks 2 lines that were written before the checkpoint"
    ):
        train(run, pipeline)


def test_checkpoints_that_do_not_fit_say_so(begin):
    run, pipeline = begin()
    pipeline.fingerprints = lambda: {}
    run.checkpoints.save({"made_of": {}, "state": {"foreign": 1}}, {})
    with pytest.raises(
        CheckpointError,
        match=(
            r"were written by another version of modulate or of a plugin \(.*foreign.*\); start it"
            r" anew with --no-resume"
        ),
    ):
        train(run, pipeline)


def test_a_run_that_another_process_holds_is_refused(begin):
    run, pipeline = begin()
    code = (
        "import sys; from modulate.utils.file_lock import folder_lock\nwith"
        " folder_lock(__import__('pathlib').Path(sys.argv[1])): print('held', flush=True);"
        " sys.stdin.read()"
    )
    with subprocess.Popen(
        [os.sys.executable, "-c", code, run.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        holder.stdout.readline()
        for work in (
            lambda: train(run, pipeline),
            lambda: evaluate(run, pipeline, pipeline.fresh_modulation()),
            lambda: Run.create(run.recipe, run.folder.parent),
        ):
            with pytest.raises(LockedError, match=f"is in use by process {holder.pid} on host"):
                work()
        holder.kill()


# --- evaluation


def test_a_stopped_evaluation_goes_on_with_the_conditions_that_are_left(whole, begin, monkeypatch):
    run, pipeline = begin()
    modulation = train(run, pipeline)
    stop = StopRequest()
    asked = []

    def count(condition, n, total):
        asked.append((condition, n))
        if condition == "blank":
            stop.request(15)

    with pytest.raises(Interrupted):
        evaluate(run, pipeline, modulation, advance=count, stop=stop)
    assert sorted(p.name for p in (run.folder / "evaluation").iterdir()) == ["test-signal.jsonl"]
    done = asked.copy()
    from modulate.evaluation import evaluate as module

    score = module.score
    monkeypatch.setattr(
        module, "score", lambda *args: (asked.append(("scored", args[3])), score(*args))[1]
    )
    evaluate(run, pipeline, modulation, advance=lambda *args: None)
    scored = [name for what, name in asked[len(done) :] if what == "scored"]
    assert "signal" not in scored and scored[-1] == "host"
    assert files_of(run) == files_of(whole[1]) and not (run.folder / "evaluation").exists()


def test_answers_of_other_weights_or_damaged_ones_are_not_used(whole, begin):
    run, pipeline = begin()
    modulation = train(run, pipeline)
    stop = StopRequest()
    ask_at = lambda name: (
        lambda condition, n, total: stop.request(15) if condition == name else None
    )
    other = pipeline.fresh_modulation()
    with pytest.raises(Interrupted):
        evaluate(run, pipeline, other, advance=ask_at("host"), stop=stop)
    stop = StopRequest()
    with pytest.raises(Interrupted):
        evaluate(run, pipeline, modulation, advance=ask_at("host"), stop=stop)
    path = run.folder / "evaluation" / "test-blank.jsonl"
    path.write_text(path.read_text().replace('"prediction": ', '"prediction": 1'))
    with pytest.warns(
        UserWarning,
        match=(
            r"test-blank\.jsonl are damaged \(their checksum does not match\); the condition"
            r" 'blank' is evaluated again"
        ),
    ):
        evaluate(run, pipeline, modulation)
    assert files_of(run) == files_of(whole[1])


# --- memory


@pytest.fixture
def small_memory(whole):
    """The host's last layer runs out of memory above so many rows, or on some inputs."""
    handles = []

    def limit(rows, layer="lm_head"):
        def check(module, args):
            if args[0].shape[0] > rows:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
                    " of …"
                )

        handles.append(whole[0].model.get_submodule(layer).register_forward_pre_hook(check))

    yield limit
    for handle in handles:
        handle.remove()


def gradients(pipeline, batches):
    modulation = pipeline.fresh_modulation()
    torch.manual_seed(0)
    for projection in modulation.out:
        torch.nn.init.normal_(projection.weight, std=0.1)
    select(modulation, pipeline.recipe.training.stages[1])
    host = training.ModulatedHost(modulation.train(), pipeline.model)
    failed = {}
    accelerator = accelerator_for(
        pipeline.recipe, pipeline.device, pipeline.extractor.feature_cache.folder
    )
    try:
        tally = TrainStep(
            pipeline, accelerator, host, training.random.Random(0), failed, 4
        ).accumulate(batches)
    finally:
        host.attachment.detach()
    return {name: p.grad for name, p in modulation.named_parameters()}, tally, failed


def test_what_does_not_fit_is_done_in_halves_with_the_same_gradients(begin, small_memory):
    _, pipeline = begin()
    samples = pipeline.samples("train")
    assert len(samples) == 4
    batches = [samples[:3], samples[3:]]
    expected, plain, _ = gradients(pipeline, batches)
    small_memory(1)
    with pytest.warns(
        UserWarning,
        match=(
            r"A forward of 3 samples does not fit into memory \(CUDA out of memory\); it is done in"
            r" parts of 1, with the same gradients"
        ),
    ):
        found, tally, failed = gradients(pipeline, batches)
    assert (
        tally.split
        and not plain.split
        and tally.ids == plain.ids
        and not failed
        and tally.loss == pytest.approx(plain.loss)
    )
    assert expected.keys() == found.keys() and any(
        g is not None and g.abs().max() > 1e-4 for g in found.values()
    )
    assert {
        n: float(g.norm())
        for n, g in expected.items()
        if (g - found[n]).norm() > 1e-4 * g.norm() + 1e-7
    } == {}


def test_a_backward_that_runs_out_of_memory_leaves_nothing_behind(begin, whole):
    _, pipeline = begin()
    samples = pipeline.samples("train")
    expected, _, _ = gradients(pipeline, [samples])
    seen = []

    def overflow(module, grad_output):
        seen.append(grad_output[0].shape[0])
        if len(seen) == 1:  # the later layers have their gradients by now
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to …")

    handle = pipeline.host.layers[2].register_full_backward_pre_hook(overflow)
    try:
        with pytest.warns(UserWarning, match="in parts of 2"):
            found, _, _ = gradients(pipeline, [samples])
    finally:
        handle.remove()
    assert seen == [4, 2, 2]
    assert {
        n: float(g.norm())
        for n, g in expected.items()
        if (g - found[n]).norm() > 1e-4 * g.norm() + 1e-7
    } == {}


def test_a_sample_that_does_not_fit_alone_is_recorded_and_the_others_go_on(begin, small_memory):
    run, pipeline = begin("evaluation.max_failed_share=0.25", "training.validate_every=null")
    big = pipeline.samples("train")[0]
    length = pipeline.prepare(big, training=True).inputs["input_ids"].shape[1]

    def check(module, args, kwargs):
        if (kwargs["attention_mask"].sum(1) == length).any() and (
            kwargs["input_ids"][:, -length:]
            == pipeline.prepare(big, training=True).inputs["input_ids"]
        ).all(1).any():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to …")

    handle = pipeline.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match="A forward of 2 samples does not fit"):
            train(run, pipeline)
        state = run.read_json("state.json")
        assert (
            list(state["failed"]) == [big.id]
            and state["split_steps"] >= 3
            and state["steps"] == STEPS
        )
        assert (
            state["failed"][big.id]
            == f"Sample {big.id}: does not fit into memory, even alone (CUDA out of memory). Lower"
            " sampling.train_max_frames."
        )
        strict, pipeline = begin("name=strict", "training.validate_every=null")
        with (
            pytest.raises(
                DataError,
                match=(
                    r"1 of 4 training samples failed, more than max_failed_share allows\. Sample"
                    r" .*even alone"
                ),
            ),
            pytest.warns(UserWarning, match="parts of 1"),
        ):
            train(strict, pipeline)
    finally:
        handle.remove()


def test_an_evaluation_short_of_memory_answers_in_halves_and_counts_what_fails(
    whole, begin, small_memory
):
    run, pipeline = begin()
    modulation = Modulation.from_pretrained(whole[1].weights)
    small_memory(1)
    with pytest.warns(UserWarning) as said:
        metrics = evaluate(run, pipeline, modulation)
    assert str(said[0].message).startswith(
        "A forward of 4 samples does not fit into memory (CUDA out of memory); it is done in"
        " halves."
    )
    assert not metrics["failed"] and metrics["overall"] == whole[2]["overall"]
    small_memory(0)
    with (
        pytest.raises(DataError, match=r"4 of 4 samples failed.*even alone"),
        pytest.warns(UserWarning),
    ):
        evaluate(run, pipeline, modulation)


# --- nonsense


def spoil(pipeline, bad):
    """Let the host's logits be NaN in the training forwards whose number, from 1, is ``bad``."""
    count = iter(range(1, 1000))

    def hook(module, args, output):
        return output * math.nan if torch.is_grad_enabled() and bad(next(count)) else output

    return pipeline.model.get_submodule("lm_head").register_forward_hook(hook)


def test_a_step_that_is_not_finite_is_skipped_and_counted(begin):
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=2")
    handle = spoil(pipeline, lambda n: n in (1, 3))
    heard = []
    try:
        modulation = train(run, pipeline, heard.append)
    finally:
        handle.remove()
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [r["loss"] is None for r in log] == [True, False, True, False, False, False] and [
        p.skipped for p in heard[:2]
    ] == ["not_finite", ""]
    assert [r.get("skipped") for r in log] == ["not_finite", None, "not_finite", None, None, None]
    assert run.read_json("state.json")["skipped"] == {"not_finite": 2}
    assert all(v.isfinite().all() for v in modulation.state_dict().values())


def test_many_in_a_row_stop_the_run_with_a_diagnosis(begin):
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=3")
    handle = spoil(pipeline, lambda n: n > 1)
    text = (
        r"Training diverged: 3 optimizer steps in a row had a loss or gradients that are not"
        r" finite\. The last is step 4 of stage 'modulator': loss nan on 2 samples, the "
        r"first \S+, \S+\. Gradients are not finite in \d+ parameters, among them .+\. Lower the"
        r" learning rate 0\.001, look at these samples, or let training\.max_skipped"
    )
    try:
        with pytest.raises(DivergedError, match=text):
            train(run, pipeline)
        with pytest.raises(
            DivergedError, match="3 optimizer steps in a row"
        ):  # the count goes on where it was
            train(run, pipeline)
    finally:
        handle.remove()


def test_gradients_that_are_not_finite_behind_a_finite_loss_are_named(begin, whole):
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=1")
    layer = pipeline.host.layers[1]  # its own residual is behind it, that of layer 0 before it
    handle = layer.register_full_backward_hook(
        lambda module, grads, out: tuple(None if g is None else g * math.inf for g in grads)
    )
    try:
        with pytest.raises(
            DivergedError,
            match=(
                r"loss [\d.]+ on 2 samples, .*Gradients are not finite in \d+ parameters, among"
                r" them (?!.*out\.1)"
            ),
        ):
            train(run, pipeline)
    finally:
        handle.remove()


def scaling(monkeypatch, **settings):
    """Let trainings scale their loss as fp16 does, in fp32 on the CPU."""

    def make(recipe, device, folder):
        accelerator = accelerator_for(recipe, device, folder)
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", **settings)
        accelerator.autocast_handler = AutocastKwargs(enabled=False)
        monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
        return accelerator

    monkeypatch.setattr(training, "accelerator_for", make)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_whose_samples_all_failed_is_counted_and_trips_nothing(begin, monkeypatch, scaled):
    if scaled:
        scaling(monkeypatch)
    run, pipeline = begin("training.validate_every=null", "evaluation.max_failed_share=0.5")
    order = list(pipeline.samples("train"))
    training.random.Random(f"{pipeline.recipe.seed}:modulator:0").shuffle(order)
    bad = {s.id for s in order[:2]}
    prepare = pipeline.prepare

    def broken(sample, view="own", training=False):
        if sample.id in bad:
            raise DataError(f"Sample {sample.id}: broken.")
        return prepare(sample, view, training)

    monkeypatch.setattr(pipeline, "prepare", broken)
    before = pipeline.fresh_modulation().state_dict()
    stop = StopRequest()
    with pytest.raises(Interrupted):
        train(run, pipeline, stopping(stop, 1), stop=stop)
    found = run.checkpoints.latest()
    assert all(
        torch.equal(found.tensors[f"model/{k}"], v) for k, v in before.items()
    ) and found.notes["state"]["skipped"] == {"no_samples": 1}
    train(run, pipeline)
    state = run.read_json("state.json")
    assert state["skipped"]["no_samples"] >= 1 and set(state["failed"]) == bad


def test_fp16_s_search_for_its_scale_is_no_divergence_and_goes_on_after_a_kill(begin, monkeypatch):
    scaling(monkeypatch, init_scale=16.0)
    run, pipeline = begin("training.validate_every=null", "training.max_skipped_steps=1")
    too_large = pipeline.host.layers[1].register_full_backward_hook(
        lambda module, grads, out: tuple(None if g is None else g * math.inf for g in grads)
    )
    try:
        for scale in (8.0, 4.0):
            stop = StopRequest()
            with pytest.raises(Interrupted):
                train(run, pipeline, stopping(stop), stop=stop)
            assert run.checkpoints.latest().notes["scaler"]["scale"] == scale
        with pytest.raises(
            DivergedError, match="1 optimizer steps in a row"
        ):  # at scale 1 it is the gradients themselves
            train(run, pipeline)
    finally:
        too_large.remove()
    train(run, pipeline)
    assert run.read_json("state.json")["skipped"] == {
        "scaled": 4
    }  # the step that stopped it is taken anew


# --- schedules and empty signals


def scheduled(steps, warmup):
    recipe = load_recipe(
        "gazeqwen_tiny", ["training.schedule=one_cycle", f"training.warmup_steps={warmup}"]
    )
    return schedule_for(recipe.training, steps)


@pytest.mark.parametrize("steps", [1, 3, 4, 10, 37, 200])
@pytest.mark.parametrize("warmup", [0, 20])
def test_one_cycle_is_torch_s_with_its_peak_where_the_released_code_puts_it(steps, warmup):
    rising = min(warmup / steps, 0.5)
    as_torch(scheduled(steps, warmup), steps, pct_start=rising)


@pytest.mark.parametrize(("steps", "warmup"), [(2, 20), (10, 1)])
def test_one_cycle_may_begin_with_its_peak(steps, warmup):
    """Where torch's own divides by 0."""
    assert scheduled(steps, warmup)(0) == (1.0, 0.85)


def test_the_optimizer_is_given_the_schedule_s_rate_and_momentum(begin, monkeypatch):
    run, pipeline = begin("training.schedule=one_cycle", "training.validate_every=null")
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *args: (
            seen.append([(g["lr"], g["betas"]) for g in self.param_groups]),
            step(self, *args),
        )[1],
    )
    train(run, pipeline)
    expected = [
        (stage.lr * one_cycle(n, 0.5)(k)[0], (one_cycle(n, 0.5)(k)[1], 0.999))
        for stage, n in zip(run.recipe.training.stages, (4, 2))
        for k in range(n)
    ]
    assert [groups[0] for groups in seen] == expected and all(
        len(set(groups)) == 1 for groups in seen
    )


@pytest.mark.parametrize("condition", ["signal", "blank"])
def test_samples_with_an_empty_signal_are_left_out_when_the_recipe_says_so(
    begin, monkeypatch, condition
):
    run, pipeline = begin(
        "training.empty=skip", f"training.condition={condition}", "training.validate_every=null"
    )
    signal, (first, *others) = pipeline.signal, pipeline.samples("train")
    monkeypatch.setattr(
        pipeline,
        "signal",
        lambda sample: signal(sample).blank() if sample.id == first.id else signal(sample),
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
    monkeypatch.setattr(pipeline, "signal", lambda sample: signal(sample).blank())
    with pytest.raises(
        DataError,
        match=(
            r"training\.empty is skip, and the signal is empty in the clips of all 4 training"
            r" samples"
        ),
    ):
        train(run, pipeline, resume=False)


# --- a full disk


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_state(whole, begin, tmp_path):
    small = tmp_path / "runs"
    small.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    try:
        run, pipeline = begin()
        stop = StopRequest()
        with pytest.raises(Interrupted):
            train(run, pipeline, stopping(stop, 2), stop=stop)
        usage = shutil.disk_usage(small)
        ballast = small / "ballast"
        ballast.write_bytes(bytes(usage.free - 1_000_000))
        before = {p.name: p.read_bytes() for p in (run.folder / "checkpoint").iterdir()}
        with pytest.raises(
            StorageError,
            match=(
                r"checkpoint/\d+\.\w+ cannot be written: .*No space left on device.*Free some space"
            ),
        ):
            train(run, pipeline)
        assert {p.name: p.read_bytes() for p in (run.folder / "checkpoint").iterdir()} == before
        ballast.unlink()
        evaluate(run, pipeline, train(run, pipeline))
        assert files_of(run) == files_of(whole[1])
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_log_that_cannot_be_written_stops_the_run(begin, monkeypatch):
    run, pipeline = begin()
    (run.folder / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        StorageError, match=rf"log\.jsonl cannot be written: \[Errno {errno.ENOSPC}\]"
    ):
        train(run, pipeline)
