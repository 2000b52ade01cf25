"""One forward of a host, known again when activation checkpointing runs parts of it once more.

A recomputation happens inside a backward, often in another thread and long after the block that
conditioned the forward has ended. What tells which forward is recomputed is the graph: autograd is
at a node that this very forward made. Memory addresses, or the order of calls, would not tell.
"""

import threading
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

LEAF = 1 << 62
"""Sequence numbers from here on are of nodes that accumulate gradients of leaves; all forwards share these."""


@dataclass(eq=False)
class Pass:
    """What hooks do in one forward.

    ``plan``: where residuals are written, or None. ``lora``: whether the modulation's LoRA is on.
    ``begin``: autograd's sequence number before the forward. ``fired``: decoder layers in which
    LoRA was added.
    """

    plan: Any
    lora: bool
    begin: int = 0
    thread: int = field(default_factory=threading.get_ident)
    fired: set[int] = field(default_factory=set)


def in_backward() -> bool:
    """Return whether this thread is inside a backward."""
    return torch._C._current_graph_task_id() != -1


def sequence_number() -> int:
    """Return the number that autograd gives the next node of this thread, or a smaller one."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return node._sequence_nr()


def remember(owner: Any, passed: Pass, output: Tensor) -> None:
    """Mark all nodes that a forward made as those of ``passed``; ``output``: what it returned.

    The marks live as long as the graph does. Nodes from before the forward (of embeddings, or of
    the latents) are not its own.
    """
    todo = [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or not passed.begin < node._sequence_nr() < LEAF:
            continue
        marks = cast(Any, node.metadata)  # a dictionary, which torch annotates as a method
        if marks.get(owner) is passed:
            continue
        marks[owner] = passed
        todo += [before for before, _ in node.next_functions]


def recomputed(owner: Any) -> Pass | None:
    """Return the pass that a backward in this thread is recomputing, or None."""
    node = torch._C._current_autograd_node()
    found: Pass | None = None if node is None else cast(Any, node.metadata).get(owner)
    return found
