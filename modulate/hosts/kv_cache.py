"""The key-value cache of a forward, found by what it is: its name changes from one transformers
release to the next.
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
    """Return (batch, head, width): keys at an absolute position, of the deepest layer that keeps
    all positions; None where none does.
    """
    for layer in reversed(getattr(cache, "layers", ())):
        keys = getattr(layer, "keys", None)
        if not isinstance(keys, Tensor) or keys.ndim != 4 or getattr(layer, "is_sliding", False):
            continue
        if cache_length(cache) <= keys.shape[2] > position:
            return keys[:, :, position].detach()
    return None


def find_cache(given: Mapping[str, Any]) -> Any:
    """Return the cache among a forward's arguments, whatever its name is; None where there is none.

    Raises :class:`HostError` for arguments that carry a cache in a form that is not understood:
    taken for a forward without one, its tokens would be given the positions of a prompt's first.
    """
    found = {id(value): value for value in given.values() if is_cache(value)}
    if len(found) > 1:
        names = ", ".join(name for name, value in given.items() if is_cache(value))
        raise HostError(
            f"This forward got {len(found)} caches ({names}); which one its tokens continue "
            "cannot be known. Pass one."
        )
    if found:
        return next(iter(found.values()))
    for name, value in given.items():
        if isinstance(value, Mapping | list | tuple) and (what := _hidden(value)):
            raise HostError(
                f"The argument {name!r} of this forward holds {what} inside a "
                f"{type(value).__name__}, so the positions of its tokens cannot be known. Pass a "
                "transformers Cache by itself."
            )
    return None


def refuse_unseen_past(given: Mapping[str, Any], tokens: Tensor) -> None:
    """Raise :class:`HostError` where a forward without a known cache attends to earlier positions.

    ``tokens``: its (batch, position) ids, or (batch, position, d_model) embeddings.
    """
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] <= tokens.shape[1]:
        return
    known = ", ".join(sorted(name for name, value in given.items() if value is not None))
    raise HostError(
        f"The attention mask of this forward spans {mask.shape[1]} positions, but it got "
        f"{tokens.shape[1]} tokens and none of its arguments ({known}) is a cache that modulate "
        "understands (an object with `get_seq_length()`). The positions of its tokens cannot be "
        "known, so nothing was injected."
    )


def output_cache(output: Any) -> dict[str, Any]:
    """Return {name: cache} of a forward's output, empty where it has none.

    Transformers takes a cache back under the name under which it gives it out. An output without
    names (``return_dict=False``) has its place as the name.
    """
    if isinstance(output, Mapping):
        items: Iterable[tuple[str, Any]] = output.items()
    elif isinstance(output, list | tuple):
        items = ((str(place), value) for place, value in enumerate(output))
    else:
        items = getattr(output, "__dict__", {}).items()
    return {name: value for name, value in items if is_cache(value)}


def _hidden(value: Any) -> str:
    """Return what kind of cache is inside a container; "" for none."""
    inside = list(value.values()) if isinstance(value, Mapping) else list(value)
    for item in inside:
        if is_cache(item):
            return f"a {type(item).__name__}"
    pairs = [item for item in inside if isinstance(item, list | tuple)]
    if pairs and len(pairs) == len(inside) and all(_is_pair(item) for item in pairs):
        return f"keys and values of {len(pairs)} layers"
    return ""


def _is_pair(value: Any) -> bool:
    """Return whether ``value`` is one layer's keys and values: (batch, head, position, width) each."""
    return len(value) >= 2 and all(isinstance(v, Tensor) and v.ndim == 4 for v in value[:2])
