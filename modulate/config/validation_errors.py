"""Pydantic's findings as lines that name the key, the problem, and the value received."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from modulate.config.renamed_keys import new_name
from modulate.errors import near_matches

MAX_FINDINGS = 12
"""Most problems of a recipe that one message lists."""

MAX_SHOWN = 200
"""Most characters of a key or value that a message shows."""


def explain(error: ValidationError, source: str, model: type[BaseModel] | None) -> str:
    """Return pydantic's findings as lines: key, problem, value received.

    Long values are truncated, and findings after :data:`MAX_FINDINGS` only counted.
    """
    lines = [f"{source} is not valid:"]
    findings = error.errors()
    lines += [_explain_finding(finding, model) for finding in findings[:MAX_FINDINGS]]
    if len(findings) > MAX_FINDINGS:
        lines.append(f"  … and {len(findings) - MAX_FINDINGS} more.")
    return "\n".join(lines)


def _explain_finding(finding: Any, model: type[BaseModel] | None) -> str:
    key = _truncated(".".join(str(part) for part in finding["loc"])) or "(whole)"
    if finding["type"] == "extra_forbidden":
        known = known_keys(model, finding["loc"][:-1])
        hint = advice(key, known) if known else ""
        return f"  {key}: unknown key. {hint}".rstrip()
    message = finding["msg"].removeprefix("Value error, ")
    # Keys that contradict each other: the message names them, and the value is the whole section.
    if finding["type"] == "value_error" and isinstance(finding["input"], Mapping):
        return f"  {key}: {message}"
    return f"  {key}: {message}, got {_truncated(repr(finding['input']))}"


def advice(key: str, known: Sequence[str]) -> str:
    """Return what to write instead of the unknown dotted ``key``.

    ``known``: the keys of its section.
    """
    renamed = new_name(key)
    if renamed:
        return f"It was renamed to {renamed}."
    return near_matches(key.rpartition(".")[2], known)


def _truncated(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def known_keys(model: Any, path: Sequence[str | int]) -> list[str]:
    """Return the keys of the section at ``path`` in ``model``; empty if it is not a section."""
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model is not None else None
        annotation = field.annotation if field is not None else None
        # A section may be optional, or the item of a tuple: look inside the annotation too.
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        model = sections[0] if sections else None
    return sorted(model.model_fields) if model is not None else []
