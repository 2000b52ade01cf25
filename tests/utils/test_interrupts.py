"""The first signal becomes a request; the second acts at once."""

import os
import signal

import pytest

from modulate.errors import Interrupted
from modulate.utils.interrupts import StopRequest, graceful


@pytest.fixture(autouse=True)
def usual_handlers():
    """Set the handlers of a terminal; a background job or nohup ignores some signals."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_is_a_request_that_the_run_answers_at_its_next_check(number, code):
    before = signal.getsignal(number)
    with graceful() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested == number
        with pytest.raises(
            Interrupted,
            match=(
                rf"Stopped by {number.name}; everything up to here is saved\. The same command"
                r" continues\."
            ),
        ) as raised:
            stop.check()
    assert raised.value.code == code and signal.getsignal(number) is before


def test_a_second_ctrl_c_acts_at_once():
    with graceful() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_request_nothing_is_raised():
    StopRequest().check()


def test_handlers_are_restored_when_the_block_ends_without_a_request():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with graceful():
        assert all(
            signal.getsignal(number) is not handler
            for number, handler in zip(numbers, before, strict=True)
        )
    assert [signal.getsignal(number) for number in numbers] == before
