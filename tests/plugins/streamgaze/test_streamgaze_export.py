"""Export in the benchmark's format: its rules, reimplemented here, give the run's scores."""

import json
import random
import re
from dataclasses import asdict, fields

import pytest

from modulate import cli
from modulate.errors import DataError
from modulate.evaluation.metrics import summarize
from modulate.evaluation.predictions import Prediction
from modulate_streamgaze.export import export
from modulate_streamgaze.questions import TASKS, family
from tests.plugins.streamgaze.streamgaze_tree import VIDEOS

PRESENT = "present_object_identification_easy"
ALERT = "proactive_gaze_triggered_alert"


# --- the benchmark's rules


def letter(reply):
    text = str(reply or "").strip().upper()
    found = re.findall(r"(?<![A-Z0-9_])[ABCD](?![A-Z0-9_])", text)
    return found[0] if found else text


def benchmark_score(entries):
    """Return (right, scored) by letters, or by YES and NO in replies to test points."""
    right = scored = 0
    if "test_info" in entries[0]["questions"][0]:
        for point in (
            each
            for entry in entries
            for question in entry["questions"]
            for each in question["test_info"]
        ):
            if point.get("type") is not None:
                scored += 1
                right += ("YES" if point["type"] == 1 else "NO") in str(
                    point.get("response", "")
                ).strip().upper()
        return right, scored
    for entry in entries:
        for question, reply in zip(
            entry["questions"], entry.get("model_predictions", []), strict=False
        ):
            scored += 1
            right += letter(question["answer"]) == letter(reply["model_prediction"])
    return right, scored


@pytest.mark.parametrize(
    ("reply", "meant"),
    [
        ("A", "A"),
        ("b.", "B"),
        ("Answer: c) jar", "C"),
        ("a cup", "A"),
        ("It is a cup, so D", "A"),
        ("CAB", "CAB"),
        ("", ""),
        (None, ""),
        ("E", "E"),
        ("B_1 or C", "C"),
    ],
)
def test_the_rule_for_letters_takes_the_first_that_stands_alone(reply, meant):
    assert letter(reply) == meant


@pytest.mark.parametrize(
    ("reply", "kind", "right"),
    [
        ("Yes.", 1, 1),
        ("no", 0, 1),
        ("I do not know", 0, 1),
        ("Yes and no", 0, 1),
        ("Yes and no", 1, 1),
        ("", 0, 0),
        ("C", 0, 0),
    ],
)
def test_the_rule_for_alerts_looks_for_the_word_anywhere(reply, kind, right):
    assert benchmark_score(
        [{"questions": [{"test_info": [{"type": kind, "response": reply}]}]}]
    ) == (right, 1)


# --- export


def predicted(reader, split="all", condition="signal", seed=0, **changes):
    """Return random answers, of which one in ten failed."""
    rng = random.Random(seed)
    found = []
    for sample in reader().samples(split):
        failed = rng.random() < 0.1
        choice = None if failed else rng.randrange(len(sample.options))
        found.append(
            Prediction(
                sample.id,
                sample.task,
                sample.groups["video"],
                condition,
                sample.answer,
                choice,
                choice == sample.answer,
                () if failed else (0.0,),
                0,
                "e" if failed else None,
            )
        )
    return found


def written(folder, task):
    return json.loads((folder / f"{task}_output.json").read_text())


@pytest.mark.parametrize("split", ["all", "test"])
def test_the_benchmarks_rules_give_our_accuracies(tree, reader, tmp_path, split):
    predictions = predicted(reader, split)
    counts = export(predictions, tree / "qa", tmp_path / "out", "signal")
    ours = summarize(predictions, 200, 0)
    assert sum(counts.values()) == len(predictions) and tuple(counts) == TASKS
    theirs = {}
    for task in TASKS:
        right, scored = benchmark_score(written(tmp_path / "out", task))
        theirs[task] = right / scored
        assert (
            scored == counts[task] == ours["tasks"][task]["n"]
            and theirs[task] == ours["tasks"][task]["accuracy"]
        )
    assert (
        sum(theirs.values()) / len(TASKS) == pytest.approx(ours["overall"])
        and 0 < ours["overall"] < 1
    )


