"""Rehearsals on meta tensors: real code runs, shapes and sizes are real, nothing is computed and
nothing allocated.

A model on the device ``meta`` has shapes but no values. Within a :class:`Rehearsal` its forward,
backward and optimizer step run as always, fed with real indices (token ids, grids), and every byte
that would be alive is counted.
"""

import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")

MULTIPLIES = re.compile(
    r"(^|_)(mm|bmm|mv|dot|vdot|matmul|linear|attention|\w*convolution\w*|conv\d?d?)(_|$)"
)
"""Names of operations that are work to count: one of them without a formula is told, never taken to
be free.
"""


class Rehearsal:
    """Counts bytes and floating-point operations of what runs inside it on meta tensors, as if on a
    device of type ``device`` ("cuda" or "cpu").

    ``alive``: bytes of tensors that exist now; ``peak``: the most there were. ``flops``:
    multiplications and additions in matrix products, convolutions and attention (causal attention
    counts in full). ``uncounted``: names of operations that multiply matrices, by
    :data:`MULTIPLIES`, and that no formula is known for: ``flops`` is without them.

    Real tensors may be mixed in and count as being on the device too late to matter: give indices
    as real tensors, since what depends on their values (which tokens are visual) must be known. A
    number read off a meta tensor is 1. What a kernel allocates for itself is not seen.
    """

    def __init__(self, device: str = "cuda") -> None:
        self.device = device
        self.alive = 0
        self.peak = 0
        self.flops = 0
        self.uncounted: set[str] = set()
        self._known: dict[int, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Rehearsal":
        self._stack.enter_context(_Dispatch(self))
        self._stack.enter_context(_Attention(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def see(self, tensors: Iterable[Tensor]) -> None:
        """Count the meta tensors among ``tensors``, such as weights that are there already; those
        seen before, and views of them, count once.
        """
        for tensor in tensors:
            if not tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            key = id(storage)
            size = storage.nbytes()
            if size == 0 or ((known := self._known.get(key)) is not None and known() is storage):
                continue
            self._known[key] = weakref.ref(storage, partial(self._gone, key, size))
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count the operations of one call of ``func``."""
        found = operations(func, args, kwargs, out)
        if found is not None:
            self.flops += found
        elif MULTIPLIES.search(func._overloadpacket.__name__):
            self.uncounted.add(func._overloadpacket.__name__)

    def _gone(self, key: int, size: int, _: object) -> None:
        self.alive -= size
        del self._known[key]


class _Dispatch(TorchDispatchMode):
    """Brings real tensors to meta where they meet meta tensors, and counts what comes out of every
    operation.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__()
        self.rehearsal = rehearsal

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        meta = [x.is_meta for x in _tensors((*args, *kwargs.values()))]
        if any(meta):
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1
            if not all(meta):
                args, kwargs = tree_map(_to_meta, (args, kwargs))
        out = func(*args, **kwargs)
        for x in _tensors((out,)):
            self.rehearsal.see((x,))
        self.rehearsal.count(func, args, kwargs, out)
        return out


def attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Return the operations of attention: scores, and their products with the values.

    Shapes (batch, head, position, width); keys may have fewer heads.
    """
    return 2 * query.shape[:-1].numel() * key.shape[2] * (query.shape[-1] + value.shape[-1])


def attention_backward_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Return those of its backward in a fused kernel: scores again, and the gradients of scores,
    values, queries and keys.
    """
    return 2 * query.shape[:-1].numel() * key.shape[2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def operations(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Return the operations of one call of the torch operation ``func``; None when no formula is
    known.

    Attention and grouped products are counted here: which of their kernels torch's own table holds
    changes from release to release.
    """
    name = func._overloadpacket.__name__
    if name.startswith("_scaled_dot_product_"):
        if name.endswith("_backward"):
            return attention_backward_flops(*args[1:4])
        return attention_flops(*args[:3])
    if name == "_grouped_mm":
        return int(2 * args[0].numel() * args[1].shape[-1])
    if name in ("mv", "dot", "vdot"):
        return int(2 * args[0].numel())
    formula = flop_registry.get(func._overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=out))
    return None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among ``values``, also in lists and tuples.

    (torch's own walk through trees takes most of a rehearsal's time.)
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _to_meta(x: Any) -> Any:
    return x.to(META) if isinstance(x, Tensor) and not x.is_meta else x


class _Attention(TorchFunctionMode):
    """Stands in for the choice of an attention kernel, which on meta tensors would fall on the one
    that keeps all weights.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__()
        self.rehearsal = rehearsal

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and args[0].is_meta:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        ops = torch.ops.aten
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        if not keep:  # nothing is remembered: the result's size is all there is to know
            self.rehearsal.flops += attention_flops(query, key, value)
            return torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=META)
        if attn_mask is not None:
            bias = attn_mask.to(META)
            bias = torch.zeros_like(bias, dtype=query.dtype) if bias.dtype == torch.bool else bias
        if self.rehearsal.device == "cpu":
            out = ops._scaled_dot_product_flash_attention_for_cpu(
                query,
                key,
                value,
                dropout_p,
                is_causal,
                attn_mask=None if attn_mask is None else bias,
                scale=scale,
            )
        elif attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
            out = ops._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )
        else:
            if (
                key.shape[1] != query.shape[1]
            ):  # this kernel knows no groups: PyTorch writes keys and values out before it
                key, value = (
                    x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value)
                )
            wide = (
                None
                if attn_mask is None
                else bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            )
            out = ops._scaled_dot_product_efficient_attention(
                query, key, value, wide, True, dropout_p, is_causal, scale=scale
            )
        result: Tensor = out[0]
        return result
