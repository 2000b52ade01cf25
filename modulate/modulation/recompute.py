"""Recognizing a forward of a host again when activation checkpointing recomputes parts of it.

A recomputation happens inside a backward, often in another thread and long after the block that
conditioned the forward has ended. The graph tells which forward is recomputed: autograd is at a
node that this very forward made, or at one that comes after it in the same checkpoint. Memory
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
from modulate.modulation.write_plan import WritePlan

FIRST_LEAF_NUMBER = 1 << 62
"""Sequence numbers from here on belong to nodes that accumulate gradients of leaves.

All forwards share these nodes, so they must not be marked as one forward's own.
"""

NO_BACKWARD = -1
"""Number of the backward, in a thread outside of any."""

_numbers = count()

UNKNOWN_FORWARD_ERROR = (
    "A backward runs the host's forward again, and which forward this is cannot be known: {why}. "
    "Gradients would be those of another forward, so this is refused. Call the backward while the "
    "modulation is attached as it was in the forward; checkpoint the decoder layers one by one "
    "rather than the whole host, with `use_reentrant=False`; a new forward inside a backward "
    "belongs in a `condition(…)` or `bare()` block of its own."
)

DETACHED_ERROR = (
    "This backward goes through a forward that was made while a modulation was attached, and in "
    "which layers are checkpointed: they would be computed again without the modulation, which "
    "was detached since. Call the backward before `detach()`."
)


@dataclass(eq=False)
class ForwardPass:
    """What the hooks do in one forward, and how a recomputation recognizes it.

    ``plan``: where residuals are written, if anywhere. ``lora``: whether the modulation's LoRA is
    on. ``sequence_number``: autograd's at the start, −1 without gradients. ``backward``: the
    backward in which the forward was made. ``fired``: decoder layers in which LoRA was added.
    ``is_checkpointed``: whether parts of it ran inside a checkpoint. ``number``: later forwards
    have larger ones. ``checkpoint``: reference to the checkpoint around the whole forward.
    """

    plan: WritePlan | None
    lora: bool
    sequence_number: int = -1
    thread: int = field(default_factory=threading.get_ident)
    backward: int = field(default_factory=lambda: current_backward())
    fired: set[int] = field(default_factory=set)
    is_checkpointed: bool = False
    number: int = field(default_factory=lambda: next(_numbers))
    checkpoint: Callable[[], Any] = lambda: None

    def note_checkpoint(self) -> None:
        """Note whether the backward will recompute what is running now."""
        if self.sequence_number >= 0 and not self.is_checkpointed:
            # A reentrant checkpoint switches gradients off inside a forward that has them.
            reentrant = not torch.is_grad_enabled()
            self.is_checkpointed = reentrant or current_checkpoint() is not None


@dataclass(eq=False)
class CheckpointRegion:
    """The forwards of one attachment inside one checkpoint, in their order.

    A recomputation runs them in the same order, so counting tells which one is next.
    """

    passes: list[ForwardPass] = field(default_factory=list)
    _recomputation: Callable[[], Any] = lambda: None
    _begun: int = 0

    def next(self, recomputation: Any) -> ForwardPass | None:
        """Return the pass that comes next in a recomputation, or None."""
        # Every backward through the checkpoint is a recomputation of its own, counted from 0.
        if self._recomputation() is not recomputation:
            self._recomputation = weakref.ref(recomputation)
            self._begun = 0
        self._begun += 1
        return self.passes[self._begun - 1] if self._begun <= len(self.passes) else None


@dataclass(frozen=True)
class GraphMark:
    """Left on the nodes of a graph: the forward that made them, and the checkpoint around it."""

    passed: ForwardPass
    region: CheckpointRegion | None


def current_backward() -> int:
    """Return the number of the backward that this thread is in, −1 outside of any."""
    return torch._C._current_graph_task_id()


def current_checkpoint() -> Any:
    """Return an object that identifies the innermost checkpoint, or recomputation, that is running.

    It is the hook by which torch's non-reentrant checkpoint packs saved tensors: each checkpoint
    has one of its own, which lives as long as the tensors. None outside of any.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None or getattr(hooks[0], "__module__", "") != torch.utils.checkpoint.__name__:
        return None
    return hooks[0]


