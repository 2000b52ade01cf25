"""Commands run as processes side by side: a failed one does not stop the others, a signal is passed
on to all. Needs no torch.
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

PASSED_ON = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that jobs are told of when we get them."""

GRACE = 120.0
"""Seconds that a job has to end after it was told to; it may be saving."""


@dataclass(frozen=True)
class Job:
    """One command. ``log``: file that takes its output, added to what is there."""

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``code``: exit status, negative for the signal that ended it.

    ``interrupted``: it had been told to stop.
    """

    name: str
    code: int
    seconds: float
    interrupted: bool = False


@dataclass
class Outcomes:
    """What came of several jobs. ``signum``: the signal that ended it early, None when all jobs
    were run; ``waiting``: jobs never started.
    """

    ended: list[Outcome] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    signum: int | None = None


@dataclass
class Listener:
    """Who is told: of a job's start, of its end, and several times a second which ones run."""

    started: Callable[[str], None] = lambda name: None
    ended: Callable[[Outcome], None] = lambda outcome: None
    running: Callable[[Sequence[str]], None] = lambda names: None


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    since: float
    told: bool = False


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    listener: Listener | None = None,
    grace: float = GRACE,
    poll: float = 0.2,
    handles: Sequence[int] = (),
) -> Outcomes:
    """Run every job, as many at once as there are ``slots``; a slot is what it adds to the
    environment of the jobs that it takes. Jobs inherit ``handles``.

    SIGINT, SIGTERM and SIGHUP are passed on: running jobs are told, and waited for until ``grace``
    seconds have passed or a second signal comes; then they are killed. No further job is started.
    Outside the main thread, where signals do not arrive, nothing of this happens.
    """
    listener = listener or Listener()
    waiting = deque(jobs)
    running = list[_Running]()
    outcomes = Outcomes()
    free = deque(range(len(slots)))
    with _signals() as caught:
        try:
            while running or (waiting and not caught):
                while waiting and free and not caught:
                    slot = free.popleft()
                    running.append(_start(waiting.popleft(), slot, slots[slot], handles))
                    listener.started(running[-1].job.name)
                _tell(running, caught, grace)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.slot)
                    outcomes.ended.append(
                        Outcome(
                            one.job.name,
                            one.process.returncode,
                            time.monotonic() - one.since,
                            one.told,
                        )
                    )
                    listener.ended(outcomes.ended[-1])
                listener.running([r.job.name for r in running])
                if running:
                    time.sleep(poll)
        finally:
            for one in running:  # only when something above raised
                _kill(one)
                one.process.wait()
    outcomes.waiting = [job.name for job in waiting]
    outcomes.signum = caught[0][0] if caught else None
    return outcomes


def _start(job: Job, slot: int, extra: Mapping[str, str], handles: Sequence[int]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        log.write(
            f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {' '.join(job.command)}\n".encode()
        )
        log.flush()
        # A session of its own: Ctrl-C at the terminal reaches us alone, so that each job is told
        # once.
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **extra},
            start_new_session=True,
            pass_fds=handles,
        )
    return _Running(job, process, slot, time.monotonic())


def _tell(running: Sequence[_Running], caught: Sequence[tuple[int, float]], grace: float) -> None:
    """Pass the first signal on to those that were not told; kill when there was a second, or when
    time is up.
    """
    if not caught:
        return
    signum, since = caught[0]
    for one in running:
        if not one.told:
            one.process.send_signal(signum)  # to it alone: what it has started is its own to end
            one.told = True
    if len(caught) > 1 or time.monotonic() - since > grace:
        for one in running:
            _kill(one)


def _kill(one: _Running) -> None:
    """End a job and whatever it has started."""
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(one.process.pid, signal.SIGKILL)


@contextmanager
def _signals() -> Iterator[list[tuple[int, float]]]:
    """Note (signal, when) instead of acting on it, for the length of a ``with`` block."""
    caught: list[tuple[int, float]] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {
        s: signal.signal(s, lambda signum, frame: caught.append((signum, time.monotonic())))
        for s in PASSED_ON
    }
    try:
        yield caught
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def tail(log: Path, lines: int = 6, width: int = 400) -> list[str]:
    """Return the last lines of a log's last attempt, each cut to ``width`` characters; none that
    are empty or only mark a place in the line above.
    """
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - (64 << 10)))
        text = file.read().decode("utf-8", "replace")
    found = [
        line.rstrip()
        for line in f"\n{text}".rpartition("\n--- ")[2].splitlines()[1:]
        if line.strip(" ^~")
    ]
    return [line if len(line) <= width else f"{line[:width]}…" for line in found[-lines:]]
