"""The verdict follows the comparisons, and says no more than they do."""

from modulate.report.verdict import companion_notes, verdict
from tests.report.helpers import SIGNAL, results_of_first, write_run


def test_a_run_above_all_comparisons_uses_its_signal(three_runs):
    assert verdict(results_of_first(three_runs)) == (
        "Clear gain over the blank-trained run and the shuffled control: the accuracy depends on"
        " each clip's own signal."
    )


def test_a_run_as_good_with_a_shuffled_signal_is_not_shown_to_use_it(tmp_path):
    digits = {"signal": SIGNAL["signal"], "shuffled": SIGNAL["signal"]}
    results = results_of_first([write_run(tmp_path, "deaf-0", digits)])
    assert verdict(results) == (
        "Not shown to use its signal: no clear gain over the shuffled control. Not given for"
        " comparison: LoRA-only run, blank-trained run."
    )


def test_a_run_without_comparisons_gets_no_verdict(tmp_path):
    results = results_of_first([write_run(tmp_path, "alone-0", {"signal": SIGNAL["signal"]})])
    assert verdict(results).startswith("Cannot tell whether it uses its signal: there is no")


def test_companions_are_named_with_what_differs(three_runs):
    lora_only, blank_trained = companion_notes(results_of_first(three_runs))
    assert lora_only.startswith("LoRA-only run: lora-0, seed 0. Differs in training.stages: ")
    assert blank_trained == "Blank-trained run: free-0, seed 0. Same recipe otherwise."
