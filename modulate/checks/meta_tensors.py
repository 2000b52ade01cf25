"""Rehearsals on meta tensors: count memory and operations without computing or allocating.

A model on the device ``meta`` has shapes but no values. In a :class:`Rehearsal` its real code runs
forward, backward and optimizer step, with real indices (token ids, grids), while every byte that
would be alive is counted.
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
"""Names of operations that multiply. One without a known formula is reported, not taken as free."""


class Rehearsal:
    """Count bytes and floating-point operations of code that runs inside on meta tensors.

    ``device`` ("cuda" or "cpu") is the type of device to imitate. ``alive``: bytes of tensors that
    exist now. ``peak``: the maximum of ``alive``. ``flops``: multiplications and additions in
    matrix products, convolutions and attention (causal attention counts in full). ``uncounted``:
    names of operations that match :data:`MULTIPLIES` but have no known formula, so that they are
    missing in ``flops``.

    Pass indices as real tensors, because code depends on their values (which tokens are visual).
    Real tensors are not counted. A number read from a meta tensor is 1. Memory that a kernel
    allocates internally is not seen.
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
        # Attention must be chosen above the dispatcher, which sees only the kernels.
        self._stack.enter_context(_Dispatch(self))
        self._stack.enter_context(_Attention(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def see(self, tensors: Iterable[Tensor]) -> None:
        """Count the meta tensors among ``tensors``, each storage once.

        Call it for tensors from before the rehearsal, such as weights.
        """
        for tensor in tensors:
            if not tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            key = id(storage)
            size = storage.nbytes()
            known = self._known.get(key)
            # An id may be reused for a new storage after the old one is gone.
            is_known = known is not None and known() is storage
            if size == 0 or is_known:
                continue
            # The callback runs when the storage is freed, and lowers the count.
            self._known[key] = weakref.ref(storage, partial(self._gone, key, size))
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count the operations of one call of ``func``."""
        flops = operations(func, args, kwargs, out)
        if flops is not None:
            self.flops += flops
        elif MULTIPLIES.search(func._overloadpacket.__name__):
            self.uncounted.add(func._overloadpacket.__name__)

    def _gone(self, key: int, size: int, _: object) -> None:
        self.alive -= size
        del self._known[key]


class _Dispatch(TorchDispatchMode):
    """Move real tensors to meta where an operation mixes both, and count every result."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__()
        self.rehearsal = rehearsal

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_meta = [tensor.is_meta for tensor in _tensors((*args, *kwargs.values()))]
        if any(is_meta):
            # tensor.item() has no value to return.
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1
            if not all(is_meta):
                args, kwargs = tree_map(_to_meta, (args, kwargs))
        out = func(*args, **kwargs)
        self.rehearsal.see(_tensors((out,)))
        self.rehearsal.count(func, args, kwargs, out)
        return out


def attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Return the operations of attention: the scores and their products with the values.

    Shapes are (batch, head, position, width); keys may have fewer heads.
    """
    return 2 * query.shape[:-1].numel() * key.shape[2] * (query.shape[-1] + value.shape[-1])


def attention_backward_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Return the operations of attention's backward in a fused kernel.

    It computes the scores again, and the gradients of scores, values, queries and keys.
    """
    return 2 * query.shape[:-1].numel() * key.shape[2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def operations(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Return the operations of one call of the torch operation ``func``, or None if unknown.

    Attention and grouped products have formulas here, because torch's own table covers different
    kernels of theirs in every release.
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

    torch's own tree traversal would take most of the time of a rehearsal.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _to_meta(x: Any) -> Any:
    return x.to(META) if isinstance(x, Tensor) and not x.is_meta else x


class _Attention(TorchFunctionMode):
    """Choose the attention kernel that the imitated device would use.

    On meta tensors torch would choose the one that stores all attention weights.
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
        needs_grad = query.requires_grad or key.requires_grad or value.requires_grad
        # Without a backward nothing is stored, so only the size of the result matters.
        if not (torch.is_grad_enabled() and needs_grad):
            self.rehearsal.flops += attention_flops(query, key, value)
            return torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=META)
        bias = None if attn_mask is None else _as_bias(attn_mask, query.dtype)
        if self.rehearsal.device == "cpu":
            out = ops._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale
            )
        elif bias is None and query.dtype in (torch.float16, torch.bfloat16):
            out = ops._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )
        else:
            # This kernel has no grouped heads: PyTorch repeats keys and values before it.
            if key.shape[1] != query.shape[1]:
                key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
                value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
            if bias is not None:
                bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            out = ops._scaled_dot_product_efficient_attention(
                query, key, value, bias, True, dropout_p, is_causal, scale=scale
            )
        result: Tensor = out[0]
        return result


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an attention mask on meta, as the additive one that kernels take."""
    mask = mask.to(META)
    return torch.zeros_like(mask, dtype=dtype) if mask.dtype == torch.bool else mask