def _is_recomputation(checkpoint: Any) -> bool:
    """Return whether the result of :func:`current_checkpoint` is a recomputation."""
    return getattr(checkpoint, "__qualname__", "").startswith("_recomputation_hook")


def save_marker_tensor() -> None:
    """Let the running checkpoint count one more saved tensor, whose memory is freed at once.

    Torch compares the number and kind of saved tensors with those of the recomputation. The marker
    makes it refuse a recomputation without our hooks of a forward that had them.
    """
    with torch.enable_grad():
        torch.zeros(0, 3, dtype=torch.complex64, device="cpu", requires_grad=True).exp()


class RecomputeTracker:
    """Knows which forward of one attachment a thread runs, or recomputes in a backward.

    ``idle``: stands for layers that run outside of any forward of the host. ``running``: the last
    forward that began and has not ended. ``block_backward``: the backward in which the current
    ``with`` block was entered. ``closed``: whether the attachment is gone.
    """

    def __init__(self) -> None:
        self.idle = ForwardPass(None, lora=True)
        self.running: ForwardPass | None = None
        self.block_backward = NO_BACKWARD
        self.closed = False
        # Stands for the recomputation of layers whose forward was made before we were attached.
        self._before_attaching = ForwardPass(None, lora=False)
        self._attached_at = torch.autograd._get_sequence_nr()
        # Only the marks hold regions, and the marks belong to the graph: held here, a region's
        # passes could keep the checkpoint's own graph alive.
        self._regions: weakref.WeakKeyDictionary[Any, weakref.ref[CheckpointRegion]] = (
            weakref.WeakKeyDictionary()
        )
        # Keeps the latest region alive until a forward in it is marked.
        self._unmarked_region: CheckpointRegion | None = None
        # Whole forwards that are being recomputed: thread → (backward, forward).
        self._recomputing: dict[int, tuple[int, ForwardPass]] = {}

    # --- forwards

    def begin(self, passed: ForwardPass) -> None:
        """Note a forward that begins, and the checkpoint around it.

        Raises :class:`ConditioningError` for one that is recomputed outside of any backward.
        """
        self.running = passed
        checkpoint = current_checkpoint()
        if passed.backward == NO_BACKWARD and _is_recomputation(checkpoint):
            raise ConditioningError(
                UNKNOWN_FORWARD_ERROR.format(why="what it saved is read outside of a backward")
            )
        region = self._region_of(checkpoint)
        if region is None:
            self._unmarked_region = None
            if checkpoint is None:
                return
            region = CheckpointRegion()
            self._unmarked_region = region
            self._regions[checkpoint] = weakref.ref(region)
        region.passes.append(passed)
        passed.is_checkpointed = True
        passed.checkpoint = weakref.ref(checkpoint)
        save_marker_tensor()

    def _region_of(self, checkpoint: Any) -> CheckpointRegion | None:
        reference = None if checkpoint is None else self._regions.get(checkpoint)
        return None if reference is None else reference()

    def mark_graph(self, passed: ForwardPass, output: Tensor) -> None:
        """Mark all nodes that a forward made, found from its ``output``, as its own.

        The marks live as long as the graph does.
        """
        mark = GraphMark(passed, self._region_of(passed.checkpoint()))
        self._unmarked_region = None
        pending = [output.grad_fn]
        while pending:
            node = pending.pop()
            # Earlier nodes (of embeddings, or of the latents) are not the forward's own: two
            # forwards may share them.
            if node is None or not (
                passed.sequence_number <= node._sequence_nr() < FIRST_LEAF_NUMBER
            ):
                continue
            marks = cast(Any, node.metadata)  # a dictionary, which torch annotates as a method
            if self in marks:
                continue
            marks[self] = mark
            if passed.is_checkpointed:
                node.register_prehook(self._refuse_detached)
            pending += [parent for parent, _ in node.next_functions]

    def _refuse_detached(self, gradients: Any) -> None:
        if self.closed:
            raise ConditioningError(DETACHED_ERROR)

    # --- recomputations

    def begin_recomputation(self) -> None:
        """Begin to recompute a whole forward in a backward.

        Raises :class:`ConditioningError` where it cannot be known which one.
        """
        recomputation = current_checkpoint()
        if recomputation is None:
            raise ConditioningError(
                UNKNOWN_FORWARD_ERROR.format(
                    why="it is not run again by a non-reentrant checkpoint of torch"
                )
            )
        save_marker_tensor()
        passed = self._next_in_checkpoint(recomputation)
        self._recomputing[threading.get_ident()] = current_backward(), passed

    def _next_in_checkpoint(self, recomputation: Any) -> ForwardPass:
        marks = self._upstream_marks()
        if not marks:
            raise ConditioningError(
                UNKNOWN_FORWARD_ERROR.format(
                    why="the graph holds none that was made while attached and needs gradients"
                )
            )
        # A node of a checkpoint depends on the forwards in it. Earlier checkpoints may be upstream
        # too, where one forward reads what another returned; so the latest forward decides.
        region = max(marks, key=lambda mark: mark.passed.number).region
        # Of nested checkpoints only the one around the forward is known. Then several regions
        # upstream leave open which of them is recomputed.
        regions = {id(mark.region) for mark in marks}
        if region is None or (not _is_recomputation(recomputation) and len(regions) > 1):
            raise ConditioningError(UNKNOWN_FORWARD_ERROR.format(why="the graph holds several"))
        passed = region.next(recomputation)
        if passed is None:
            raise ConditioningError(
                UNKNOWN_FORWARD_ERROR.format(why=f"the checkpoint ran only {len(region.passes)}")
            )
        return passed

    def end_recomputation(self) -> None:
        """End the recomputation of a whole forward."""
        self._recomputing.pop(threading.get_ident(), None)

    def is_recomputing(self) -> bool:
        """Return whether this thread is in a backward that began outside of the current block.

        A forward there is a recomputation; a new one needs a block of its own, inside of that
        backward.
        """
        return current_backward() not in (NO_BACKWARD, self.block_backward)

    def open_block(self) -> int:
        """Note in which backward a block begins, if in any; return what was noted before."""
        if self.running is not None and not may_run_modules(self.running.thread):
            # That forward was interrupted: torch calls no hook for what is no `Exception`.
            self.running = None
        before = self.block_backward
        self.block_backward = current_backward()
        return before

    def current(self, has_lora: bool) -> ForwardPass:
        """Return the pass that this thread runs or recomputes, or one that stands for none."""
        backward = current_backward()
        if backward != NO_BACKWARD:
            recomputed = self._recomputed(backward)
            if recomputed is not None:
                return recomputed
        running = self.running
        if (
            running is not None
            and running.thread == threading.get_ident()
            and running.backward == backward
        ):
            running.note_checkpoint()
            return running
        if self.is_recomputing() and self._is_before_attaching():
            return self._before_attaching
        if has_lora and self.idle.lora and current_checkpoint() is not None:
            save_marker_tensor()
        return self.idle

    def _recomputed(self, backward: int) -> ForwardPass | None:
        """Return the pass that ``backward`` is recomputing in this thread, or None."""
        recomputed_in, passed = self._recomputing.get(threading.get_ident(), (NO_BACKWARD, None))
        if passed is not None and recomputed_in == backward:
            return passed
        node = torch._C._current_autograd_node()
        mark: GraphMark | None = None if node is None else cast(Any, node.metadata).get(self)
        return None if mark is None else mark.passed

    def _is_before_attaching(self) -> bool:
        """Return whether autograd is at a node from before the attachment.

        Sequence numbers count within one thread, so this holds for nodes made in the attaching
        thread.
        """
        node = torch._C._current_autograd_node()
        return node is not None and node._sequence_nr() < self._attached_at

    def _upstream_marks(self) -> set[GraphMark]:
        """Return the marks on autograd's current node and on all nodes that it depends on."""
        marks: set[GraphMark] = set()
        visited: set[Any] = set()
        pending: list[Any] = [torch._C._current_autograd_node()]
        while pending:
            node = pending.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            mark = cast(Any, node.metadata).get(self)
            if mark is not None:
                marks.add(mark)
            pending += [parent for parent, _ in node.next_functions]
        return marks
