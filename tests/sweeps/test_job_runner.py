"""Jobs side by side: their logs, their environment, their listeners, and signals."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modulate.sweeps.job_runner import Job, Listener, Outcomes, run_jobs, tail

SHELL = Path("/bin/sh")
needs_shell = pytest.mark.skipif(not SHELL.exists(), reason="needs a POSIX shell")


def python_job(log, code, name="one"):
    return Job(name, (sys.executable, "-c", code), log)


def shell_job(folder, name, script):
    return Job(name, (str(SHELL), "-c", script), folder / f"{name}.log")


def endings(outcomes):
    return [(outcome.name, outcome.code, outcome.interrupted) for outcome in outcomes.ended]


def test_the_folder_of_a_log_is_made_and_each_attempt_begins_with_time_and_command(tmp_path):
    log = tmp_path / "new" / "deep" / "one.log"
    for text in ("print('first')", "print('second')"):
        run_jobs([python_job(log, text)], [{}], poll=0.01)
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
    events = []
    listener = Listener(
        started=lambda name: events.append(("started", name)),
        ended=lambda outcome: events.append(("ended", outcome.name)),
    )
    codes = {"a": 0, "b": 3, "c": 0}
    jobs = [
        python_job(
            tmp_path / f"{name}.log",
            "import os, sys; print(os.environ['SLOT'], os.environ['PATH'] != '');"
            f" sys.exit({code})",
            name,
        )
        for name, code in codes.items()
    ]
    outcomes = run_jobs(jobs, [{"SLOT": "x"}], listener, poll=0.01)
    assert endings(outcomes) == [(name, code, False) for name, code in codes.items()]
    assert (outcomes.waiting, outcomes.signum) == ([], None)
    assert all(0 < outcome.seconds < 60 for outcome in outcomes.ended)
    assert events == [(what, name) for name in codes for what in ("started", "ended")]
    assert [tail(tmp_path / f"{name}.log") for name in codes] == [["x True"]] * 3


def test_the_listener_hears_what_runs_until_nothing_does(tmp_path):
    notices = []
    run_jobs(
        [python_job(tmp_path / f"{n}.log", "import time; time.sleep(0.3)", n) for n in "ab"],
        [{}, {}],
        Listener(running=lambda names: notices.append(sorted(names))),
        poll=0.01,
    )
    assert ["a", "b"] in notices and notices[-1] == []
    assert run_jobs([], [{}]) == Outcomes()


def test_an_error_in_a_listener_ends_the_running_jobs(tmp_path):
    def broken(names):
        raise KeyError("a display")

    start = time.monotonic()
    with pytest.raises(KeyError, match="a display"):
        run_jobs(
            [python_job(tmp_path / "a.log", "import time; time.sleep(60)")],
            [{}],
            Listener(running=broken),
            poll=0.01,
        )
    assert time.monotonic() - start < 20


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    log = tmp_path / "a.log"
    log.write_text(
        "--- early\n" + "x" * 99 + "\n" + "".join(f"{index:06d}\n" for index in range(30_000))
    )
    assert tail(log, 2) == ["029998", "029999"] and tail(log) == [
        f"{index:06d}" for index in range(29_994, 30_000)
    ]


def test_a_line_as_wide_as_allowed_is_whole(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("--- x\n" + "a" * 400 + "\n" + "b" * 401 + "\n   ^~~\n\n")
    assert tail(log) == ["a" * 400, "b" * 400 + "…"]


# --- failures and slots


@needs_shell
def test_a_failed_job_does_not_stop_the_others_and_its_log_says_why(tmp_path):
    ended = []
    jobs = [
        shell_job(tmp_path, "bad", "echo first; echo 'no such thing' >&2; exit 3"),
        shell_job(tmp_path, "good", "echo $COLOR"),
        shell_job(tmp_path, "last", "kill -9 $$"),
    ]
    outcomes = run_jobs(jobs, [{"COLOR": "red"}], Listener(ended=ended.append), poll=0.01)
    assert endings(outcomes) == [("bad", 3, False), ("good", 0, False), ("last", -9, False)]
    assert ended == outcomes.ended and not outcomes.waiting and outcomes.signum is None
    assert tail(tmp_path / "bad.log") == ["first", "no such thing"]
    assert tail(tmp_path / "good.log") == ["red"]


@needs_shell
def test_as_many_jobs_run_at_once_as_there_are_slots_each_in_its_own(tmp_path):
    # Neither job ends before both have started.
    wait_for_both = (
        "echo $SLOT >> {0}/started; while [ $(wc -l < {0}/started) -lt 2 ]; do sleep 0.01; done;"
        " sort {0}/started > {0}/{1}"
    )
    jobs = [shell_job(tmp_path, name, wait_for_both.format(tmp_path, name)) for name in ("a", "b")]
    outcomes = run_jobs(jobs, [{"SLOT": "0"}, {"SLOT": "1"}], poll=0.01)
    assert [outcome.code for outcome in outcomes.ended] == [0, 0]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "0\n1\n"


@needs_shell
def test_a_log_is_appended_to_and_its_tail_is_of_the_last_attempt(tmp_path):
    log = tmp_path / "one.log"
    script = "seq 100; echo '   ^^^'; echo; printf 'x%.0s' $(seq 500)"
    run_jobs([shell_job(tmp_path, "one", "echo early")], [{}], poll=0.01)
    run_jobs([shell_job(tmp_path, "one", script)], [{}], poll=0.01)
    assert tail(log, 3) == ["99", "100", "x" * 400 + "…"] and "early" in log.read_text()
    assert tail(tmp_path / "none.log") == []


# --- signals

SCRIPT = """
import sys
from pathlib import Path
from modulate.sweeps.job_runner import Job, Listener, run_jobs

