"""Turn SIGINT, SIGTERM and SIGHUP into requests that a run answers once it has saved its state."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modulate.errors import Interrupted


class StopRequest:
    """Whether a run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None

    def request(self, number: int) -> None:
        """Ask the run to stop at its next call of :meth:`check`."""
        self.requested = signal.Signals(number)

    def check(self) -> None:
        """Raise :class:`Interrupted` if the run was asked to stop.

        Call it only where everything that must not be lost is saved.
        """
        if self.requested is not None:
            raise Interrupted(
                f"Stopped by {self.requested.name}; everything up to here is saved. The same"
                " command continues.",
                self.requested,
            )


@contextmanager
def graceful() -> Iterator[StopRequest]:
    """Let the first SIGINT, SIGTERM or SIGHUP request a stop during a block in the main thread.

    A second signal acts at once, as without this block. A signal that is ignored, as SIGHUP under
    `nohup`, stays ignored.
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

    def request_stop(number: int, frame: FrameType | None) -> None:
        # Restored first, so that the user can still end a run that does not reach its next check.
        restore()
        stop.request(number)

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        restore()
