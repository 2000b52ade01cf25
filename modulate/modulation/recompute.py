"""One forward of a host, known again when activation checkpointing runs parts of it once more.

A recomputation happens inside a backward, often in another thread and long after the block that
conditioned the forward has ended. What tells which forward is recomputed is the graph: autograd is
at a node that this very forward made, or at one that comes after it in the same checkpoint. Memory
addresses, or the order of calls, would not tell.
"""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor

from modulate.errors import ConditioningError
from modulate.hosts.hooks import may_run_modules

LEAF = 1 << 62
"""Sequence numbers from here on are of nodes that accumulate gradients of leaves; all forwards
share these.
"""

_numbers = count()

UNKNOWN = (
    "A backward runs the host's forward again, and which forward this is cannot be known: {why}. "
    "Gradients would be those of another forward, so this is refused. Call the backward while the "
    "modulation is attached as it was in the forward; checkpoint the decoder layers one by one "
    "rather than the whole host, with `use_reentrant=False`; a new forward inside a backward "
    "belongs into a `condition(…)` or `bare()` block of its own."
)

DETACHED = (
    "This backward goes through a forward that was made while a modulation was attached, and in "
    "which layers are checkpointed: they would be computed again without the modulation, which "
    "was detached since. Call the backward before `detach()`."
)


@dataclass(eq=False)
class ForwardPass:
    """What hooks do in one forward.

    ``plan``: where residuals are written, or None. ``lora``: whether the modulation's LoRA is on.
    ``begin``: autograd's sequence number at the start, −1 without gradients. ``task``: the
    backward in which the forward was made, −1 outside of any. ``fired``: decoder layers in which
    LoRA was added. ``recomputes``: whether parts of it ran inside a checkpoint.
    """

    plan: Any
    lora: bool
    begin: int = -1
    thread: int = field(default_factory=threading.get_ident)
    task: int = field(default_factory=lambda: backward_now())
    fired: set[int] = field(default_factory=set)
    recomputes: bool = False
    number: int = field(default_factory=lambda: next(_numbers))
    checkpoint: Callable[[], Any] = lambda: None

    def note_checkpoint(self) -> None:
        """Note whether what runs now will be computed again in the backward."""
        if self.begin >= 0 and not self.recomputes:
            # A reentrant checkpoint switches gradients off inside a forward that has them.
            self.recomputes = checkpoint_now() is not None or not torch.is_grad_enabled()


@dataclass(eq=False)
class CheckpointRegion:
    """The forwards of one attachment inside one checkpoint, in their order.

    ``running``: the recomputation of which ``done`` forwards have begun.
    """

    passes: list[ForwardPass] = field(default_factory=list)
    running: Callable[[], Any] = lambda: None
    done: int = 0

    def next(self, running: Any) -> ForwardPass | None:
        """Return the pass that comes next in one recomputation, or None."""
        if self.running() is not running:
            self.running = weakref.ref(running)
            self.done = 0
        self.done += 1
        return self.passes[self.done - 1] if self.done <= len(self.passes) else None


@dataclass(frozen=True)
class GraphMark:
    """What a node of the graph is told: the forward that made it, and the checkpoint around that."""

    passed: ForwardPass
    region: CheckpointRegion | None


def backward_now() -> int:
    """Return the number of the backward that this thread is in, −1 outside of any."""
    return torch._C._current_graph_task_id()


def checkpoint_now() -> Any:
    """Return what stands for the innermost checkpoint, or recomputation of one, that runs now.

    That is the hook by which torch's non-reentrant checkpoint packs saved tensors: each has one
    of its own, which lives as long as the tensors. None outside of any.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None or getattr(hooks[0], "__module__", "") != torch.utils.checkpoint.__name__:
        return None
    return hooks[0]


def _recomputes(hook: Any) -> bool:
    """Return whether what :func:`checkpoint_now` returned is a recomputation's."""
    return getattr(hook, "__qualname__", "").startswith("_recomputation_hook")


def save_a_marker() -> None:
    """Let the checkpoint that runs count one more saved tensor; its memory is freed at once.

    Torch compares the number, and the kind, of saved tensors with those of the recomputation. A
    forward with our hooks is so never taken for one without.
    """
    with torch.enable_grad():
        torch.zeros(0, 3, dtype=torch.complex64, device="cpu", requires_grad=True).exp()


