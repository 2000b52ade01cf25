"""A run's folder from a stranger: whatever stands in its files, what reads them ends with an error
that names the file, or works.
"""

import ast
import copy
import json
import math
import socket
import warnings
from dataclasses import asdict

import pytest
import yaml
from typer.testing import CliRunner

from modulate import cli
from modulate.cli import build, tables
from modulate.config.local_paths import local_paths
from modulate.config.recipe import dump, load_recipe
from modulate.errors import DataError, ModulateError, PluginError
from modulate.evaluation.finished_conditions import FinishedConditions
from modulate.evaluation.metrics import compare, summarize
from modulate.evaluation.predictions import (
    Prediction,
    apply_failed_rule,
    as_lines,
    read_predictions,
)
from modulate.report.runs import read_run
from modulate.runs.records import read_environment, read_log, read_metrics, read_state
from modulate.runs.run import Run, environment
from modulate.sweeps import results as swept
from modulate.sweeps.sweep import load_sweep, plan_runs
from modulate.utils.atomic_files import LineWriter
from modulate.utils.file_lock import NAME, folder_lock
from modulate.utils.schema import LARGEST
from tests.paths import ROOT

TASKS = ("past_scene_recall", "present_object_identification_easy")
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"
"""What str.splitlines splits at, beside a line feed."""

LOG = [
    {
        "stage": "modulator",
        "step": 1,
        "steps": 2,
        "loss": 1.5,
        "accuracy": 0.5,
        "active": 1.0,
        "lr": 0.001,
    },
    {
        "stage": "modulator",
        "step": 2,
        "steps": 2,
        "loss": None,
        "accuracy": 0.0,
        "active": 0.0,
        "lr": 0.0005,
        "skipped": "no_samples",
    },
    {"stage": "modulator", "step": 2, "validation_accuracy": 0.75},
]
STATE = {
    "finished": True,
    "made_of": {"data": "a", "host": "b"},
    "weights": {},
    "steps": 2,
    "seconds": 1.5,
    "failed": {"clip-7": "VideoError: cut off"},
    "left_out": 1,
    "skipped": {"no_samples": 1},
    "split_steps": 0,
    "unshared_batches": 0,
    "resumed": [1],
}


def answers(conditions=("signal", "none"), failed=()):
    """Predictions of six samples of three videos and two tasks, under each condition."""
    return {
        c: [
            Prediction(
                f"q{i}",
                TASKS[i % 2],
                f"v{i // 2}",
                c,
                0,
                None if i in failed else (i + k) % 2,
                i not in failed and (i + k) % 2 == 0,
                () if i in failed else (1.0, 0.25),
                i,
                "VideoError: cut off" if i in failed else None,
            )
            for i in range(6)
        ]
        for k, c in enumerate(conditions)
    }


def figures(records, rule="wrong"):
    """What an evaluation writes into metrics.json of these answers."""
    counted = apply_failed_rule(records, rule)
    main, *others = counted
    failed = {
        r.id: {"id": r.id, "condition": r.condition, "error": r.error}
        for rows in records.values()
        for r in rows
        if r.error
    }
    return {
        "split": "test",
        "condition": main,
        **summarize(counted[main], 200, 0),
        "controls": {c: summarize(counted[c], 200, 0) for c in others},
        "comparisons": {
            f"{main} - {c}": compare(counted[main], counted[c], 200, 0) for c in others
        },
        "signal": {
            "samples": len(counted[main]),
            "samples_with_active_signal": 5,
            "active_steps": 15,
        },
        "failed": list(failed.values()),
    }


def fill(run, records=None, rule="wrong"):
    """Leave in a run's folder what training and evaluation do, but for weights."""
    records = records or answers(
        (
            run.recipe.training.condition,
            "host" if run.recipe.training.condition == "none" else "none",
        )
    )
    run.predictions("test").write_text("".join(map(as_lines, records.values())))
    run.write_json("metrics.json", figures(records, rule))
    run.write_json("state.json", STATE)
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return run


