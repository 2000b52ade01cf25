"""Sweeps: what a file expands to, what is refused before anything starts, processes side by side,
and what comes of the runs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from modulate import cli
from modulate.cli.commands.sweep import slots
from modulate.config.recipe import dump, load_recipe, sweep_paths
from modulate.errors import MissingFileError, PluginError, RecipeError
from modulate.evaluation.predictions import Prediction
from modulate.runs.run import Run
from modulate.sweeps import results as swept
from modulate.sweeps.job_runner import Job, Listener, run_jobs, tail
from modulate.sweeps.sweep import Sweep, load_sweep, plan_runs
from modulate.utils.atomic_files import write_atomically
from tests.paths import SMALL

DUR, PE = (
    {"encoder": {"name": name, "params": {"dim": 32}}} for name in ("heatmap_dur", "coord_pe")
)
AXES = {
    "encoder": {"coord_rel": {}, "heatmap_dur": DUR, "coord_pe": PE},
    "sharing": {"per_layer": {}, "shared": {"modulator": {"params": {"sharing": "shared"}}}},
}
NO_LORA = {
    "lora": None,
    "training": {"stages": [{"name": "modulator", "train": ["modulator"], "epochs": 2}]},
}


def sweep(**changes):
    return Sweep.model_validate({"name": "trial", "base": SMALL, "axes": AXES} | changes)


def names(sweep):
    return [run.name for run in plan_runs(sweep)]


def by_name(sweep):
    return {run.name: run for run in plan_runs(sweep)}


# --- what a sweep expands to


def test_one_axis_at_a_time_has_the_base_once_and_every_other_option_once():
    runs = by_name(sweep())
    assert list(runs) == [
        "base-s0",
        "encoder-heatmap_dur-s0",
        "encoder-coord_pe-s0",
        "sharing-shared-s0",
    ]
    assert runs["base-s0"].role == "base" and runs["base-s0"].options == {
        "encoder": "coord_rel",
        "sharing": "per_layer",
    }
    assert runs["encoder-coord_pe-s0"].recipe == load_recipe(
        SMALL, ["name=encoder-coord_pe-s0", "encoder={name: coord_pe, params: {dim: 32}}"]
    )
    assert runs["base-s0"].recipe == load_recipe(SMALL, ["name=base-s0"])


def test_a_grid_has_every_combination_once_and_calls_the_bases_own_base():
    runs = by_name(sweep(mode="grid"))
    assert len(runs) == 6 and runs["base-s0"].options == {
        "encoder": "coord_rel",
        "sharing": "per_layer",
    }
    both = runs["encoder-coord_pe-sharing-shared-s0"].recipe
    assert both.encoder.name == "coord_pe" and both.modulator.params == {
        "width": 32,
        "latents": 4,
        "blocks": 1,
        "sharing": "shared",
    }
    assert names(sweep(mode="grid", axes={"encoder": {"heatmap_dur": DUR, "coord_pe": PE}})) == [
        "encoder-heatmap_dur-s0",
        "encoder-coord_pe-s0",
    ]


def test_every_run_is_repeated_with_every_seed():
    runs = by_name(sweep(seeds=[3, 5]))
    assert len(runs) == 8 and {
        run.recipe.seed for name, run in runs.items() if name.endswith("-s5")
    } == {5}


def test_what_comes_to_the_same_is_run_once_however_it_is_written():
    spelt_out = {
        "encoder": {"name": "coord_rel", "params": {"dim": 32, "temperature": 10000.0}}
    }  # the default, written out
    runs = by_name(
        sweep(
            axes={
                "encoder": {"same": spelt_out, "heatmap_dur": DUR},
                "other": {"heat": ["encoder.name=heatmap_dur"]},
            }
        )
    )
    assert list(runs) == ["base-s0", "encoder-heatmap_dur-s0"]
    assert runs["base-s0"].options == {"encoder": "same"} and runs[
        "encoder-heatmap_dur-s0"
    ].options == {"encoder": "heatmap_dur", "other": "heat"}
    assert names(sweep(mode="grid", axes={"encoder": {"heatmap_dur": DUR, "same": spelt_out}})) == [
        "base-s0",
        "encoder-heatmap_dur-s0",
    ]


def test_the_base_yields_to_common_that_to_others_and_all_to_the_option():
    chosen = sweep(
        common=[
            "training.batch_size=2",
            {"evaluation": {"conditions": ["none", "shifted"]}},
            "training.stages.0.epochs=3",
        ],
        others={"evaluation": {"conditions": ["none"]}, "training": {"weight_decay": 0.5}},
        axes={
            "encoder": {"coord_rel": {}, "heatmap_dur": DUR | {"training": {"weight_decay": 0.25}}}
        },
    )
    base, other = (run.recipe for run in plan_runs(chosen))
    assert (
        base.training.batch_size == other.training.batch_size == 2
        and base.training.stages[0].epochs == other.training.stages[0].epochs == 3
    )
    assert base.evaluation.conditions == ("none", "shifted") and other.evaluation.conditions == (
        "none",
    )
    assert base.training.weight_decay == 0.01 and other.training.weight_decay == 0.25


def test_overrides_of_the_command_line_change_the_sweep_or_every_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "mine",
                "base": "small.yaml",
                "axes": AXES,
                "common": {"training": {"batch_size": 2}},
            }
        )
    )
    (tmp_path / "small.yaml").write_text(Path(SMALL).read_text())  # a base may lie beside the sweep
    runs = plan_runs(load_sweep(str(file), ["seeds=[1,2]", "training.batch_size=4", "name=other"]))
    assert len(runs) == 8 and {run.recipe.training.batch_size for run in runs} == {4}
    assert load_sweep(str(file), ["name=other"]).name == "other"
    with pytest.raises(
        RecipeError,
        match=(
            r"Override 'axes\.encoder=3': the keys of a sweep are replaced whole, e\.g\."
            r" seeds=\[0,1\]; 'axes\.encoder' is below one\."
        ),
    ):
        load_sweep(str(file), ["axes.encoder=3"])


# --- companions


def test_lora_alone_is_trained_in_the_stages_that_train_it_and_stands_beside_all_that_differ_in_the_modulation_only():
    runs = by_name(
        sweep(
            companions=["lora_only"],
            axes=AXES
            | {
                "rank": {"two": {}, "four": {"lora": {"rank": 4}}},
                "lora": {"none": NO_LORA},
            },
        )
    )
    assert [name for name, run in runs.items() if run.role == "lora_only"] == [
        "lora_only-s0",
        "lora_only-rank-four-s0",
    ]
    alone = runs["lora_only-s0"]
    assert alone.beside == (
        "base-s0",
        "encoder-heatmap_dur-s0",
        "encoder-coord_pe-s0",
        "sharing-shared-s0",
    )  # and not the run without LoRA
    assert alone.recipe.training.condition == "none" and [
        (s.name, s.train, s.epochs) for s in alone.recipe.training.stages
    ] == [("joint", ("lora",), 1)]
    assert (
        alone.recipe.evaluation.conditions == ("host",)
        and runs["lora_only-rank-four-s0"].recipe.lora.rank == 4
    )


def test_the_gaze_free_run_is_shared_by_encoders_and_by_nothing_else():
    runs = by_name(sweep(companions=["gaze_free"]))
    free = {name: run for name, run in runs.items() if run.role == "gaze_free"}
    assert {name: run.beside for name, run in free.items()} == {
        "gaze_free-s0": ("base-s0", "encoder-heatmap_dur-s0", "encoder-coord_pe-s0"),
        "gaze_free-sharing-shared-s0": ("sharing-shared-s0",),
    }
    recipe = free["gaze_free-sharing-shared-s0"].recipe
    assert (
        recipe.training.condition == "blank"
        and recipe.modulator.params["sharing"] == "shared"
        and recipe.evaluation.conditions == ("none", "host")
    )
    assert (
        names(sweep(companions=["gaze_free"], beside="base"))[-1] == "gaze_free-s0"
        and len(names(sweep(companions=["gaze_free"], beside="base"))) == 5
    )


def test_companions_that_cannot_be_are_refused_beside_the_base():
    with pytest.raises(
        RecipeError,
        match=(
            r"Sweep trial: lora_only cannot stand beside base-s0: no stage of it trains LoRA\. Take"
            r" it out of `companions`\."
        ),
    ):
        plan_runs(sweep(companions=["lora_only"], common=NO_LORA))
    with pytest.raises(
        RecipeError,
        match=(
            r"gaze_free cannot stand beside base-s0: with injection\.empty `none` a blank signal"
            r" adds nothing"
        ),
    ):
        plan_runs(sweep(companions=["gaze_free"], common={"injection": {"empty": "none"}}))


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"axes": {"e": {"a": {"encoder": {"name": "cord_rel"}}}}},
            PluginError,
            (
                r"Sweep trial, run e-a-s0: Unknown signal_encoder 'cord_rel'\. Did you mean"
                r" 'coord_rel'"
            ),
        ),
        (
            {"axes": {"e": {"a": {"encoder": {"params": {"dims": 3}}}}}},
            RecipeError,
            (
                r"Sweep trial, run e-a-s0: encoder\.params of coord_rel is not valid:\n  dims:"
                r" unknown key"
            ),
        ),
        (
            {"axes": {"e": {"a": {"encodr": {}}}}},
            RecipeError,
            r"Sweep trial, axis e, option a: unknown recipe key 'encodr'\. Did you mean 'encoder'",
        ),
        (
            {"axes": {"e": {"a": ["trainig.batch_size=4"]}}},
            RecipeError,
            r"Sweep trial, axis e, option a: Override 'trainig\.batch_size=4': unknown recipe key",
        ),
        (
            {"axes": {"e": {"a": ["seed=4"]}}},
            RecipeError,
            (
                r"axis e, option a: 'seed' cannot be overridden\. A sweep names its runs itself;"
                r" set `seeds` and `base` instead\."
            ),
        ),
        (
            {"common": {"name": "x"}},
            RecipeError,
            r"Sweep trial, common: 'name' cannot be overridden",
        ),
        (
            {"axes": {"e": {"a": DUR, "b": DUR}}},
            RecipeError,
            r"Sweep trial, axis e: the options 'a' and 'b' come to the same run; take one out\.",
        ),
        (
            {"axes": {"e": {"a": {}, "b": {}}}},
            RecipeError,
            r"the options 'a' and 'b' come to the same run",
        ),
        (
            {"base": "gazeqwen_tny"},
            MissingFileError,
            r"No recipe 'gazeqwen_tny'.*Did you mean 'gazeqwen_tiny'",
        ),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_with_axis_and_option(changes, error, message):
    with pytest.raises(error, match=message):
        plan_runs(sweep(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, r"seeds: Tuple should have at least 1 item"),
        ({"seeds": [1, 1]}, r"seeds: no value may be listed twice"),
        ({"seed": [1]}, r"seed: unknown key\. Did you mean 'seeds'"),
        ({"axes": {}}, r"axes: Dictionary should have at least 1 item"),
        ({"axes": {"e": {}}}, r"axes: axis 'e' has no options"),
        ({"axes": {"a-b": {"c": {}}}}, r"axes: 'a-b' cannot be part of a run's name"),
        (
            {"companions": ["lora"]},
            r"companions\.0: Input should be 'lora_only' or 'gaze_free', got 'lora'",
        ),
        ({"mode": "all"}, r"mode: Input should be 'one_at_a_time' or 'grid'"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(changes, message, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({"name": "bad", "base": SMALL, "axes": AXES} | changes))
    with pytest.raises(RecipeError, match=message):
        load_sweep(str(file))


def test_recipes_and_sweeps_are_told_apart():
    with pytest.raises(
        RecipeError,
        match=(
            r"tabletop\.yaml is a sweep, not a recipe: `modulate sweep .*tabletop\.yaml`"
            r" runs it\."
        ),
    ):
        load_recipe(str(sweep_paths()["ablations/tabletop"]))
    with pytest.raises(RecipeError, match=r"axes: Field required"):
        load_sweep(SMALL)
    with pytest.raises(
        MissingFileError,
        match=(
            r"No sweep 'ablations/tabletp': neither a file nor a shipped sweep\. Did you mean"
            r" 'ablations/tabletop'"
        ),
    ):
        load_sweep("ablations/tabletp")


# --- those that ship


def test_sweeps_ship():
    assert {"ablations/gazeqwen", "ablations/tabletop"} <= sweep_paths().keys()


@pytest.mark.parametrize("name", sorted(sweep_paths()))
def test_a_shipped_sweep_expands_to_valid_runs_and_says_what_it_is(name):
    text = sweep_paths()[name].read_text()
    loaded = load_sweep(name)
    assert text.startswith("# ") and f"modulate sweep recipes/{name}.yaml" in text
    runs = plan_runs(loaded)
    assert runs[0].role == "base" and set(runs[0].options) == set(
        loaded.axes
    )  # every axis names what the base has
    assert {run.role for run in runs} == {"base", "variant", "lora_only", "gaze_free"}
    beside = {
        kind: {b for run in runs if run.role == kind for b in run.beside}
        for kind in ("lora_only", "gaze_free")
    }
    signal = {run.name for run in runs if run.role in ("base", "variant")}
    assert beside["gaze_free"] == signal and signal - beside["lora_only"] == {
        run.name for run in runs if run.role == "variant" and run.recipe.lora is None
    }


@pytest.mark.parametrize("name", sorted(sweep_paths()))
def test_the_ablations_have_the_papers_axes(name):
    axes = load_sweep(name).axes
    assert set(axes["encoder"]) >= {"coord_pe", "heatmap_tau", "heatmap_dur", "coord_rel"} and set(
        axes["backbone"]
    ) == {"vjepa2_1", "dinov2"}
    assert set(axes["sharing"]) == {"per_layer", "shared"} and set(axes["adaptation"]) == {
        "lora",
        "none",
    }


# --- jobs

SH = Path("/bin/sh")
needs_sh = pytest.mark.skipif(not SH.exists(), reason="needs a POSIX shell")


def job(folder, name, script):
    return Job(name, (str(SH), "-c", script), folder / f"{name}.log")


@needs_sh
def test_a_failed_job_does_not_stop_the_others_and_its_log_says_why(tmp_path):
    ended = []
    jobs = [
        job(tmp_path, "bad", "echo first; echo 'no such thing' >&2; exit 3"),
        job(tmp_path, "good", "echo $COLOR"),
        job(tmp_path, "last", "kill -9 $$"),
    ]
    outcomes = run_jobs(jobs, [{"COLOR": "red"}], Listener(ended=ended.append), poll=0.01)
    assert [(o.name, o.code, o.interrupted) for o in outcomes.ended] == [
        ("bad", 3, False),
        ("good", 0, False),
        ("last", -9, False),
    ]
    assert ended == outcomes.ended and not outcomes.waiting and outcomes.signum is None
    assert tail(tmp_path / "bad.log") == ["first", "no such thing"] and tail(
        tmp_path / "good.log"
    ) == ["red"]


@needs_sh
def test_as_many_run_at_once_as_there_are_slots_each_in_its_own(tmp_path):
    meet = (
        "echo $SLOT >> {0}/met; while [ $(wc -l < {0}/met) -lt 2 ]; do sleep 0.01; done; sort"
        " {0}/met > {0}/{1}"
    )
    jobs = [
        job(tmp_path, name, meet.format(tmp_path, name)) for name in ("a", "b")
    ]  # neither ends before both have started
    assert [o.code for o in run_jobs(jobs, [{"SLOT": "0"}, {"SLOT": "1"}], poll=0.01).ended] == [
        0,
        0,
    ]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "0\n1\n"


@needs_sh
def test_a_log_is_added_to_and_its_tail_is_of_the_last_attempt(tmp_path):
    run_jobs([job(tmp_path, "one", "echo early")], [{}], poll=0.01)
    run_jobs(
        [job(tmp_path, "one", "seq 100; echo '   ^^^'; echo; printf 'x%.0s' $(seq 500)")],
        [{}],
        poll=0.01,
    )
    assert (
        tail(tmp_path / "one.log", 3) == ["99", "100", "x" * 400 + "…"]
        and "early" in (tmp_path / "one.log").read_text()
    )
    assert tail(tmp_path / "none.log") == []


SCRIPT = """
import sys
from pathlib import Path
from modulate.sweeps.job_runner import Job, Listener, run_jobs
folder, grace, script = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
jobs = [Job(name, ("/bin/sh", "-c", script), folder / f"{name}.log") for name in ("a", "b")]
found = run_jobs(jobs, [{}], Listener(started=lambda name: print(name, flush=True)), grace=grace, poll=0.01)
print([(o.name, o.code, o.interrupted) for o in found.ended], found.waiting, found.signum)
"""


def interrupted(folder, script, signals, grace=30.0):
    """Start a job, wait until it says that it is ready, send signals; return what was printed and
    the seconds that it took to end.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(grace), script],
        stdout=subprocess.PIPE,
        text=True,
    )
    while "ready" not in "\n".join(tail(folder / "a.log")):
        time.sleep(0.01)
    start = time.monotonic()
    for signum in signals:
        process.send_signal(signum)
        time.sleep(0.3)
    out, _ = process.communicate(timeout=30)
    return out.splitlines(), time.monotonic() - start