folder, grace, script = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
jobs = [Job(name, ("/bin/sh", "-c", script), folder / f"{name}.log") for name in ("a", "b")]
listener = Listener(started=lambda name: print(name, flush=True))
outcomes = run_jobs(jobs, [{}], listener, grace=grace, poll=0.01)
ended = [(outcome.name, outcome.code, outcome.interrupted) for outcome in outcomes.ended]
print(ended, outcomes.waiting, outcomes.signum)
"""


def interrupt(folder, script, signals, grace=30.0):
    """Run two jobs one after the other, and send signals once the first says that it is ready.

    Returns the lines that were printed, and the seconds until the end.
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


@needs_shell
@pytest.mark.parametrize(("signum", "name"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_a_signal_is_passed_on_and_jobs_may_save_before_they_end(signum, name, tmp_path):
    script = f"trap 'echo saved; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    printed, _ = interrupt(tmp_path, script, [signum])
    assert printed == ["a", f"[('a', 7, True)] ['b'] {int(signum)}"]
    assert tail(tmp_path / "a.log") == ["ready", "saved"]


@needs_shell
@pytest.mark.parametrize(
    ("signals", "grace"), [([signal.SIGINT, signal.SIGINT], 30.0), ([signal.SIGTERM], 0.2)]
)
def test_a_job_that_does_not_end_is_killed_with_all_that_it_started(signals, grace, tmp_path):
    script = (
        f"trap '' INT TERM; (trap '' INT TERM; sleep 60) & echo $! > {tmp_path}/child; echo ready;"
        " wait; sleep 60"
    )
    printed, seconds = interrupt(tmp_path, script, signals, grace)
    assert printed[-1] == f"[('a', -9, True)] ['b'] {int(signals[0])}" and seconds < 10
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    for _ in range(200):
        # A zombie has ended as well; its parent just has not collected it.
        if not child.exists() or "Z" in (child / "stat").read_text().split()[2]:
            return
        time.sleep(0.01)
    pytest.fail(f"process {child.name} is still there")


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    run_jobs([], [{}])
    assert signal.getsignal(signal.SIGTERM) is before
