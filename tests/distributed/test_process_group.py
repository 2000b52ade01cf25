"""What the processes of a run tell each other; here each is a thread, and the store is torch's own
in memory.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from modulate.distributed import process_group as team_module
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError, RankError
from modulate.utils.interrupts import StopRequest


def together(work, size=3, **more):
    """Run ``work(processes)`` in every process of a team; return what each returned, or the error
    that ended it.
    """
    store = HashStore()

    def one(rank):
        try:
            return work(ProcessGroup(rank, size, store, timeout=20.0, **more))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.fixture
def one_block(monkeypatch):
    """Threads share a process: let all be in the same block of one fate."""
    monkeypatch.setattr(team_module, "_blocks", repeat(1))
    monkeypatch.setattr(team_module, "SHUTDOWN_GRACE", 2.0)


def test_the_first_process_leads():
    assert [ProcessGroup(rank, 3).is_main_process for rank in range(3)] == [
        True,
        False,
        False,
    ] and ProcessGroup().is_main_process


def test_everyone_gets_everyone_s_values_by_rank_time_after_time():
    def work(processes):
        found = [processes.all_gather({"rank": processes.rank, "round": n}) for n in range(3)]
        return [processes._exchange, *found]

    wanted = [[{"rank": rank, "round": n} for rank in range(3)] for n in range(3)]
    assert together(work) == [[3, *wanted]] * 3


def test_what_was_said_is_forgotten_once_all_have_read_it():
    def work(processes):
        for _ in range(4):
            processes.barrier()
        return [
            n
            for n in range(1, 5)
            if processes.store.check([processes._key(f"{n}/{processes.rank}")])
        ]

    assert together(work) == [[4]] * 3


def test_the_first_process_alone_makes_what_all_are_told():
    made = []
    assert together(
        lambda processes: processes.broadcast(lambda: (made.append(processes.rank), "made")[1])
    ) == ["made"] * 3 and made == [0]


def test_a_state_goes_from_one_to_the_next_and_all_get_the_last():
    assert (
        together(
            lambda processes: processes.chain("start", lambda state: f"{state} {processes.rank}")
        )
        == ["start 0 1 2"] * 3
    )


def test_in_turn_the_first_works_then_every_machine_s_first_then_all_others():
    done = []

    def work(processes):
        processes.is_local_main_process = processes.rank in (0, 2)
        processes.main_process_first(lambda: (time.sleep(0.02), done.append(processes.rank)))
        return len(done)

    assert together(work, size=5) == [5] * 5
    assert done[:2] == [0, 2] and sorted(done[2:]) == [1, 3, 4]


def test_a_request_to_stop_any_is_one_to_all():
    def work(processes):
        stop = StopRequest()
        quiet = processes.agree_on_stop(stop).requested
        if processes.rank == 1:
            stop.request(signal.SIGTERM)
        return quiet, processes.agree_on_stop(stop).requested

    assert together(work) == [(None, signal.SIGTERM)] * 3


def test_who_has_other_values_than_the_first_is_named():
    assert together(lambda processes: processes.require_equal("recipe", {"a": 1})) == [None] * 3
    for error in together(lambda processes: processes.require_equal("recipe", processes.rank == 2)):
        assert isinstance(error, DataError) and str(error).startswith(
            "Process 2 of 3 has another recipe than process 0."
        )


@pytest.mark.parametrize(("items", "size"), [(7, 3), (2, 3), (6, 3), (0, 2), (5, 1)])
def test_the_parts_laid_end_to_end_are_the_whole_and_nearly_of_one_length(items, size):
    parts = [ProcessGroup(rank, size).local_part(range(items)) for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_alone_is_its_own_team():
    alone = ProcessGroup()
    stop = StopRequest()
    tensor = torch.ones(2)
    done = []
    with alone.fail_together():
        assert (
            alone.all_gather(3) == [3]
            and alone.broadcast(lambda: 4) == 4
            and alone.chain(1, lambda s: s + 1) == 2
        )
        alone.main_process_first(lambda: done.append(1))
        alone.require_equal("thing", object())
        alone.all_reduce_sum(tensor)
    assert alone.agree_on_stop(stop) is stop and done == [1] and tensor.tolist() == [1, 1]


def test_tensors_are_added_up_over_several_processes_and_a_failure_there_is_one_of_the_team(
    monkeypatch,
):
    processes = ProcessGroup(1, 2, HashStore())
    tensor = torch.ones(2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda given: given.mul_(2))
    processes.all_reduce_sum(tensor)
    assert tensor.tolist() == [2, 2]

    def broken(given):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    with pytest.raises(
        RankError,
        match=("Process 1 of 2 could not sum gradients with the others: connection closed by peer"),
    ):
        processes.all_reduce_sum(tensor)
    processes._publish_failure(ValueError("first"))
    with pytest.raises(RankError, match="Process 1 of 2 failed, so all processes end"):
        processes.all_reduce_sum(tensor)


# --- one fate


def test_the_error_of_one_ends_all_and_is_told_to_all(one_block):
    def work(processes):
        with processes.fail_together():
            if processes.rank == 1:
                raise ValueError("no such thing")
            processes.barrier()

    first, failed, last = together(work)
    assert isinstance(failed, ValueError)
    for error in (first, last):
        assert (
            isinstance(error, RankError)
            and str(error)
            == "Process 1 of 3 failed, so all processes end. ValueError: no such thing"
        )


def test_of_several_errors_the_first_is_told(one_block):
    def work(processes):
        with processes.fail_together():
            processes.barrier()
            time.sleep(0.1 * processes.rank)
            raise ValueError(f"from {processes.rank}")

    together(work)
    store = HashStore()
    processes = ProcessGroup(0, 2, store)
    processes._publish_failure(ValueError("first"))
    processes._publish_failure(ValueError("second"))
    with pytest.raises(
        RankError, match=r"Process 0 of 2 failed, so all processes end\. ValueError: first"
    ):
        processes._raise_if_failed()


def test_blocks_inside_a_block_are_that_block(one_block):
    def work(processes):
        with processes.fail_together():
            block = processes._block
            with processes.fail_together():
                processes.barrier()
            processes.barrier()
            return processes._block == block and processes._open

    assert together(work) == [True] * 3


def test_a_block_s_number_is_not_that_of_what_is_said_outside_of_blocks():
    spec = importlib.util.spec_from_file_location("fresh_team", team_module.__file__)
    sys.modules["fresh_team"] = fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    fresh.SHUTDOWN_GRACE = 0.0
    processes = fresh.ProcessGroup(0, 2, HashStore())
    outside = processes._block
    with processes.fail_together():
        assert processes._block != outside
    del sys.modules["fresh_team"]


def test_the_first_process_stays_until_the_others_have_left(one_block):
    def work(processes):
        with processes.fail_together():
            processes.announce_pid(os.getppid())  # whom a thread is not
            processes.barrier()
            start = time.monotonic()
            time.sleep(0.2 * processes.rank)
        return time.monotonic() - start

    first, _, last = together(work)
    assert last >= 0.4 and first >= 0.35


def test_leaving_takes_no_longer_than_the_slowest(one_block):
    def work(processes):
        start = time.monotonic()
        with processes.fail_together():
            processes.announce_pid(os.getppid())
            processes.barrier()
        return time.monotonic() - start

    assert max(together(work)) < 0.9


def test_an_error_of_the_work_itself_is_no_matter_of_the_store():
    def failing(state):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match=r"^shapes$"):
        ProcessGroup(0, 2, HashStore()).chain(0, failing)


def test_a_store_that_is_gone_is_said():
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    store = TCPStore("localhost", server.port, is_master=False, wait_for_workers=False)
    del server
    with pytest.raises(
        RankError,
        match=r"Process 0 of 2 can no longer reach the others; look for what ended process 0\.",
    ):
        ProcessGroup(0, 2, store).barrier()


# --- who does not come


def test_who_does_not_come_in_time_is_named():
    processes = ProcessGroup(0, 2, HashStore(), timeout=0.05)
    with pytest.raises(
        RankError, match=r"Process 1 of 2 did not arrive within 0\.05 s; .* than process 0"
    ):
        processes.barrier()
    last = ProcessGroup(0, 3, HashStore(), timeout=0.05)
    with pytest.raises(RankError, match="Process 2 of 3 did not arrive"):
        last.chain("start", lambda state: state)


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_who_is_gone_from_this_machine_is_named_long_before_patience_ends(monkeypatch):
    monkeypatch.setattr(team_module, "LIVENESS_INTERVAL", 0.05)
    store = HashStore()
    ProcessGroup(1, 2, store).announce_pid(dead())
    start = time.monotonic()
    with pytest.raises(
        RankError, match="Process 1 of 2 is gone without an error: it was killed, or it crashed"
    ):
        ProcessGroup(0, 2, store, timeout=60.0).barrier()
    assert time.monotonic() - start < 10


def test_who_lives_is_on_another_machine_or_is_unknown_is_not_gone():
    store = HashStore()
    processes = ProcessGroup(0, 3, store)
    assert not processes._is_dead(1)
    ProcessGroup(1, 3, store).announce_pid(os.getppid())
    assert not processes._is_dead(1)
    store.set(processes._key("here/2"), f'[{dead()}, "not-{socket.gethostname()}"]')
    assert not processes._is_dead(2)
