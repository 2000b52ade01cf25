"""The key-value cache of a forward, recognized by its methods.

Its name among the arguments changes from one release of transformers to the next.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from modulate.errors import HostError


def is_cache(value: Any) -> bool:
    """Return whether ``value`` is a cache: an object that knows how many positions it holds."""
    return callable(getattr(value, "get_seq_length", None))


def cache_length(cache: Any) -> int:
    """Return how many positions ``cache`` holds; 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


def keys_at(cache: Any, position: int) -> Tensor | None:
    """Return the keys at an absolute position, (batch, head, width), or None.

    They are taken from the deepest layer that stores every position: the deeper, the more of the
    input they depend on.
    """
    for layer in reversed(getattr(cache, "layers", ())):
        keys = getattr(layer, "keys", None)
        if not isinstance(keys, Tensor) or keys.ndim != 4 or getattr(layer, "is_sliding", False):
            continue
        # Fewer keys than positions: this layer dropped some, and an index is no position.
        if cache_length(cache) <= keys.shape[2] > position:
            return keys[:, :, position].detach()
    return None


def find_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among a forward's arguments, whatever its name, or None.

    Raises :class:`HostError` for several caches, and for a cache in a form that is not understood.
    """
    # By id: one cache may be passed under its old and its new name.
    caches = {id(value): value for value in arguments.values() if is_cache(value)}
    if len(caches) > 1:
        names = ", ".join(name for name, value in arguments.items() if is_cache(value))
        raise HostError(
            f"This forward got {len(caches)} caches ({names}); which one its tokens continue "
            "cannot be known. Pass one."
        )
    if caches:
        return next(iter(caches.values()))
    # Taken for a forward without a cache, it would have its tokens counted from position 0, and
    # residuals written on the wrong ones.
    for name, value in arguments.items():
        content = _nested_cache(value) if isinstance(value, Mapping | list | tuple) else None
        if content:
            raise HostError(
                f"The argument {name!r} of this forward holds {content} inside a "
                f"{type(value).__name__}, so the positions of its tokens cannot be known. Pass a "
                "transformers Cache by itself."
            )
    return None


def refuse_unseen_past(arguments: Mapping[str, Any], tokens: Tensor) -> None:
    """Raise :class:`HostError` if a forward without a known cache attends to earlier positions.

    ``tokens``: its (batch, position) ids, or (batch, position, d_model) embeddings.
    """
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] <= tokens.shape[1]:
        return
    names = ", ".join(sorted(name for name, value in arguments.items() if value is not None))
    raise HostError(
        f"The attention mask of this forward spans {mask.shape[1]} positions, but it got "
        f"{tokens.shape[1]} tokens and none of its arguments ({names}) is a cache that modulate "
        "understands (an object with `get_seq_length()`). The positions of its tokens cannot be "
        "known, so nothing was injected."
    )


def output_cache(output: Any) -> dict[str, Any]:
    """Return {name: cache} from a forward's output, empty if it has no cache.

    Transformers accepts a cache under the name under which it returned it. In an output without
    names (``return_dict=False``), the place is the name.
    """
    if isinstance(output, Mapping):
        items: Iterable[tuple[str, Any]] = output.items()
    elif isinstance(output, list | tuple):
        items = ((str(place), value) for place, value in enumerate(output))
    else:
        items = getattr(output, "__dict__", {}).items()
    return {name: value for name, value in items if is_cache(value)}


def _nested_cache(container: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> str | None:
    """Return what kind of cache is inside a container, in words, or None."""
    items = list(container.values()) if isinstance(container, Mapping) else list(container)
    for item in items:
        if is_cache(item):
            return f"a {type(item).__name__}"
    # The form of releases before transformers' Cache class: one tuple of tensors for each layer.
    layers = [item for item in items if isinstance(item, list | tuple)]
    if layers and len(layers) == len(items) and all(_is_keys_and_values(item) for item in layers):
        return f"keys and values of {len(layers)} layers"
    return None


def _is_keys_and_values(item: Any) -> bool:
    """Return whether ``item`` is keys and values of one layer, (batch, head, position, width)."""
    return len(item) >= 2 and all(
        isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in item[:2]
    )
