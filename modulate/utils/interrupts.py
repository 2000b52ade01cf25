"""Asked to stop: SIGINT, SIGTERM and SIGHUP become a request that a run answers when it has saved
itself.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modulate.errors import Interrupted


class StopRequest:
    """Whether a run was asked to stop, and by what."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None

    def request(self, number: int) -> None:
        """Ask the run to stop at the next place where it can."""
        self.requested = signal.Signals(number)

    def check(self) -> None:
        """Raise :class:`Interrupted` when the run was asked to stop.

        Call it where everything that must not be lost is saved.
        """
        if self.requested is not None:
            raise Interrupted(
                f"Stopped by {self.requested.name}; everything up to here is saved. The same"
                " command continues.",
                self.requested,
            )


@contextmanager
def graceful() -> Iterator[StopRequest]:
    """Let SIGINT, SIGTERM and SIGHUP ask for a stop, for the length of a block in the main thread;
    a second one acts at once, as it would have without this.

    One that is ignored, as `nohup` has it, stays so.
    """
    stop = StopRequest()
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        restore()
        stop.request(number)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