def test_entries_keep_all_their_keys(tree, reader, tmp_path):
    predictions = predicted(reader)
    export(predictions, tree / "qa", tmp_path, "signal")
    for task in TASKS:
        source = json.loads((tree / f"qa/{task}.json").read_text())
        result = written(tmp_path, task)
        for entry in result:
            entry.pop("model_predictions", None)
            for point in (
                each for question in entry["questions"] for each in question.get("test_info", [])
            ):
                assert (
                    point.pop("response") in ("Yes", "No", "")
                    and point.pop("response_time_sec") is None
                )
        assert result == source


def test_multiple_choice_entries_gain_predictions_in_the_order_of_their_questions(
    tree, reader, tmp_path
):
    predictions = {record.id: record for record in predicted(reader)}
    export(list(predictions.values())[::-1], tree / "qa", tmp_path, "signal")
    for index, entry in enumerate(written(tmp_path, PRESENT)):
        for number, reply in enumerate(entry["model_predictions"]):
            choice = predictions[f"{PRESENT}/{VIDEOS[index]}/{index}/{number}"].prediction
            assert reply == {
                "question": entry["questions"][number]["question"],
                "time_stamp": entry["questions"][number]["time_stamp"],
                "model_prediction": "" if choice is None else "ABCD"[choice],
                "model_response_time_sec": None,
            }


def test_what_was_not_asked_is_left_out(tree, reader, tmp_path):
    asked = [
        record
        for record in predicted(reader)
        if record.id in (f"{PRESENT}/{VIDEOS[2]}/2/1", f"{ALERT}/{VIDEOS[3]}/3/0/1")
    ]
    assert export(asked, tree / "qa", tmp_path, "signal") == {PRESENT: 1, ALERT: 1}
    (choice,), (alert,) = written(tmp_path, PRESENT), written(tmp_path, ALERT)
    assert [question["question"] for question in choice["questions"]] == ["What 1?"] and len(
        choice["model_predictions"]
    ) == 1
    assert [
        each["realtime"] for question in alert["questions"] for each in question["test_info"]
    ] == ["00:03"]
    assert len(list(tmp_path.glob("*_output.json"))) == 2


def test_a_letter_that_was_not_offered_is_neither_yes_nor_no(tree, reader, tmp_path):
    point = next(
        record
        for record in predicted(reader)
        if family(record.task) == "proactive" and record.answer == 1
    )
    row = {**asdict(point), "prediction": 2, "correct": False, "error": None}
    export([Prediction(**row)], tree / "qa", tmp_path, "signal")
    (entry,) = written(tmp_path, point.task)
    assert entry["questions"][0]["test_info"][0]["response"] == "C" and benchmark_score(
        [entry]
    ) == (0, 1)


def changed(predictions, **changes):
    return [Prediction(**{**asdict(predictions[0]), **changes})]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"id": f"{PRESENT}/{VIDEOS[1]}/0/0", "task": PRESENT},
            r"present.*\.json is not the file that the run was evaluated on: .* is not in it.*--qa",
        ),
        ({"answer": 3}, "is not the file that the run was evaluated on"),
        ({"id": "a/b"}, "The prediction 'a/b' does not say which question it answers"),
        (
            {"task": "colours"},
            "'colours' is no task of StreamGaze; only runs on StreamGaze's files can be exported",
        ),
        ({"condition": "host"}, r"The run has no predictions under 'signal'\. Known: host"),
    ],
)
def test_predictions_of_other_questions_are_refused(tree, reader, tmp_path, changes, text):
    with pytest.raises(DataError, match=text):
        export(changed(predicted(reader), **changes), tree / "qa", tmp_path, "signal")
    assert list(tmp_path.glob("*.json")) == []


# --- the command


@pytest.fixture
def finished(tree, reader, tmp_path):
    """Write a run's folder: a recipe on this tree, predictions of two conditions and splits."""
    from modulate.config.recipe import load_recipe
    from modulate.runs.run import Run

    data = f"data={{name: streamgaze, params: {{root: {json.dumps(str(tree))}}}}}"
    run = Run.create(load_recipe("gazeqwen_tiny", ["name=done", data]), tmp_path / "runs")
    for name, split in (("predictions.jsonl", "test"), ("predictions-all.jsonl", "all")):
        rows = predicted(reader, split) + predicted(reader, split, "none", seed=1)
        (run.folder / name).write_text(
            "".join(json.dumps(asdict(record)) + "\n" for record in rows)
        )
    return run.folder


@pytest.fixture
def command(capsys):
    def command(*args):
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "export", *map(str, args)])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


