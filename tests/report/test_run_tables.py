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
    text_table,
)
from modulate.report.runs import group_runs
from tests.report.helpers import (
    EASY,
    HARD,
    SIGNAL,
    predictions,
    results_of_first,
    write_run,
    write_text_run,
)


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


TEXTS = {"signal": "1" * 12 + "0" * 8, "none": "1" * 4 + "-" * 16, "blank": "1" * 12 + "0" * 8}


def test_tables_of_free_text_name_its_main_metric_and_the_tests_of_graded_scores(tmp_path):
    result = results_of_first([write_text_run(tmp_path, "words-0", TEXTS)])
    table = tasks_table(result, Reference())
    assert table.columns[:3] == ("Task", "exact/n", "token F1")
    assert table.rows[0][:3] == (EASY, "12/20", "80.0") and table.rows[0][4] == "–"
    assert "permutation p" in conditions_table(result).columns
    tests = paired_tests_table(result, Reference())
    assert "permutation p (Holm)" in tests.columns and "graded scores" in tests.notes[0]
    assert power_notes(result) == []


def test_every_score_of_free_text_is_shown_under_every_condition_with_its_test(tmp_path):
    table = text_table(results_of_first([write_text_run(tmp_path, "words-0", TEXTS)]))
    assert [row for row in table.rows if isinstance(row, str)] == [
        "exact match",
        "token F1",
        "BLEU",
        "ROUGE-L",
    ]
    signal, none, blank = table.rows[1:4]
    assert signal[:2] == ("signal", "60.0") and signal[3:] == ("–",) * 3
    assert none[:2] == ("none", "20.0") and none[3] == "+40.0"
    assert blank[3] == "+0.0" and blank[5] == "1"
    token_f1 = table.rows[5:8]
    assert [row[1] for row in token_f1] == ["80.0", "20.0", "80.0"]


def test_other_answers_have_no_table_of_texts(three_runs):
    assert text_table(results_of_first(three_runs)).rows == ()
