"""Calls timed side by side: ratios near to 1 on a machine that is faster for some tenths of a
second and then slower.

Between calls of seconds that run one after the other, that hides 1 %. Between calls that take turns
of 10 ms on one core it is the same for all of them.
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
"""Seconds of a turn at least; it ends when the next part of a model begins."""


def side_by_side(
    calls: Sequence[Callable[[Any], Any]], models: Sequence[nn.Module], repeats: int
) -> list[list[Cost]]:
    """Time ``calls`` on ``models``, equal ones, ``repeats`` times; return the costs of each.

    Which call has which model, which begins, and on which core they run, changes each time. For one
    thread of torch, and not for GPUs, which are behind what they are told.
    """
    n = len(calls)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    rounds = [
        _round(
            calls,
            [models[(which + i) % n] for which in range(n)],
            i % n,
            {cores[i % len(cores)]} if cores else set(),
        )
        for i in range(repeats + 1)
    ]
    return [list(costs) for costs in zip(*rounds[1:], strict=True)]  # the first time is not counted


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
            turns.begin_anew()
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
    """Lets threads run one at a time, each until it hands over to the next. ``costs[i]``: what the
    i-th has taken in its turns.
    """

    def __init__(self, parties: int) -> None:
        self.left = list(range(parties))
        self.gates = [threading.Semaphore(0) for _ in range(parties)]
        self.costs = [Cost(0.0, 0.0)] * parties
        self.begun = Cost(0.0, 0.0)

    def begin_anew(self) -> None:
        """Let the turn begin now."""
        self.begun = Cost(time.thread_time(), time.perf_counter())

    def wait(self, me: int) -> None:
        """Go on when it is one's turn."""
        self.gates[me].acquire()
        self.begin_anew()

    def hand_over(self, me: int, last: bool = False) -> None:
        """Let the next one go on, and wait until one's turn comes again, unless this was the
        ``last``; nothing happens as long as a turn is young.
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