@needs_sh
@pytest.mark.parametrize(("signum", "name"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_a_signal_is_passed_on_and_jobs_may_save_before_they_end(signum, name, tmp_path):
    out, _ = interrupted(
        tmp_path,
        f"trap 'echo saved; exit 7' {name}; echo ready; while :; do sleep 0.05; done",
        [signum],
    )
    assert out == ["a", f"[('a', 7, True)] ['b'] {int(signum)}"] and tail(tmp_path / "a.log") == [
        "ready",
        "saved",
    ]


@needs_sh
@pytest.mark.parametrize(
    ("signals", "grace"), [([signal.SIGINT, signal.SIGINT], 30.0), ([signal.SIGTERM], 0.2)]
)
def test_a_job_that_does_not_end_is_killed_with_all_that_it_started(signals, grace, tmp_path):
    out, seconds = interrupted(
        tmp_path,
        f"trap '' INT TERM; (trap '' INT TERM; sleep 60) & echo $! > {tmp_path}/child; echo ready;"
        " wait; sleep 60",
        signals,
        grace,
    )
    assert out[-1] == f"[('a', -9, True)] ['b'] {int(signals[0])}" and seconds < 10
    child = int((tmp_path / "child").read_text())
    for _ in range(200):
        if (
            not Path(f"/proc/{child}").exists()
            or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
        ):
            break
        time.sleep(0.01)
    else:
        pytest.fail(f"process {child} is still there")


def test_signals_do_again_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    run_jobs([], [{}])
    assert signal.getsignal(signal.SIGTERM) is before


# --- what came of it

TASKS = ("one", "two")


def finish(run, folder, right, failed=()):
    """Write what train and evaluate leave of a run, with ``right``: which of six samples it
    answers, two tasks, three videos.
    """
    own = Run.create(run.recipe, folder)
    condition = run.recipe.training.condition
    rows = [
        Prediction(
            f"q{i}",
            TASKS[i % 2],
            f"v{i // 2}",
            c,
            0,
            0 if i in right else 1,
            i in right,
            (0.0, 1.0),
            1,
        )
        for c in (condition, "host")
        for i in range(6)
    ]
    lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    write_atomically(own.folder / "predictions.jsonl", lambda path: path.write_text(lines))
    own.write_json("state.json", {"finished": True, "seconds": 1.5})
    accuracy = sum((i in right) for i in range(6)) / 6
    own.write_json(
        "metrics.json",
        {
            "condition": condition,
            "overall": accuracy,
            "interval": [0.0, 1.0],
            "n": 6,
            "signal": {"samples": 6},
            "failed": [{"id": i} for i in failed],
        },
    )


@pytest.fixture
def done(tmp_path):
    """A sweep of two seeds, all of it finished but one run."""
    chosen = sweep(
        seeds=[0, 1],
        axes={"encoder": {"coord_rel": {}, "heatmap_dur": DUR}},
        companions=["gaze_free"],
    )
    runs = plan_runs(chosen)
    answered = {
        "base-s0": {0, 1, 2},
        "base-s1": {0, 1},
        "encoder-heatmap_dur-s0": {0, 1, 2, 4},
        "gaze_free-s0": {0},
        "gaze_free-s1": set(),
    }
    for run in runs:
        if run.name in answered:
            finish(run, tmp_path / "trial", answered[run.name])
    return chosen, runs, tmp_path / "trial"


def test_finished_runs_are_known_and_others_are_begun_or_waiting(done):
    _, runs, folder = done
    assert {name for name, state in swept.run_states(runs, folder).items() if state == "finished"} == {
        r.name for r in runs
    } - {"encoder-heatmap_dur-s1"}
    unfinished = next(r for r in runs if r.name == "encoder-heatmap_dur-s1")
    Run.create(unfinished.recipe, folder)
    assert swept.run_states(runs, folder)["encoder-heatmap_dur-s1"] == "begun"
    finish(unfinished, folder, {0}, failed=["q1"])
    assert (
        swept.run_states(runs, folder)["encoder-heatmap_dur-s1"] == "begun"
    )  # more samples failed than the recipe allows: training said so, and ended with an error
    (folder / "base-s0" / "state.json").write_text(json.dumps({"finished": False}))
    assert swept.run_states(runs, folder)["base-s0"] == "begun"


def test_a_folder_with_runs_of_another_recipe_is_refused_before_anything_starts(done):
    _, _, folder = done
    changed = sweep(
        seeds=[0, 1],
        axes={"encoder": {"coord_rel": {}, "heatmap_dur": DUR}},
        common={"training": {"batch_size": 2}},
    )
    with pytest.raises(
        RecipeError,
        match=(
            r"base-s0 holds a run of another recipe \(differs in training\.batch_size\): the sweep"
            r" or its base was changed since\."
        ),
    ):
        swept.run_states(plan_runs(changed), folder)


def test_seeds_are_pooled_and_compared_with_the_base_over_the_seeds_that_both_have(done):
    chosen, runs, folder = done
    found = swept.collect_results(chosen, runs, folder, {})
    groups = found["groups"]
    assert found["axes"] == {"encoder": {"coord_rel": "base", "heatmap_dur": "encoder-heatmap_dur"}}
    # samples 0, 2, 4 are task one and 1, 3, 5 task two; the base answers 0 1 2 and 0 1
    assert groups["base"]["tasks"]["one"]["accuracy"] == pytest.approx(3 / 6) and groups["base"][
        "tasks"
    ]["two"]["accuracy"] == pytest.approx(2 / 6)
    assert (
        groups["base"]["overall"] == pytest.approx(5 / 12)
        and groups["base"]["n"] == 12
        and groups["base"]["seeds"] == [0, 1]
    )
    assert (
        groups["base"]["per_seed"] == {"0": pytest.approx(0.5), "1": pytest.approx(1 / 3)}
        and "minus_base" not in groups["base"]
    )
    other = groups["encoder-heatmap_dur"]
    assert other["seeds"] == other["minus_base"]["seeds"] == [0] and other["minus_base"][
        "difference"
    ] == pytest.approx((1 / 3 + 0) / 2)
    assert other["minus_base"]["tasks"]["one"]["difference"] == pytest.approx(1 / 3)
    assert groups["gaze_free"]["condition"] == "blank" and groups["gaze_free"]["beside"] == [
        "base",
        "encoder-heatmap_dur",
    ]
    assert groups["gaze_free"]["minus_base"]["difference"] == pytest.approx(1 / 12 - 5 / 12)
    low, high = groups["base"]["interval"]
    assert 0 <= low < 5 / 12 < high <= 1
    assert [run["state"] for run in found["runs"]] == [
        "finished",
        "finished",
        "finished",
        "waiting",
        "finished",
        "finished",
    ]


def test_a_run_that_failed_is_in_the_results_with_its_last_lines(done):
    chosen, runs, folder = done
    found = swept.write_results(
        chosen, runs, folder, {"encoder-heatmap_dur-s1": ["exit code 1", "no such thing"]}
    )
    (row,) = [run for run in found["runs"] if run["state"] == "failed"]
    assert row["name"] == "encoder-heatmap_dur-s1" and row["log"] == [
        "exit code 1",
        "no such thing",
    ]
    assert json.loads((folder / "sweep.json").read_text()) == found


def command(capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", *map(str, args)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "trial",
                "base": SMALL,
                "axes": {"encoder": {"coord_rel": {}, "heatmap_dur": DUR}},
                "seeds": [0, 1],
                "companions": ["gaze_free"],
            }
        )
    )
    return path


