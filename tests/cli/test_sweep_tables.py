"""A sweep in the terminal: how runs ended, and the last step of each that is going on."""

import json

from modulate.cli import sweep_tables
from modulate.sweeps.job_runner import Outcome

STEP = {"stage": "joint", "step": 3, "steps": 8, "loss": 0.5, "accuracy": 0.75, "lr": 1e-4}


def test_a_failed_run_is_shown_with_its_exit_and_the_end_of_its_log(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "one.log").write_text("first\nDataError: broken\n")
    shown = sweep_tables.last_lines(tmp_path, Outcome("one", 3, 1.0))
    assert shown[0] == "exit code 3" and shown[-1].strip() == "DataError: broken"
    assert sweep_tables.last_lines(tmp_path, Outcome("one", -9, 1.0))[0] == "killed by SIGKILL"


def test_the_last_whole_step_of_a_log_is_found_behind_a_line_being_written(tmp_path):
    log = tmp_path / "log.jsonl"
    assert sweep_tables._last_step(log) is None
    lines = [json.dumps({**STEP, "step": step}) for step in (3, 4)]
    log.write_text("\n".join([*lines, lines[0][:20]]))
    assert sweep_tables._last_step(log).step == 4