def test_the_command_writes_the_trained_conditions_answers(finished, reader, tmp_path, command):
    code, out, _ = command(finished, tmp_path / "out", "--allow-failed")
    assert code == 0 and f"{tmp_path}/out/{PRESENT}_output.json: 4 answers" in out
    right = sum(benchmark_score(written(tmp_path / "out", task))[0] for task in TASKS)
    assert right == sum(record.correct for record in predicted(reader, "test"))


def test_the_command_can_write_another_condition_and_split(finished, reader, tmp_path, command):
    code, out, _ = command(
        finished, tmp_path / "out", "--condition", "none", "--split", "all", "--allow-failed"
    )
    assert code == 0 and f"{PRESENT}_output.json: 16 answers" in out
    right = sum(benchmark_score(written(tmp_path / "out", task))[0] for task in TASKS)
    assert right == sum(record.correct for record in predicted(reader, "all", seed=1))


def test_the_command_says_what_is_missing(finished, tree, tmp_path, command):
    code, _, err = command(finished, tmp_path / "out", "--split", "val")
    assert (
        code == 1
        and "predictions-val.jsonl does not exist" in err
        and f"`modulate eval {finished}` does it." in err
    )
    code, _, err = command(finished, tmp_path / "out", "--condition", "blank")
    assert code == 1 and "no predictions under 'blank'. Known: none, signal." in err
    code, _, err = command(finished, tmp_path / "out", "--qa", tmp_path, "--allow-failed")
    assert code == 1 and "is not the file that the run was evaluated on" in err
    code, _, err = command(tmp_path, tmp_path / "out")
    assert code == 1 and "is not a run" in err


def test_answers_that_failed_are_refused_and_counted_when_they_are_allowed(
    finished, reader, tmp_path, command
):
    answers = predicted(reader, "all")
    failed = [record for record in answers if record.error]
    code, _, err = command(finished, tmp_path / "out", "--split", "all")
    assert (
        code == 1
        and f"{len(failed)} of {len(answers)} answers failed." in err
        and "--allow-failed" in err
        and failed[0].id in err
    )
    assert not (tmp_path / "out").exists()
    code, out, err = command(finished, tmp_path / "out", "--split", "all", "--allow-failed")
    assert (
        code == 0
        and err.startswith(f"Warning: {len(failed)} of {len(answers)} answers failed.")
        and "its scorer counts as wrong" in err
    )
    for task in TASKS:
        count = sum(record.task == task for record in failed)
        assert (
            f"{task}_output.json: {sum(record.task == task for record in answers)} answers"
            + f", of which {count} failed" * bool(count)
            + "\n"
        ) in out
    assert "left out" not in err
    recipe = finished / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("failed: wrong", "failed: left_out"))
    _, _, err = command(finished, tmp_path / "out", "--split", "all", "--allow-failed")
    assert "The run's own figures differ: there, such samples are excluded from all figures" in err


def test_a_run_without_failures_is_exported_without_more_words(finished, reader, tmp_path, command):
    path = finished / "predictions.jsonl"
    path.write_text(
        "".join(
            json.dumps(asdict(record)) + "\n"
            for record in predicted(reader, "test")
            if not record.error
        )
    )
    code, out, err = command(finished, tmp_path / "out")
    assert code == 0 and err == "" and "failed" not in out


WRONG = (
    None,
    True,
    -1,
    9,
    10**60,
    1e308,
    float("nan"),
    "",
    "x",
    "\0",
    "a/b/" + "9" * 5000 + "/1",
    [],
    {},
    [[]],
)


@pytest.mark.parametrize("key", [field.name for field in fields(Prediction)])
def test_a_damaged_prediction_is_refused_with_an_error_or_exported(
    finished, tmp_path, command, key
):
    path = finished / "predictions.jsonl"
    first, rest = path.read_text().split("\n", 1)
    for value in WRONG:
        path.write_text(json.dumps({**json.loads(first), key: value}) + "\n" + rest)
        code, _, err = command(
            finished, tmp_path / "out", "--allow-failed"
        )  # any other exception would come through
        assert code in (0, 1) and (code == 0 or err.startswith("Error: ")) and len(err) < 2000
    path.write_text(
        json.dumps(
            {
                **json.loads(first),
                "prediction": 9,
                "correct": False,
                "error": None,
                "logits": [0.0] * 10,
            }
        )
        + "\n"
        + rest
    )
    code, _, err = command(finished, tmp_path / "out", "--allow-failed")
    assert (
        code == 1
        and "is answered with option 9, counted from 0; the benchmark has letters for 8 options"
        in err
    )
