"""Tables of one run: tasks, conditions, paired tests, coverage."""

from modulate.interfaces.components import Reference
from modulate.interfaces.multi_signal import controls_of
from modulate.report.run_tables import (
    condition_meanings,
    conditions_table,
    coverage_table,
    paired_tests_table,
    power_notes,
    tasks_table,
)
from modulate.report.runs import group_runs
from tests.report.helpers import EASY, HARD, SIGNAL, predictions, results_of_first, write_run


def test_tasks_have_exact_counts_beside_companions_and_controls(three_runs):
    table = tasks_table(results_of_first(three_runs), Reference())
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows[EASY][:2] == ("15/16", "93.8") and rows["mean over tasks"][1] == "96.9"
    assert table.columns[5:] == ("LoRA-only run", "blank-trained run", "none", "shuffled")
    assert rows[EASY][4:] == ("50.0", "31.2", "25.0", "50.0")


def test_conditions_of_some_seeds_only_get_a_note(tmp_path):
    more = {**SIGNAL, "centre": {EASY: "0" * 16, HARD: "0" * 12}}
    conditions = "evaluation.conditions=[none, shuffled, centre]"
    runs = [
        write_run(tmp_path, "a-0", SIGNAL),
        write_run(tmp_path, "a-1", more, conditions, seed=1),
    ]
    notes = conditions_table(results_of_first(runs)).notes
    assert "centre: evaluated, and compared, for seed 1 only." in notes


def test_conditions_show_differences_with_their_tests(three_runs):
    table = conditions_table(results_of_first(three_runs))
    signal, none, _ = table.rows
    assert signal[:2] == ("signal", "the clip's own signal") and signal[5:] == ("–",) * 5
    assert none[0] == "none" and none[5] == "+71.9" and none[-1] == "0.016"


def test_every_control_says_what_its_signal_is(three_runs):
    (group, *_) = group_runs(three_runs)
    meanings = condition_meanings(group)
    assert {"blank", "shuffled", "centre", "shifted"} <= meanings.keys()
    assert meanings["blank"] == "the same clip with an empty signal"
    for name, control in controls_of("gaze").items():
        assert control.__doc__.startswith("Control: "), name
        assert meanings[name] and "\n" not in meanings[name]


def test_paired_tests_name_both_sides_and_their_counts(three_runs):
    table = paired_tests_table(results_of_first(three_runs), Reference())
    headings = [row for row in table.rows if isinstance(row, str)]
    assert headings == [
        "ours-0 − LoRA-only run, seed 0",
        "ours-0 − blank-trained run, seed 0",
        "ours-0 − shuffled, seed 0",
    ]
    easy = table.rows[1]
    assert easy[:3] == (EASY, "16", "+43.8") and easy[4:6] == ("8", "1")


def test_a_small_task_without_a_difference_gets_a_note_on_its_power(tmp_path):
    digits = {
        "signal": {EASY: "1" * 16, HARD: "1" * 3 + "0" * 7},
        "shuffled": {EASY: "0" * 16, HARD: "0" * 2 + "1" * 2 + "0" * 6},
    }
    (note,) = power_notes(results_of_first([write_run(tmp_path, "a-0", digits)]))
    assert note.startswith(
        f"No significant difference from the shuffled control on {HARD} (10 questions, ≥ 67.3"
        " points)."
    )
    assert EASY not in note


def test_coverage_counts_answers_that_the_signal_reached(three_runs):
    three_runs[0].records["signal"][:] = [
        *predictions("signal", "1" * 6, EASY, active_steps=3),
        *predictions("signal", "1" * 12, HARD, active_steps=0),
    ]
    assert coverage_table(results_of_first(three_runs[:1])).rows == (
        (EASY, "6/6", "100.0", "3.00"),
        (HARD, "0/12", "0.0", "0.00"),
    )
