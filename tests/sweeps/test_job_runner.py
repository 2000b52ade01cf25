"""Jobs side by side: their logs, their environment, and what is told of them."""

import re
import sys
import time

import pytest

from modulate.sweeps.job_runner import Job, Listener, Outcomes, run_jobs, tail


def job(log, text, name="one"):
    return Job(name, (sys.executable, "-c", text), log)


def test_a_log_s_folder_is_made_and_each_attempt_begins_with_its_time_and_command(tmp_path):
    log = tmp_path / "new" / "deep" / "one.log"
    for text in ("print('first')", "print('second')"):
        run_jobs([job(log, text)], [{}], poll=0.01)
    lines = log.read_text().splitlines()
    assert lines[1::2] == ["first", "second"]
    for line, text in zip(lines[::2], ("first", "second"), strict=True):
        assert re.fullmatch(
            rf"--- \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC: {re.escape(sys.executable)} -c"
            rf" print\('{text}'\)",
            line,
        )
    assert tail(log) == ["second"]


def test_slots_add_to_the_environment_and_outcomes_say_how_each_ended(tmp_path):
    told = []
    listener = Listener(
        started=lambda name: told.append(("started", name)),
        ended=lambda outcome: told.append(("ended", outcome.name)),
    )
    codes = {"a": 0, "b": 3, "c": 0}
    jobs = [
        job(
            tmp_path / f"{name}.log",
            "import os, sys; print(os.environ['SLOT'], os.environ['PATH'] != '');"
            f" sys.exit({code})",
            name,
        )
        for name, code in codes.items()
    ]
    found = run_jobs(jobs, [{"SLOT": "x"}], listener, poll=0.01)
    assert [(o.name, o.code, o.interrupted) for o in found.ended] == [
        (name, code, False) for name, code in codes.items()
    ]
    assert (found.waiting, found.signum) == ([], None) and all(
        0 < o.seconds < 60 for o in found.ended
    )
    assert told == [(what, name) for name in codes for what in ("started", "ended")]
    assert [tail(tmp_path / f"{name}.log") for name in codes] == [["x True"]] * 3


def test_what_runs_is_told_until_nothing_does(tmp_path):
    seen = []
    run_jobs(
        [job(tmp_path / f"{n}.log", "import time; time.sleep(0.3)", n) for n in "ab"],
        [{}, {}],
        Listener(running=lambda names: seen.append(sorted(names))),
        poll=0.01,
    )
    assert ["a", "b"] in seen and seen[-1] == []
    assert run_jobs([], [{}]) == Outcomes()


def test_an_error_in_a_listener_ends_what_runs(tmp_path):
    def broken(names):
        raise KeyError("a display")

    start = time.monotonic()
    with pytest.raises(KeyError, match="a display"):
        run_jobs(
            [job(tmp_path / "a.log", "import time; time.sleep(60)")],
            [{}],
            Listener(running=broken),
            poll=0.01,
        )
    assert time.monotonic() - start < 20


def test_of_a_long_log_the_end_is_read(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("--- early\n" + "x" * 99 + "\n" + "".join(f"{i:06d}\n" for i in range(30_000)))
    assert tail(log, 2) == ["029998", "029999"] and tail(log) == [
        f"{i:06d}" for i in range(29_994, 30_000)
    ]


def test_a_line_as_wide_as_allowed_is_whole(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("--- x\n" + "a" * 400 + "\n" + "b" * 401 + "\n   ^~~\n\n")
    assert tail(log) == ["a" * 400, "b" * 400 + "…"]