@pytest.fixture
def sweep_and_runs(tmp_path):
    """A sweep of two finished runs, and its file."""
    path = tmp_path / "trial.yaml"
    axes = {"encoder": {"coord_rel": {}, "heatmap": {"encoder": {"name": "heatmap_dur"}}}}
    path.write_text(
        yaml.safe_dump(
            {
                "name": "trial",
                "base": str(ROOT / "tests/fixtures/small.yaml"),
                "axes": axes,
                "common": {"evaluation": {"bootstrap": 200}},
            }
        )
    )
    runs = [
        fill(Run.create(planned.recipe, tmp_path / "runs" / "trial"))
        for planned in plan_runs(load_sweep(str(path)))
    ]
    return path, runs


# --- every file, damaged in every way, given to every reader

HUGE = 10**400
WRONG = (
    None,
    True,
    -1,
    0,
    7,
    0.5,
    HUGE,
    -(10**60),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "[/no]",
    "\0",
    [],
    [1],
    ["x"],
    {},
    {"a": 1},
    [[]],
)


def places(tree, at=()):
    """Every path of keys and indices in a tree; of a list, the first item's alone."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*at, key)
            yield from places(value, (*at, key))
    elif isinstance(tree, list) and tree:
        yield (*at, 0)
        yield from places(tree[0], (*at, 0))


def replaced(tree, at, value):
    tree = copy.deepcopy(tree)
    holder = tree
    for key in at[:-1]:
        holder = holder[key]
    if value is KeyError:
        del holder[at[-1]]
    else:
        holder[at[-1]] = value
    return tree


def damaged(text):
    """Yield (what was done, bytes) of one JSON text."""
    tree = json.loads(text)
    for at in [(), *places(tree)]:
        for value in [*WRONG, KeyError] if at else WRONG:
            yield (
                f"{'.'.join(map(str, at)) or 'whole'} = {str(value)[:20]}",
                json.dumps(replaced(tree, at, value) if at else value).encode(),
            )
    yield "a new key", json.dumps({**tree, "of_tomorrow": [1]}).encode()
    yield (
        "a key twice",
        text.rstrip().rstrip("}").encode() + b', "' + next(iter(tree)).encode() + b'": 1}',
    )
    for data, what in (
        (text[: len(text) // 2].encode(), "cut off"),
        (b"\xff" + text.encode(), "no UTF-8"),
        (b"", "empty"),
        (b"[" * 100_000, "deep"),
        (b"\0", "NUL"),
    ):
        yield what, data


def readers(path, runs, out):
    """Every way in which the command line reads a finished run."""
    folder = runs[0].folder
    runner = CliRunner()

    def command(*arguments):
        result = runner.invoke(build(), list(map(str, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception

    def shown():
        metrics = read_metrics(runs[0].metrics())
        if metrics is not None:
            tables.show_metrics(runs[0], metrics.model_dump())

    return {
        "report": lambda: command(
            "report", *[run.folder for run in runs], "--gallery", 0, "--out", out
        ),
        "show": shown,
        "data export": lambda: command(
            "data", "export", folder, out, "--qa", out, "--allow-failed"
        ),
        "sweep": lambda: command("sweep", path, "--dry-run", "--runs", folder.parents[1]),
        "sweep's figures": lambda: swept.collect_results(
            load_sweep(str(path)), plan_runs(load_sweep(str(path))), folder.parent, {}
        ),
    }


OF_THE_DATA = (
    "is not the file that the run was evaluated on",
    "is no task of StreamGaze",
    "only runs on StreamGaze's files can be exported",
)
"""What the exporter says of whole predictions that are of other data, as these are."""

OF = {  # which of the readers read which file at all
    "predictions.jsonl": ("report", "data export", "sweep's figures"),
    "metrics.json": ("show", "sweep", "sweep's figures"),
    "state.json": ("report", "sweep", "sweep's figures"),
    "environment.json": ("report",),
    "log.jsonl": ("report",),
}


@pytest.mark.parametrize("name", OF)
@pytest.mark.filterwarnings("ignore:.*the key .* is ignored")
def test_a_damaged_file_is_named_or_read_whatever_is_done_to_it_and_whoever_reads_it(
    name, sweep_and_runs, tmp_path
):
    path, runs = sweep_and_runs
    target = runs[0].folder / name
    before = target.read_bytes()
    first, rest = before.split(b"\n", 1) if name.endswith(".jsonl") else (before, b"")
    asked = readers(path, runs, tmp_path / "out")
    ways = list(damaged(first.decode()))
    step = next(
        n for n in (1, 3, 5, 7, 9, 13, 15, 17, 19, 21, 23, 25) if len(ways) / n < 100
    )  # no divisor in common with the values: each key gets others
    ways = [*ways[:-8:step], *ways[-8:]]
    tried = refused = 0
    for i, (what, data) in enumerate(ways):
        target.write_bytes(data + b"\n" + rest if name.endswith(".jsonl") else data)
        chosen = (
            [OF[name][i % len(OF[name])]] if i % 8 else OF[name]
        )  # each way by one reader in turn, one in eight by all: a report takes a while
        for reader in chosen:
            tried += 1
            try:
                asked[reader]()
            except ModulateError as error:
                refused += 1
                text = str(error)
                others = reader == "data export" and any(said in text for said in OF_THE_DATA)
                assert str(target) in text or others, (reader, what, text)
                assert len(text) < 2000
            except Exception as error:
                raise AssertionError(f"{reader}, {name}, {what}") from error
    assert tried > 40 and refused > tried / 3
    target.write_bytes(before)
    asked["report"]()


# --- one reader of predictions


def test_predictions_are_made_of_what_was_read_in_one_place():
    places = []
    for path in [
        *(ROOT / "modulate").rglob("*.py"),
        *(ROOT / "plugins").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            called = (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).endswith("Prediction")
                and any(k.arg is None for k in node.keywords)
            )
            validated = (
                isinstance(node, ast.Subscript) and ast.unparse(node) == "TypeAdapter[Prediction]"
            )
            if called or validated:
                places.append(path.relative_to(ROOT).as_posix())
    assert places == ["modulate/evaluation/predictions.py"]


def test_nothing_splits_json_lines_as_texts_are_split():
    found = []
    for path in [
        *(ROOT / "modulate").rglob("*.py"),
        *(ROOT / "plugins").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]:
        for function in [
            n
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
        ]:
            text = ast.unparse(function)
            if ".splitlines(" in text and (
                "jsonl" in text or "json.loads" in text or "parse_json" in text
            ):
                found.append((path.name, function.name))
    assert found == []


def test_ids_may_hold_what_separates_lines_for_some(sweep_and_runs, tmp_path):
    path, runs = sweep_and_runs
    for run in runs:
        records = {
            c: [Prediction(**{**asdict(r), "id": f"{r.id}{SEPARATORS}é"}) for r in rows]
            for c, rows in answers().items()
        }
        fill(run, records)
        (run.folder / "log.jsonl").write_text(
            "".join(
                json.dumps({**line, "stage": SEPARATORS}, ensure_ascii=False).replace("\r", "\\r")
                + "\n"
                for line in LOG
            )
        )
    found = swept.collect_results(
        load_sweep(str(path)), plan_runs(load_sweep(str(path))), runs[0].folder.parent, {}
    )
    assert (
        found["groups"]["base"]["n"] == 6
        and found["groups"]["encoder-heatmap"]["minus_base"]["n"] == 6
    )
    evaluated = read_run(runs[0].folder)
    assert (
        evaluated.records["signal"][0].id == f"q0{SEPARATORS}é"
        and evaluated.log[0].stage == SEPARATORS
    )
    lines = LineWriter(runs[0].folder / "log.jsonl")
    before = lines.path.read_bytes()
    assert lines.cut(3) == 0 and lines.path.read_bytes() == before
    assert lines.cut(2) == 0 and lines.path.read_bytes() == b"".join(
        before.splitlines(keepends=True)[:2]
    )


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(sweep_and_runs):
    import os

    _, runs = sweep_and_runs
    for name, reader in (
        ("predictions.jsonl", read_predictions),
        ("metrics.json", read_metrics),
        ("state.json", read_state),
    ):
        (runs[0].folder / name).unlink()
        os.mkfifo(runs[0].folder / name)
        with pytest.raises(DataError, match=rf"{name} is not a regular file"):
            reader(runs[0].folder / name)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"correct": False},
            r"line 1: invalid prediction: .*correct is False, although prediction is 0 and answer"
            " 0",
        ),
        (
            {"prediction": None},
            "needs either a prediction or an error that says why there is none",
        ),
        ({"error": "VideoError: x"}, "needs either a prediction or an error"),
        (
            {"logits": [True]},
            (
                r"logits\.0: Input should be a valid number, got True\. `modulate eval .*base-s0`"
                r" writes the file anew"
            ),
        ),
        ({"id": 3}, "id: Input should be a valid string, got 3"),
        (
            {"answer": HUGE},
            r"line 1 is not valid JSON: the number 1000+… has more than 64 characters",
        ),
        ({"answer": "0"}, "answer: Input should be a valid integer, got '0'"),
        ({"answer": 256}, "answer: Input should be less than 256, got 256"),
        ({"active_steps": -1}, "active_steps: Input should be greater than or equal to 0, got -1"),
        ({"logits": [1e101]}, r"logits\.0: must lie between -1e\+100 and 1e\+100, got 1e\+101"),
        ({"logits": [math.nan]}, "NaN is not a JSON number"),
    ],
)
def test_an_error_names_line_key_value_and_what_is_allowed(changes, text, sweep_and_runs):
    _, runs = sweep_and_runs
    path = runs[0].predictions("test")
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(first), **changes}) + "\n" + rest)
    with pytest.raises(DataError, match=text):
        read_predictions(path)


def test_a_sample_is_answered_once_under_each_condition(sweep_and_runs):
    _, runs = sweep_and_runs
    path = runs[0].predictions("test")
    path.write_text(path.read_text() + path.read_text().split("\n")[1] + "\n")
    with pytest.raises(
        DataError,
        match=(
            r"predictions\.jsonl, line 13: a second answer to 'q1' under 'signal'; the first is in"
            r" line 2"
        ),
    ):
        read_predictions(path)
    path.write_text("")
    with pytest.raises(
        DataError, match=r"predictions\.jsonl holds no predictions\. `modulate eval"
    ):
        read_predictions(path)


def test_a_key_of_a_newer_version_is_left_alone_with_one_warning_for_a_file(sweep_and_runs):
    _, runs = sweep_and_runs
    path = runs[0].predictions("test")
    path.write_text(
        "".join(
            json.dumps({**json.loads(line), "tier": 3}) + "\n"
            for line in path.read_text().split("\n")[:-1]
        )
    )
    with pytest.warns(
        UserWarning,
        match=(
            r"predictions\.jsonl, line 1: the key 'tier' is ignored, because this version of"
            r" modulate does not know it"
        ),
    ) as said:
        found = read_predictions(path)
    assert len(said) == 1 and found == answers()
    runs[0].write_json("state.json", {**STATE, "step": 3})
    with pytest.warns(
        UserWarning, match=r"state\.json: the key 'step' is ignored.*Did you mean 'steps'"
    ):
        assert runs[0].read_state().steps == 2
    metrics = json.loads(runs[0].metrics().read_text())
    metrics["controls"]["none"]["tasks"][TASKS[0]]["spread"] = 1
    runs[0].write_json("metrics.json", metrics)
    with pytest.warns(
        UserWarning,
        match=rf"metrics\.json: the key 'controls\.none\.tasks\.{TASKS[0]}\.spread' is ignored",
    ):
        read_metrics(runs[0].metrics())


def test_a_log_may_hold_further_curves_and_a_line_that_was_cut_off(sweep_and_runs):
    _, runs = sweep_and_runs
    path = runs[0].folder / "log.jsonl"
    path.write_text(
        path.read_text()
        + json.dumps({"stage": "joint", "step": 1, "gate": 0.5, "note": ["a"], "on": True})
        + "\n"
        + '{"stage": "jo'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [line.curves() for line in read_log(path)[-1:]] == [{"gate": 0.5}]
    path.write_text(json.dumps({"stage": "joint", "step": 1, "gate": 1e200}) + "\n")
    with pytest.raises(
        DataError,
        match=(
            r"log\.jsonl, line 1: invalid step of a training: .*'gate' must lie between -1e\+100"
            r" and 1e\+100"
        ),
    ):
        read_log(path)


def test_what_a_run_writes_is_read_without_a_word(sweep_and_runs):
    _, runs = sweep_and_runs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            read_environment(runs[0].folder / "environment.json").model_dump(exclude_unset=True)
            == environment() | {"paths": local_paths(runs[0].recipe)}
            == runs[0].read_json("environment.json")
        )
        assert (
            read_state(runs[0].folder / "state.json").model_dump(exclude_unset=True)
            == STATE
            == runs[0].read_json("state.json")
        )
        assert read_metrics(runs[0].metrics()).model_dump(exclude_unset=True) == figures(answers())
    (runs[0].folder / "state.json").unlink()
    assert runs[0].read_json("state.json") == {} and not runs[0].read_state().finished


# --- samples that failed


@pytest.mark.parametrize(
    ("rule", "said", "never"),
    [
        ("wrong", "Failed and counted as wrong: q2", "excluded from all"),
        ("left_out", "Failed and excluded from all figures, under every condition: q2", "as wrong"),
    ],
)
def test_what_is_said_of_failed_samples_is_what_the_recipe_does(
    rule, said, never, tmp_path, capsys
):
    run = Run.create(
        load_recipe(
            "gazeqwen_tiny", ["name=a", f"evaluation.failed={rule}", "evaluation.bootstrap=200"]
        ),
        tmp_path,
    )
    records = answers(failed=(2,))
    fill(run, records, rule)
    tables.show_metrics(run, figures(records, rule))
    out = capsys.readouterr().out
    assert said in out and never not in out
    from modulate.report.page import as_html, as_markdown, build_report

    report = build_report([read_run(run.folder)])
    for page in (as_html(report), as_markdown(report)):
        assert never not in page.lower() and (
            "counted as wrong" in page
            or "count as wrong" in page
            or "excluded from all figures" in page.lower()
        )
    assert report.results[0].main.overall.n == (6 if rule == "wrong" else 5)


def test_a_run_of_which_nothing_is_left_to_count_says_so(tmp_path):
    run = Run.create(
        load_recipe("gazeqwen_tiny", ["name=a", "evaluation.failed=left_out"]), tmp_path
    )
    run.predictions("test").write_text("".join(map(as_lines, answers(failed=range(6)).values())))
    with pytest.raises(
        DataError,
        match=(
            r"predictions\.jsonl: no answer under 'signal' is left to score: evaluation\.failed is"
            r" left_out"
        ),
    ):
        read_run(run.folder)


# --- siblings


@pytest.mark.parametrize(
    "note",
    [
        "[" * 990,
        "{}",
        "[]",
        '{"pid": "x", "host": "h", "since": 1}',
        f'{{"pid": {HUGE}, "host": "{socket.gethostname()}", "since": 1}}',
        f'{{"pid": 1, "host": "{socket.gethostname()}", "since": 1e300}}',
        '{"pid": -1, "host": 3, "since": null}',
        "\udcff",
    ],
)
def test_a_lock_that_says_nonsense_is_held_by_nobody_known(note, tmp_path, monkeypatch):
    import fcntl

    from modulate.errors import LockedError

    (tmp_path / NAME).write_bytes(note.encode("utf-8", "surrogateescape"))
    handle = (tmp_path / NAME).open("r+b")
    fcntl.flock(handle, fcntl.LOCK_EX)
    with (
        pytest.raises(
            LockedError, match=r"is in use by another process, which \.lock there does not name"
        ),
        folder_lock(tmp_path),
    ):
        pytest.fail("both hold it")
    handle.close()


def test_finished_answers_are_used_only_if_they_are_of_these_samples(tmp_path):
    kept = FinishedConditions(tmp_path, "test", "x")
    records = answers()["signal"]
    ids = [f"q{i}" for i in range(6)]
    kept.write("signal", records)
    assert (
        kept.read("signal", ids) == records
        and kept.read("none", ids) is None
        and FinishedConditions(tmp_path, "test", "y").read("signal", ids) is None
    )
    for condition, wanted in (("signal", ids[1:]), ("none", ids)):
        path = tmp_path / "test-signal.jsonl"
        path.replace(tmp_path / f"test-{condition}.jsonl")
        with pytest.warns(
            UserWarning,
            match="are damaged .they belong to other samples, or to another condition.;",
        ):
            assert kept.read(condition, wanted) is None
    for data in (b"", b"[]\n", b"[" * 100_000, b'{"key": 1, "sha256": []}\n', b"\xff\n"):
        (tmp_path / "test-none.jsonl").write_bytes(data)
        with pytest.warns(UserWarning, match="are damaged"):
            assert kept.read("none", ids) is None


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"rows": {}}',
        (
            '{"rows": {}, "versions": {"5.0": {"torch": "2", "device": "cpu", "hosts": {"q":'
            ' {"cells": []}}}}}'
        ),
        "[" * 10_000,
    ],
)
def test_a_plugins_note_of_hosts_that_is_damaged_names_plugin_and_file(
    content, tmp_path, monkeypatch
):
    from modulate import plugins
    from modulate.hosts import verified_versions as verified

    (tmp_path / "verified.json").write_text(content)
    monkeypatch.setattr(verified, "files", lambda package: tmp_path)
    with pytest.raises(PluginError, match=r"Plugin '\w+': .*verified\.json"):
        verified.contract_results(plugins.registry())


@pytest.mark.parametrize(
    "changes",
    [
        {"state": {"step": "x"}},
        {"state": []},
        {"made_of": []},
        {"random": [3, [2**40], None]},
        {"random": {}},
        {"scaler": 3},
        {"state": {"best": "0"}},
    ],
)
def test_a_checkpoint_whose_notes_fit_their_checksum_but_no_training_is_refused(changes, tmp_path):
    import random

    from modulate.errors import CheckpointError
    from modulate.runs.checkpoints import Checkpoints
    from modulate.training.trainer_state import TrainerState, parse_notes

    good = {
        "made_of": {"data": "a"},
        "state": asdict(TrainerState(step=2, failed={"a": "b"})),
        "random": random.Random(0).getstate(),
        "scaler": None,
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(good, {})
    assert parse_notes(checkpoints.latest(), tmp_path).state == TrainerState(
        step=2, failed={"a": "b"}
    )
    checkpoints.save({**good, **changes}, {})
    with pytest.raises(
        CheckpointError,
        match=(
            r"were written by another version of modulate or of a plugin .*; start it anew with"
            r" --no-resume"
        ),
    ):
        parse_notes(checkpoints.latest(), tmp_path)


def test_the_command_line_ends_without_a_traceback(sweep_and_runs, capsys):
    _, runs = sweep_and_runs
    (runs[0].folder / "environment.json").write_text('{"versions": []}')
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(runs[0].folder), "--gallery", "0"])
    err = capsys.readouterr().err
    assert ended.value.code == 1 and err.startswith(
        f"Error: {runs[0].folder}/environment.json: invalid environment of a run: versions: Input"
        " should be a valid dictionary, got []"
    )


def test_a_recipe_that_is_dumped_is_still_a_run(sweep_and_runs):
    _, runs = sweep_and_runs
    assert Run.open(runs[0].folder).recipe == load_recipe(
        str(runs[0].folder / "recipe.yaml")
    ) and "bootstrap: 200" in dump(runs[0].recipe)


def test_names_are_shown_as_they_are_whatever_they_hold(tmp_path, capsys):
    """Markup that closes nothing, a NUL at the end, which numpy drops, and a name longer than a
    stack is deep.
    """
    run = Run.create(load_recipe("gazeqwen_tiny", ["name=a", "evaluation.bootstrap=200"]), tmp_path)
    names = ("[/no]", "x\0", "y" * 100_000)
    records = {
        c: [Prediction(**{**asdict(r), "task": names[i % 3]}) for i, r in enumerate(rows)]
        for c, rows in answers().items()
    }
    fill(run, records)
    tables.show_metrics(run, figures(records))
    assert "[/no]" in capsys.readouterr().out
    from modulate.report.page import as_html, build_report

    report = build_report([read_run(run.folder)])
    assert list(report.results[0].main.tasks) == list(names) and "[/no]" in as_html(report)


def test_a_log_that_is_not_there_has_no_lines_and_the_largest_number_is_allowed(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == ()
    path.write_text(json.dumps({"stage": "one", "step": 1, "gate": LARGEST}) + "\n")
    assert [line.curves() for line in read_log(path)] == [{"gate": LARGEST}]
    path.write_text(json.dumps({"stage": "one", "step": 1, "gate": -1.01 * LARGEST}) + "\n")
    with pytest.raises(DataError, match="'gate' must lie between -1e\\+100 and 1e\\+100"):
        read_log(path)