class RecomputeTracker:
    """What forward of one attachment is running in a thread, or recomputed in its backward.

    ``idle``: of layers that run outside of any forward of the host. ``running``: the last forward
    that began and has not ended. ``opened``: the backward in which the block that lasts was
    entered, −1 outside of any. ``closed``: whether the attachment is gone.
    """

    def __init__(self) -> None:
        self.idle = ForwardPass(None, lora=True)
        self.running: ForwardPass | None = None
        self.opened = -1
        self.closed = False
        self._bare = ForwardPass(None, lora=False)  # a recomputed forward that was made before us
        self._since = torch.autograd._get_sequence_nr()
        # Held by the marks alone: what a region holds may belong to the checkpoint's own graph.
        self._regions: weakref.WeakKeyDictionary[Any, weakref.ref[CheckpointRegion]] = (
            weakref.WeakKeyDictionary()
        )
        self._unmarked: CheckpointRegion | None = (
            None  # the last one, until a forward in it is marked
        )
        self._again: dict[int, tuple[int, ForwardPass]] = {}  # thread → (backward, whole forward)

    # --- forwards

    def begin(self, passed: ForwardPass) -> None:
        """Note a forward that begins, and the checkpoint around it.

        Raises :class:`ConditioningError` for one that is run again outside of any backward.
        """
        self.running = passed
        around = checkpoint_now()
        if passed.task == -1 and _recomputes(around):
            raise ConditioningError(
                UNKNOWN.format(why="what it saved is read outside of a backward")
            )
        region = self._region(around)
        if region is None:
            self._unmarked = None
            if around is None:
                return
            self._unmarked = region = CheckpointRegion()
            self._regions[around] = weakref.ref(region)
        region.passes.append(passed)
        passed.recomputes = True
        passed.checkpoint = weakref.ref(around)
        save_a_marker()

    def _region(self, around: Any) -> CheckpointRegion | None:
        known = None if around is None else self._regions.get(around)
        return None if known is None else known()

    def remember(self, passed: ForwardPass, output: Tensor) -> None:
        """Mark all nodes that a forward made as those of ``passed``; ``output``: what it returned.

        The marks live as long as the graph does. Nodes from before the forward (of embeddings, or
        of the latents) are not its own.
        """
        mark = GraphMark(passed, self._region(passed.checkpoint()))
        self._unmarked = None
        todo = [output.grad_fn]
        while todo:
            node = todo.pop()
            if node is None or not passed.begin <= node._sequence_nr() < LEAF:
                continue
            marks = cast(Any, node.metadata)  # a dictionary, which torch annotates as a method
            if self in marks:
                continue
            marks[self] = mark
            if passed.recomputes:
                node.register_prehook(self._refuse_detached)
            todo += [before for before, _ in node.next_functions]

    def _refuse_detached(self, gradients: Any) -> None:
        if self.closed:
            raise ConditioningError(DETACHED)

    # --- recomputations

    def run_again(self) -> None:
        """Begin to run a whole forward again in a backward.

        Raises :class:`ConditioningError` where it cannot be known which one.
        """
        running = checkpoint_now()
        if running is None:
            raise ConditioningError(
                UNKNOWN.format(why="it is not run again by a non-reentrant checkpoint of torch")
            )
        save_a_marker()
        found = self._upstream()
        if not found:
            raise ConditioningError(
                UNKNOWN.format(
                    why="the graph holds none that was made while attached and needs gradients"
                )
            )
        region = max(found, key=lambda mark: mark.passed.number).region
        # Of a checkpoint inside the recomputed one only that around the forward is known.
        if region is None or (
            not _recomputes(running) and len({id(mark.region) for mark in found}) > 1
        ):
            raise ConditioningError(UNKNOWN.format(why="the graph holds several"))
        passed = region.next(running)
        if passed is None:
            raise ConditioningError(
                UNKNOWN.format(why=f"the checkpoint ran only {len(region.passes)}")
            )
        self._again[threading.get_ident()] = backward_now(), passed

    def end_again(self) -> None:
        """End a whole forward that was run again."""
        self._again.pop(threading.get_ident(), None)

    def replays(self) -> bool:
        """Return whether this thread is in a backward from outside of the block that lasts."""
        return backward_now() not in (-1, self.opened)

    def open_block(self) -> int:
        """Note in which backward a block begins, if in any; return what was noted before."""
        if self.running is not None and not may_run_modules(self.running.thread):
            self.running = None  # it was interrupted, and no hook of ours was called
        before = self.opened
        self.opened = backward_now()
        return before

    def current(self, adapted: bool) -> ForwardPass:
        """Return the pass that this thread runs or recomputes. ``adapted``: whether there is LoRA."""
        task = backward_now()
        if task != -1 and (passed := self._recomputed(task)) is not None:
            return passed
        now = self.running
        if now is not None and now.thread == threading.get_ident() and now.task == task:
            now.note_checkpoint()
            return now
        if self.replays() and self._older():
            return self._bare
        if adapted and self.idle.lora and checkpoint_now() is not None:
            save_a_marker()
        return self.idle

    def _recomputed(self, task: int) -> ForwardPass | None:
        """Return the pass that the backward ``task`` is recomputing in this thread, or None."""
        again, passed = self._again.get(threading.get_ident(), (-1, None))
        if passed is not None and again == task:
            return passed
        node = torch._C._current_autograd_node()
        mark: GraphMark | None = None if node is None else cast(Any, node.metadata).get(self)
        return None if mark is None else mark.passed

    def _older(self) -> bool:
        """Return whether autograd is at a node from before the attachment, as far as one thread
        counts.
        """
        node = torch._C._current_autograd_node()
        return node is not None and node._sequence_nr() < self._since

    def _upstream(self) -> set[GraphMark]:
        """Return the marks of all that the node at which autograd is was made of."""
        found: set[GraphMark] = set()
        seen: set[Any] = set()
        todo: list[Any] = [torch._C._current_autograd_node()]
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            mark = cast(Any, node.metadata).get(self)
            if mark is not None:
                found.add(mark)
            todo += [before for before, _ in node.next_functions]
        return found
