"""The processes of one run, as torchrun or accelerate starts them: who leads, what they tell each
other, and how the failure of one ends all.

What they say goes through torch.distributed's store, key by key, so that who is late, or gone, is
known by its number; only tensors go through the process group.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from modulate.errors import DataError, RankError
from modulate.utils.file_lock import is_running
from modulate.utils.interrupts import StopRequest

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = 1800.0
"""Seconds that a process waits for another: the first epoch's features of one step may take many
minutes.
"""

GLANCE = 1.0
"""Seconds that a process waits before it looks whether the other one is still there."""

FAREWELL = 10.0
"""Seconds that the first process, which may keep the store, stays for the others to read it."""

_blocks = count(1)
"""Numbers of the blocks of one fate in this process: what is said in one is not heard in another.
"""


@dataclass
class ProcessGroup:
    """One process, number ``rank`` of ``size``, and its talk with the others: all must say the same
    things in the same order.

    ``store``: of torch.distributed, None for a process alone, for whom every method is what it
    would be without a processes. ``first_here``: it is its machine's first. ``device``: type of its
    device. ``shards``: the host's layers are to be divided among all; ``reshard``: and given up
    again between forward and backward.
    """

    rank: int = 0
    size: int = 1
    store: Any = None
    patience: float = PATIENCE
    first_here: bool = True
    device: str = "cpu"
    shards: bool = False
    reshard: bool = True

    def __post_init__(self) -> None:
        self._block, self._count, self._open = (
            0,
            0,
            False,
        )  # block and exchange that this process is in

    @property
    def leads(self) -> bool:
        """Whether this process writes, logs and shows; it alone holds the run."""
        return self.rank == 0

    # --- one fate

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Let an error that ends the block in one process end it in all: the others get a
        :class:`RankError` where they next wait. Nested: once.
        """
        if self.size == 1 or self._open:
            yield
            return
        self._open = True
        self._block = next(_blocks)
        self._count = 0
        self.introduce(os.getpid())
        try:
            yield
        except BaseException as error:
            self._post(error)
            raise
        finally:
            self._open = False
            self._part()

    def _post(self, error: BaseException) -> None:
        try:
            if not self.store.check([self._key("failed")]):
                self._set(
                    "failed", {"rank": self.rank, "error": f"{type(error).__name__}: {error}"}
                )
        except RuntimeError:
            pass  # the store is gone, and with it who would have read

    def _part(self) -> None:
        """Say goodbye; the first process waits a little, since the store may end with it."""
        try:
            self._set(f"left/{self.rank}", True)
            until = time.monotonic() + FAREWELL
            others = set(range(self.size)) if self.leads else set()
            while others and time.monotonic() < until:
                others = {
                    rank
                    for rank in others
                    if not self.store.check([self._key(f"left/{rank}")]) and not self._gone(rank)
                }
                time.sleep(0.02 if others else 0)
        except RuntimeError:
            pass  # the store is gone, and with it who would have read

    # --- talk

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value`` (what fits JSON), by rank.

        Raises :class:`RankError` when one has failed, or does not come.
        """
        if self.size == 1:
            return [value]
        with self._talk() as n:
            self._set(f"{n}/{self.rank}", value)
            return [self._get(f"{n}/{rank}", rank) for rank in range(self.size)]

    def meet(self) -> None:
        """Wait until every process is here."""
        self.gather(None)

    def told(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives the first process, which alone calls it; what it returns fits
        JSON.
        """
        found: T = self.gather(make() if self.leads else None)[0]
        return found

    def relay(self, state: T, work: Callable[[T], T]) -> T:
        """Let the processes work one after the other, each on the ``state`` (what fits JSON) that
        the one before it left; return what the last one left.
        """
        if self.size == 1:
            return work(state)
        with self._talk() as n:
            before = self._get(f"{n}/{self.rank - 1}", self.rank - 1) if self.rank else state
            self._set(f"{n}/{self.rank}", work(before))
            last: T = self._get(f"{n}/{self.size - 1}", self.size - 1)
            return last

    def in_turn(self, work: Callable[[], None]) -> None:
        """Let the first process work, then every other machine's first, then all others: what they
        find made, on a disk of their own or a shared one, is whole.
        """
        mine = 0 if self.leads else 1 if self.first_here else 2
        for turn in range(3 if self.size > 1 else 1):
            if turn == mine:
                work()
            self.meet()

    def agreed(self, stop: StopRequest) -> StopRequest:
        """Return what all know of being asked to stop: a request to any process is one to all."""
        if self.size == 1:
            return stop
        common = StopRequest()
        for number in self.gather(int(stop.requested or 0)):
            if number:
                common.request(number)
        return common

    def same(self, what: str, value: Any) -> None:
        """Raise :class:`DataError` naming the process whose ``value`` (what fits JSON) is not the
        first one's.
        """
        values = self.gather(value)
        wrong = [rank for rank in range(self.size) if values[rank] != values[0]]
        if wrong:
            raise DataError(
                f"Process {wrong[0]} of {self.size} has another {what} than process 0. All need the"
                " same files, on a disk that they share or in like copies, and the same versions"
                " of everything."
            )

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of ``items``: the parts laid end to end are the whole."""
        return items[
            len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size
        ]

    # --- tensors

    def add(self, tensor: "torch.Tensor") -> None:
        """Add up ``tensor`` over all processes, in place. Meet before: who fails here is only
        noticed when torch's own patience ends.
        """
        if self.size > 1:
            import torch.distributed as dist

            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                self._look_for_failure()
                raise RankError(
                    f"Process {self.rank} of {self.size} could not add up gradients with the"
                    f" others: {error}"
                ) from error

    # --- the store

    def _key(self, name: str) -> str:
        return f"{self._block}/{name}"

    def _set(self, name: str, value: Any) -> None:
        self.store.set(self._key(name), json.dumps(value))

    @contextmanager
    def _talk(self) -> Iterator[int]:
        """Number an exchange; what was said in the one before it has been read by all once this one
        is through.
        """
        self._count += 1
        try:
            yield self._count
        except RankError:
            raise
        except RuntimeError as error:  # of the store
            if not isinstance(error, _store_errors()):
                raise
            raise RankError(
                f"Process {self.rank} of {self.size} cannot reach the others any more; look for"
                f" what ended process 0. {error}"
            ) from error
        self.store.delete_key(self._key(f"{self._count - 1}/{self.rank}"))

    def _get(self, name: str, rank: int) -> Any:
        key = self._key(name)
        since = time.monotonic()
        pause = 0.0002
        while not self.store.check([key]):
            self._look_for_failure()
            waited = time.monotonic() - since
            if waited > GLANCE and self._gone(rank) and not self.store.check([key]):
                self._look_for_failure()
                raise RankError(
                    f"Process {rank} of {self.size} is gone without a word: it was killed, or"
                    " crashed. The same command continues from the last checkpoint."
                )
            if waited > self.patience:
                raise RankError(
                    f"Process {rank} of {self.size} did not come within {self.patience:g} s; it"
                    f" hangs, is gone, or has far more to do than process {self.rank}."
                )
            time.sleep(pause)  # in Python, so that signals are heard
            pause = min(0.05, pause * 1.5)
        return json.loads(self.store.get(key))

    def introduce(self, pid: int) -> None:
        """Tell the others on this machine which process to look for when this one does not come."""
        self._set(f"here/{self.rank}", [pid, socket.gethostname()])

    def _gone(self, rank: int) -> bool:
        """Return whether ``rank`` was a process of this machine that is no more."""
        if not self.store.check([self._key(f"here/{rank}")]):
            return False
        pid, host = json.loads(self.store.get(self._key(f"here/{rank}")))
        return host == socket.gethostname() and not is_running(pid)

    def _look_for_failure(self) -> None:
        if self.store.check([self._key("failed")]):
            failed = json.loads(self.store.get(self._key("failed")))
            raise RankError(
                f"Process {failed['rank']} of {self.size} failed, and so all end. {failed['error']}"
            )


def _store_errors() -> tuple[type[BaseException], ...]:
    import torch.distributed as dist

    return dist.DistStoreError, dist.DistNetworkError