def test_a_dry_run_lists_every_run_and_starts_nothing(file, tmp_path, capsys):
    code, out, _ = command(capsys, file, "--dry-run", "--runs", tmp_path / "runs")
    assert (
        code == 0
        and "trial: 6 runs around" in out
        and "encoder-heatmap_dur-s1" in out
        and "beside 2 runs" in out
        and out.count("waiting") == 6
    )
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_is_finished_is_only_shown_again(done, file, tmp_path, capsys):
    _, runs, folder = done
    finish(
        next(r for r in runs if r.name == "encoder-heatmap_dur-s1"), folder, {0, 1, 3}
    )  # 7 of 12 against 5
    code, out, err = command(capsys, file, "--runs", tmp_path, "--devices", "cpu")
    assert (
        code == 0 and "6 of 6 runs are finished already." in err and not (folder / "jobs").exists()
    )
    assert "base" in out and "+16.7" in out and f"modulate report {folder}/*-s*/" in out
    assert (
        json.loads((folder / "sweep.json").read_text())["groups"]["encoder-heatmap_dur"]["n"] == 12
    )


def test_devices_that_make_no_sense_are_refused(file, tmp_path, capsys):
    for devices, message in (
        ("cpu,0", "names no devices; use auto, cpu, or CUDA devices separated by"),
        ("0,,1", "names no devices; use auto, cpu"),
    ):
        code, _, err = command(capsys, file, "--runs", tmp_path, "--devices", devices)
        assert code == 1 and err.startswith("Error: --devices") and message in err


