"""Collective operations of one run's processes, and the rule that they fail together.

Values travel through torch.distributed's key-value store rather than through collectives, so that
an error can name the rank that is late or gone. Only tensors use torch's collectives.
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

TIMEOUT = 1800.0
"""Seconds to wait for another process. In the first epoch, a step may compute features for
minutes."""

LIVENESS_INTERVAL = 1.0
"""Seconds to wait for a process before checking whether it is still alive."""

SHUTDOWN_GRACE = 10.0
"""Seconds that rank 0, which may host the store, stays so that the others can read it."""

_blocks = count(1)
"""Numbers of this process's :meth:`ProcessGroup.fail_together` blocks. Keys carry the number, so a
new block never reads values of an earlier one."""


@dataclass
class ProcessGroup:
    """One process, number ``rank`` of ``size``, and its collective operations.

    All processes must call the same operations in the same order. ``store``: torch.distributed's
    store, or None for a single process, for which every operation is local. ``timeout``: seconds.
    ``is_local_main_process``: rank 0 of its machine. ``device``: device type. ``shards``: whether
    FSDP shards the host's layers; ``reshard``: and frees them between forward and backward.
    """

    rank: int = 0
    size: int = 1
    store: Any = None
    timeout: float = TIMEOUT
    is_local_main_process: bool = True
    device: str = "cpu"
    shards: bool = False
    reshard: bool = True

    def __post_init__(self) -> None:
        self._block = 0
        self._exchange = 0
        self._open = False  # inside a fail_together block

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which alone writes, logs, prints, and locks the run's folder."""
        return self.rank == 0

    # --- failing together

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """End the block in all processes when an error ends it in one.

        The others raise :class:`RankError` at their next collective operation. Nested blocks do
        nothing.
        """
        if self.size == 1 or self._open:
            yield
            return
        self._open = True
        self._block = next(_blocks)
        self._exchange = 0
        self.announce_pid(os.getpid())
        try:
            yield
        except BaseException as error:
            self._publish_failure(error)
            raise
        finally:
            self._open = False
            self._leave()

    def _publish_failure(self, error: BaseException) -> None:
        try:
            if not self.store.check([self._key("failed")]):
                self._set(
                    "failed", {"rank": self.rank, "error": f"{type(error).__name__}: {error}"}
                )
        except RuntimeError:
            pass  # The store is gone, and so is every process that could have read it.

    def _leave(self) -> None:
        """Leave the block; rank 0 waits for the others, since the store may end with it."""
        try:
            self._set(f"left/{self.rank}", True)
            until = time.monotonic() + SHUTDOWN_GRACE
            others = set(range(self.size)) if self.is_main_process else set()
            while others and time.monotonic() < until:
                others = {
                    rank
                    for rank in others
                    if not self.store.check([self._key(f"left/{rank}")]) and not self._is_dead(rank)
                }
                time.sleep(0.02 if others else 0)
        except RuntimeError:
            pass  # The store is gone, and so is every process that could have read it.

    # --- collective operations on values

    def all_gather(self, value: Any) -> list[Any]:
        """Return the JSON-serializable ``value`` of every process, by rank.

        Raises :class:`RankError` if a process failed or does not arrive in time.
        """
        if self.size == 1:
            return [value]
        with self._next_exchange() as number:
            self._set(f"{number}/{self.rank}", value)
            return [self._get(f"{number}/{rank}", rank) for rank in range(self.size)]

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.all_gather(None)

    def broadcast(self, compute: Callable[[], T]) -> T:
        """Run ``compute`` on rank 0 and return its JSON-serializable result on every rank."""
        result: T = self.all_gather(compute() if self.is_main_process else None)[0]
        return result

    def chain(self, state: T, work: Callable[[T], T]) -> T:
        """Run ``work`` on one rank after another, each on the result of the rank before it.

        ``state``: rank 0's input, JSON-serializable like every result. Returns the last rank's
        result on every rank.
        """
        if self.size == 1:
            return work(state)
        with self._next_exchange() as number:
            before = self._get(f"{number}/{self.rank - 1}", self.rank - 1) if self.rank else state
            self._set(f"{number}/{self.rank}", work(before))
            last: T = self._get(f"{number}/{self.size - 1}", self.size - 1)
            return last

    def main_process_first(self, work: Callable[[], None]) -> None:
        """Run ``work`` on rank 0, then on the other machines' first ranks, then on all others.

        Later processes find complete files, whether the disk is shared or each machine's own.
        """
        if self.is_main_process:
            own_turn = 0
        elif self.is_local_main_process:
            own_turn = 1
        else:
            own_turn = 2
        for turn in range(3 if self.size > 1 else 1):
            if turn == own_turn:
                work()
            self.barrier()

    def agree_on_stop(self, stop: StopRequest) -> StopRequest:
        """Return a stop request that is set on all ranks if it is set on any."""
        if self.size == 1:
            return stop
        common = StopRequest()
        for number in self.all_gather(int(stop.requested or 0)):
            if number:
                common.request(number)
        return common

    def require_equal(self, what: str, value: Any) -> None:
        """Raise :class:`DataError` if a rank's JSON-serializable ``value`` differs from rank 0's.

        The error names that rank and, with ``what``, the value.
        """
        values = self.all_gather(value)
        wrong = [rank for rank in range(self.size) if values[rank] != values[0]]
        if wrong:
            raise DataError(
                f"Process {wrong[0]} of {self.size} has another {what} than process 0. All need the"
                " same files, on a shared disk or in identical copies, and the same versions of"
                " everything."
            )

    def local_part(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's contiguous part of ``items``; in rank order, the parts join to
        ``items``.
        """
        return items[
            len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size
        ]

    # --- collective operations on tensors

    def all_reduce_sum(self, tensor: "torch.Tensor") -> None:
        """Sum ``tensor`` over all processes, in place.

        Call :meth:`barrier` first: a process that fails in here is noticed only when torch's own
        timeout ends.
        """
        if self.size > 1:
            import torch.distributed as dist

            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                self._raise_if_failed()
                raise RankError(
                    f"Process {self.rank} of {self.size} could not sum gradients with the others:"
                    f" {error}"
                ) from error

    # --- the store

    def _key(self, name: str) -> str:
        return f"{self._block}/{name}"

    def _set(self, name: str, value: Any) -> None:
        self.store.set(self._key(name), json.dumps(value))

    @contextmanager
    def _next_exchange(self) -> Iterator[int]:
        """Number an exchange, and delete this rank's value of the one before it.

        Once an exchange is over, every rank has read all values of the previous one.
        """
        self._exchange += 1
        try:
            yield self._exchange
        except RankError:
            raise
        except RuntimeError as error:  # of the store
            if not isinstance(error, _store_errors()):
                raise
            raise RankError(
                f"Process {self.rank} of {self.size} can no longer reach the others; look for what"
                f" ended process 0. {error}"
            ) from error
        self.store.delete_key(self._key(f"{self._exchange - 1}/{self.rank}"))

    def _get(self, name: str, rank: int) -> Any:
        key = self._key(name)
        since = time.monotonic()
        pause = 0.0002
        while not self.store.check([key]):
            self._raise_if_failed()
            waited = time.monotonic() - since
            if waited > LIVENESS_INTERVAL and self._is_dead(rank) and not self.store.check([key]):
                self._raise_if_failed()
                raise RankError(
                    f"Process {rank} of {self.size} is gone without an error: it was killed, or"
                    " it crashed. The same command continues from the last checkpoint."
                )
            if waited > self.timeout:
                raise RankError(
                    f"Process {rank} of {self.size} did not arrive within {self.timeout:g} s;"
                    f" it hangs, is gone, or has far more work than process {self.rank}."
                )
            time.sleep(pause)  # Not store.wait: Python must get the chance to handle signals.
            pause = min(0.05, pause * 1.5)
        return json.loads(self.store.get(key))

    def announce_pid(self, pid: int) -> None:
        """Publish this process's id, by which others on its machine check whether it is alive."""
        self._set(f"here/{self.rank}", [pid, socket.gethostname()])

    def _is_dead(self, rank: int) -> bool:
        """Return whether ``rank`` was a process of this machine and has ended."""
        if not self.store.check([self._key(f"here/{rank}")]):
            return False
        pid, host = json.loads(self.store.get(self._key(f"here/{rank}")))
        return host == socket.gethostname() and not is_running(pid)

    def _raise_if_failed(self) -> None:
        if self.store.check([self._key("failed")]):
            failed = json.loads(self.store.get(self._key("failed")))
            raise RankError(
                f"Process {failed['rank']} of {self.size} failed, so all processes end."
                f" {failed['error']}"
            )


def _store_errors() -> tuple[type[BaseException], ...]:
    import torch.distributed as dist

    return dist.DistStoreError, dist.DistNetworkError
