"""Time calls side by side, for ratios close to 1 on a machine whose speed fluctuates.

Speed changes every few tenths of a second. Between calls of seconds that run one after the other,
this hides 1 %. Calls that take turns of 10 ms on one core are all affected equally.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import nn

from benchmarks.speed.timing import Cost

SLICE = 0.01
"""Minimum length of a turn, s; it ends when the next module of a model starts."""


def side_by_side(
    calls: Sequence[Callable[[Any], Any]], models: Sequence[nn.Module], repeats: int
) -> list[list[Cost]]:
    """Time ``calls`` on equal ``models`` ``repeats`` times; return the costs of each call.

    Models, order and core change each time. Use one thread of torch; GPUs are not supported,
    because they run asynchronously.
    """
    count = len(calls)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    rounds = [
        _round(
            calls,
            [models[(which + index) % count] for which in range(count)],
            index % count,
            {cores[index % len(cores)]} if cores else set(),
        )
        for index in range(repeats + 1)
    ]
    return [list(costs) for costs in zip(*rounds[1:], strict=True)]  # the first round warms up


def _round(
    calls: Sequence[Callable[[Any], Any]], models: Sequence[nn.Module], first: int, core: set[int]
) -> list[Cost]:
    turns = Turns(len(calls))

    def run(me: int) -> None:
        turns.wait(me)
        handles: list[Any] = []
        try:
            if core:
                os.sched_setaffinity(0, core)  # of this thread
            for module in models[me].modules():
                if not next(module.children(), None):
                    handles.append(
                        module.register_forward_pre_hook(lambda *args: turns.hand_over(me))
                    )
            turns.start_clock()
            calls[me](models[me])
        finally:
            turns.hand_over(me, last=True)
            for handle in handles:
                handle.remove()

    with ThreadPoolExecutor(len(calls)) as pool:
        going = [pool.submit(run, me) for me in range(len(calls))]
        turns.gates[first].release()
        for each in going:
            each.result()
    return turns.costs


class Turns:
    """Lets threads run one at a time, each until it hands over to the next.

    ``costs[i]`` is the time that thread i has used in its turns.
    """

    def __init__(self, parties: int) -> None:
        self.left = list(range(parties))
        self.gates = [threading.Semaphore(0) for _ in range(parties)]
        self.costs = [Cost(0.0, 0.0)] * parties
        self.begun = Cost(0.0, 0.0)

    def start_clock(self) -> None:
        """Start the clock of the current turn."""
        self.begun = Cost(time.thread_time(), time.perf_counter())

    def wait(self, me: int) -> None:
        """Block until it is the turn of thread ``me``."""
        self.gates[me].acquire()
        self.start_clock()

    def hand_over(self, me: int, last: bool = False) -> None:
        """Hand over to the next thread and block until the next turn, unless it was the ``last``.

        Does nothing if the turn is shorter than SLICE.
        """
        if not last and time.perf_counter() - self.begun.wall < SLICE:
            return
        before = self.costs[me]
        self.costs[me] = Cost(
            before.cpu + time.thread_time() - self.begun.cpu,
            before.wall + time.perf_counter() - self.begun.wall,
        )
        after = self.left[(self.left.index(me) + 1) % len(self.left)]
        if last:
            self.left.remove(me)
        if self.left:
            self.gates[after].release()
        if not last:
            self.wait(me)