def test_runs_are_dealt_to_the_devices_in_turn_and_share_the_cores(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    dealt = lambda *args: [
        (slot["CUDA_VISIBLE_DEVICES"], slot["OMP_NUM_THREADS"]) for slot in slots(*args)
    ]
    assert dealt("auto", None, 9) == [("4", "6"), ("7", "6")] and dealt("auto", 3, 9) == [
        ("4", "4"),
        ("7", "4"),
        ("4", "4"),
    ]
    assert (
        dealt("auto", None, 1) == [("4", "12")]
        and dealt("1", 1, 9) == [("1", "12")]
        and dealt("cpu", 2, 9) == [("", "6")] * 2
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert dealt("auto", None, 9) == [("0", "6"), ("1", "6")]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user's own word
    assert dealt("auto", 2, 9) == [("", "5")] * 2
    with pytest.raises(
        RecipeError, match=r"--devices '0': this machine has no CUDA device; use --devices cpu\."
    ):
        slots("0", None, 9)


@pytest.mark.slow
def test_a_sweep_runs_fails_where_it_must_and_continues(tmp_path):
    """The whole way, in processes: one run of two fails, the other is finished; repaired, only the
    failed one runs.
    """
    world = {
        "data": {"params": {"root": str(tmp_path / "world"), "max_per_split": 6}},
        "evaluation": {"conditions": ["host"]},
    }
    path = tmp_path / "real.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "real",
                "base": SMALL,
                "common": world,
                "axes": {"layers": {"three": {}, "nine": {"injection": {"layers": [9]}}}},
            }
        )
    )
    command = [
        sys.executable,
        "-m",
        "modulate",
        "sweep",
        str(path),
        "--jobs",
        "2",
        "--devices",
        "cpu",
        "--runs",
        str(tmp_path),
        "--cache",
        str(tmp_path / "cache"),
    ]

    def start():
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    first = start()
    assert first.returncode == 1 and "layers-nine-s0: failed (exit code 1)" in first.stderr, (
        first.stderr
    )
    assert (
        "Injection asks for decoder layer 9" in " ".join(first.stdout.split())
        and "base-s0: finished" in first.stderr
    )
    assert Run.open(tmp_path / "real" / "base-s0").recipe == load_recipe(
        str(tmp_path / "real" / "jobs" / "base-s0.yaml")
    )
    path.write_text(path.read_text().replace("- 9\n", "- 2\n"))
    assert (
        "layers-nine-s0 holds a run of another recipe (differs in injection.layers)"
        in start().stderr
    )
    shutil.rmtree(tmp_path / "real" / "layers-nine-s0")
    second = start()
    assert second.returncode == 0 and "1 of 2 runs are finished already." in second.stderr, (
        second.stderr
    )
    assert {
        run["state"] for run in json.loads((tmp_path / "real" / "sweep.json").read_text())["runs"]
    } == {"finished"}


def test_every_key_of_a_sweep_is_described():
    assert [name for name, info in Sweep.model_fields.items() if not info.description] == []
    assert set(Sweep.model_json_schema()["properties"]) == set(Sweep.model_fields)


def test_a_planned_run_is_a_recipe_file_that_reads_back(tmp_path):
    for run in plan_runs(sweep(companions=["lora_only", "gaze_free"])):
        (tmp_path / "run.yaml").write_text(dump(run.recipe))
        assert load_recipe(str(tmp_path / "run.yaml")) == run.recipe
