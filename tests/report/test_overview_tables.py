"""Tables over all runs: summary, components, accuracies by task, failures."""

from modulate.report.page import build_report
from modulate.report.runs import read_run
from tests.report.helpers import EASY, HARD, SIGNAL, failed_prediction, write_run


def test_the_summary_shows_the_gains_that_isolate_the_signal(three_runs):
    ours, free, lora = build_report(three_runs).summary.rows
    assert ours[0] == "ours-0" and [cell.split()[0] for cell in ours[3:]] == [
        "+71.9",
        "+81.2",
        "+71.9",
    ]
    assert free[1:] == ("a blank signal", free[2], "", "", "")
    assert lora[1:] == ("no signal (LoRA only)", lora[2], "", "", "")


def test_the_summary_names_what_was_not_given_or_evaluated(tmp_path):
    digits = {"signal": SIGNAL["signal"]}
    stages = "training.stages=[{name: modulator, train: [modulator], epochs: 1}]"
    runs = [
        write_run(tmp_path, "alone-0", digits),
        write_run(tmp_path, "bare-0", digits, "lora=null", stages),
    ]
    alone, bare = build_report(runs).summary.rows
    assert alone[3:] == ("no such run given", "no such run given", "not evaluated")
    assert bare[3:] == ("no LoRA in the recipe", "no such run given", "not evaluated")


def test_published_rows_stand_below_ours_with_what_is_not_comparable(tmp_path):
    data = "data={name: streamgaze, params: {root: nowhere}}"
    table = build_report([write_run(tmp_path, "ours-0", SIGNAL, data)]).accuracies
    assert table.columns == ("Run", "OI-E", "OI-H", "mean", "95 % interval", "mean of all 10")
    rows = {row[0]: row[1:] for row in table.rows if not isinstance(row, str)}
    assert rows["ours-0"][:3] == ("93.8", "100.0", "96.9")
    assert rows["GazeQwen"] == ("59.4", "76.6", "68.0", "–", "63.9")
    assert rows["VITA 1.5"] == ("–", "–", "–", "–", "38.4")
    assert table.notes[0].startswith("Compare with care:")
    assert "OI-E 16, OI-H 12" in table.notes[-1]


def test_a_data_set_without_published_rows_shows_ours_only(three_runs):
    table = build_report(three_runs).accuracies
    assert [row[0] for row in table.rows] == [
        "ours-0",
        "free-0 (blank-trained run)",
        "lora-0 (LoRA-only run)",
    ]
    assert table.columns == ("Run", "OI-E", "OI-H", "mean", "95 % interval")
    assert not any("Compare" in note for note in table.notes)


def test_a_failed_sample_counts_as_wrong_and_is_listed(tmp_path):
    lost = [failed_prediction(condition) for condition in SIGNAL]
    report = build_report([write_run(tmp_path, "a-0", SIGNAL, more=lost)])
    easy = report.results[0].main.tasks[EASY]
    assert (easy.correct, easy.n) == (15, 17)
    assert ("a-0", "lost", "signal", "VideoError: cut off") in report.failures.rows
    assert report.failures.notes == ("Failed samples count as wrong.",)
    assert build_report([write_run(tmp_path, "c-0", SIGNAL)]).failures is None


def test_a_failed_sample_can_be_excluded_and_is_listed_all_the_same(tmp_path):
    lost = [failed_prediction(condition) for condition in SIGNAL]
    run = write_run(tmp_path, "b-0", SIGNAL, "evaluation.failed=left_out", more=lost)
    report = build_report([run])
    assert report.results[0].main.tasks[EASY].n == 16
    assert report.results[0].main.tasks[HARD].n == 12
    assert report.failures.notes[0].startswith(
        "Failed samples of b-0 are excluded from all figures, under every condition"
    )


def test_what_failed_or_was_skipped_in_training_is_listed(tmp_path):
    run = write_run(tmp_path, "a-0", SIGNAL).run
    state = {
        "finished": True,
        "failed": {"clip-7": "VideoError: cut off"},
        "skipped": {"not_finite": 1, "scaled": 2},
        "left_out": 12,
    }
    run.write_json("state.json", state)
    failures = build_report([read_run(run.folder)]).failures
    assert failures.rows == (("a-0", "clip-7", "training", "VideoError: cut off"),)
    assert failures.notes == (
        "Samples that failed in training were left out of their optimizer step.",
        "a-0: 1 training step was skipped: loss or gradients were not finite.",
        ("a-0: 2 training steps were skipped: the fp16 loss scale was too large and was lowered."),
        (
            "a-0: 12 training samples were skipped because of an empty signal (training.empty:"
            " skip)."
        ),
    )
