"""Feed inputs to one parser, and count its results and findings."""

import base64
import collections
import mmap
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.paths import ROOT

SLOW = 2.0
"""Processor time, s, from which an input is a finding."""
HANG = 20.0
"""Processor time, s, after which an input is interrupted."""
MEMORY = 256
"""MiB by which one input may raise the peak memory of the process."""
MESSAGE = 4000
"""Longest text of an error, characters."""


class Hang(BaseException):
    """Raised when an input takes longer than HANG."""


class FuzzStats:
    """Counts and findings of one parser's inputs."""

    def __init__(self, parser: Any, last_input: mmap.mmap | None = None) -> None:
        self.parser = parser
        self.last_input = last_input
        self.inputs = 0
        self.accepted = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self.findings: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0
        self.began = time.perf_counter()
        self.cpu = time.process_time()
        self.peak = peak_memory()
        self.peak_before = self.peak

    def feed(self, data: bytes) -> None:
        """Feed one input to the parser and count the result."""
        # If the parser kills the process, the parent still finds its last input here.
        if self.last_input is not None:
            self.last_input[: 4 + len(data)] = len(data).to_bytes(4, "little") + data
        self.inputs += 1
        # Processor time, not wall time: a busy machine must not make an input look slow.
        start = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
        try:
            results = self._parsed(self.parser.parse, data)
            if self.parser.read is not None and self.inputs % 100 == 0:
                again = self._parsed(through_file(self.parser), data, counted=False)
                if self.parser.same and len(results) != len(again):
                    self.add_finding(
                        "DIFFERS", "a file is accepted or refused unlike the same bytes", data
                    )
            for result in results:
                self.accepted += 1
                self.parser.check(result, data)
        except Hang:
            self.add_finding("HANG", f"takes longer than {HANG} s", data)
        except Exception as error:  # every other error is a finding, and fuzzing goes on
            text = f"{_own_line(error)}: {str(error)[:200]}"
            self.add_finding(type(error).__name__, text, data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        self._measure(time.process_time() - start, data)

    def _parsed(
        self, parse: Callable[[bytes], Any], data: bytes, counted: bool = True
    ) -> list[Any]:
        """Return the result in a list, or an empty list if the input is refused."""
        from modulate.errors import ModulateError

        try:
            return [parse(data)]
        except ModulateError as error:
            self.refused[type(error).__name__] += counted
            if len(str(error)) > MESSAGE:
                self.add_finding("MESSAGE", f"an error text of {len(str(error))} characters", data)
            return []

    def _measure(self, seconds: float, data: bytes) -> None:
        self.slowest = max(self.slowest, seconds)
        if seconds > SLOW:
            self.add_finding("SLOW", f"{seconds:.1f} s", data)
        now = peak_memory()
        if now - self.peak > MEMORY:
            self.add_finding("MEMORY", f"{now - self.peak:.0f} MiB more", data)
        self.peak = now

    def add_finding(self, kind: str, text: str, data: bytes) -> None:
        """Count a finding; keep the shortest input of each kind."""
        key = kind if kind.isupper() else f"{kind} {text.partition(': ')[0]}"
        known = self.findings.setdefault(
            key, {"kind": kind, "text": text, "count": 0, "input": base64.b64encode(data).decode()}
        )
        known["count"] += 1
        if len(data) < 0.75 * len(known["input"]):  # base64 is 4/3 as long as the bytes
            known |= {"text": text, "input": base64.b64encode(data).decode()}

    def result(self) -> dict[str, Any]:
        """Return the counts and findings as a JSON tree."""
        seconds = max(time.process_time() - self.cpu, 1e-3)
        return {
            "what": self.parser.what,
            "inputs": self.inputs,
            "cpu_seconds": round(seconds, 1),
            "per_second": round(self.inputs / seconds),
            "accepted": self.accepted,
            "refused": dict(self.refused),
            "findings": list(self.findings.values()),
            "slowest_s": round(self.slowest, 3),
            "grown_mib": round(self.peak - self.peak_before),
        }


def _own_line(error: Exception) -> str:
    """Return the innermost line of this repository that an error passed, as "file:line"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if str(ROOT) in frame.filename and ".venv" not in frame.filename
    ]
    frame = own[-1] if own else frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def peak_memory() -> float:
    """Return the peak memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def through_file(parser: Any) -> Callable[[bytes], Any]:
    """Return a function that writes bytes to a file and parses that, as with users' files."""
    from tests.durability import parsers

    return parsers.through_file(parser.read, f"{parser.name}{parser.suffix}")


def install_timeout() -> None:
    """Raise Hang in the parser when an input takes too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGVTALRM, stop)
