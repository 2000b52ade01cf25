"""Commands run as processes side by side. Imports no torch.

A failed job does not stop the others; signals are passed on to all.
"""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

FORWARDED_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that are passed on to jobs."""

GRACE = 120.0
"""Seconds that a job has to end after a signal; it may be saving a checkpoint."""

TAIL_BYTES = 64 << 10
"""Bytes from the end of a log within which its last lines are looked for."""

CaughtSignal = tuple[int, float]
"""Number of a signal, and when it came (time.monotonic)."""


@dataclass(frozen=True)
class Job:
    """One command. ``log``: file to which its output is appended."""

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    ``code``: exit status, negative for the signal that ended it. ``interrupted``: whether it had
    been sent a signal.
    """

    name: str
    code: int
    seconds: float
    interrupted: bool = False


@dataclass
class Outcomes:
    """How several jobs ended.

    ``waiting``: jobs that were never started. ``signum``: the signal that ended the run early, None
    without one.
    """

    ended: list[Outcome] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    signum: int | None = None


@dataclass
class Listener:
    """Callbacks: a job has started; a job has ended; several times a second, which ones run."""

    started: Callable[[str], None] = lambda name: None
    ended: Callable[[Outcome], None] = lambda outcome: None
    running: Callable[[Sequence[str]], None] = lambda names: None


@dataclass
class _RunningJob:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    started: float
    signaled: bool = False

    def outcome(self) -> Outcome:
        seconds = time.monotonic() - self.started
        return Outcome(self.job.name, self.process.returncode, seconds, self.signaled)

    def kill(self) -> None:
        """Kill the job and every process that it has started."""
        # It may have ended by itself in the meantime.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    listener: Listener | None = None,
    grace: float = GRACE,
    poll: float = 0.2,
    handles: Sequence[int] = (),
) -> Outcomes:
    """Run every job, at most ``len(slots)`` at a time.

    SIGINT, SIGTERM and SIGHUP are passed on to running jobs, and no further job is started. After
    ``grace`` seconds, or at a second signal, running jobs are killed. None of this happens outside
    the main thread, which alone receives signals.

    Args:
        jobs: the commands.
        slots: environment variables that a slot adds to those of each job it takes.
        listener: whom to notify.
        grace: seconds that jobs have to end after a signal.
        poll: seconds between two looks at the jobs.
        handles: file descriptors that jobs inherit.
    """
    listener = listener or Listener()
    waiting = deque(jobs)
    running: list[_RunningJob] = []
    outcomes = Outcomes()
    free_slots = deque(range(len(slots)))
    with _caught_signals() as caught:
        try:
            while running or (waiting and not caught):
                while waiting and free_slots and not caught:
                    slot = free_slots.popleft()
                    running.append(_start(waiting.popleft(), slot, slots[slot], handles))
                    listener.started(running[-1].job.name)
                _pass_on(caught, running, grace)
                for ended in _remove_ended(running):
                    free_slots.append(ended.slot)
                    outcomes.ended.append(ended.outcome())
                    listener.ended(outcomes.ended[-1])
                listener.running([job.job.name for job in running])
                if running:
                    time.sleep(poll)
        finally:
            # Jobs are left only when something above raised, such as a listener.
            for job in running:
                job.kill()
                job.process.wait()
    outcomes.waiting = [job.name for job in waiting]
    outcomes.signum = caught[0][0] if caught else None
    return outcomes


def _start(
    job: Job, slot: int, variables: Mapping[str, str], handles: Sequence[int]
) -> _RunningJob:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        # Marks where this attempt begins; see `tail`.
        header = f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {' '.join(job.command)}\n"
        log.write(header.encode())
        log.flush()
        # A session of its own: Ctrl-C at the terminal reaches only us, so each job gets one signal.
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
            pass_fds=handles,
        )
    return _RunningJob(job, process, slot, time.monotonic())


def _remove_ended(running: list[_RunningJob]) -> list[_RunningJob]:
    """Remove the jobs that have ended from ``running``, and return them."""
    ended = [job for job in running if job.process.poll() is not None]
    for job in ended:
        running.remove(job)
    return ended


def _pass_on(caught: Sequence[CaughtSignal], running: Sequence[_RunningJob], grace: float) -> None:
    """Send each job the first signal once; kill all at a second signal, or when time is up."""
    if not caught:
        return
    signum, since = caught[0]
    for job in running:
        if not job.signaled:
            # Only to the job itself, which ends its own children; `kill` takes the whole group.
            job.process.send_signal(signum)
            job.signaled = True
    if len(caught) > 1 or time.monotonic() - since > grace:
        for job in running:
            job.kill()


@contextmanager
def _caught_signals() -> Iterator[list[CaughtSignal]]:
    """Within a ``with`` block, record signals instead of acting on them."""
    caught: list[CaughtSignal] = []
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def record(signum: int, frame: object) -> None:
        caught.append((signum, time.monotonic()))

    previous = {signum: signal.signal(signum, record) for signum in FORWARDED_SIGNALS}
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def tail(log: Path, lines: int = 6, width: int = 400) -> list[str]:
    """Return the last lines of the last attempt in a log, each cut to ``width`` characters.

    Empty lines are left out, and so are a traceback's markers below a line (``^^^``).
    """
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    last_attempt = f"\n{text}".rpartition("\n--- ")[2]
    # Without the rest of the header line, which holds the command.
    shown = [line.rstrip() for line in last_attempt.splitlines()[1:] if line.strip(" ^~")]
    return [line if len(line) <= width else f"{line[:width]}…" for line in shown[-lines:]]
