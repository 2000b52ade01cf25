"""The reference page of the supported Python names, written from their docstrings and from examples
that the tests run.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modulate
from modulate.cli.signatures import signature

EXAMPLES = {
    "Ask about your own videos and pictures": "ask",
    "Attach a modulation to a loaded host": "attach",
    "Configure a modulation": "configure",
    "Train and evaluate recipes": "train",
    "Write plugins": "plugin",
    "Test plugins": "test_plugin",
    "Catch errors": "errors",
}
"""Group of supported names: file in docs/examples that uses all of them."""

HEAD = """# Python API

What this page lists is supported: it follows [semantic versioning](https://semver.org), so a minor
release of 1.x and later neither removes nor changes any of it, and while the major version is 0 a
minor release that does says so in the [changelog]({changelog}). Everything else in the package may
change in any release. Each name is imported from `modulate` itself; `import modulate` alone imports
no torch.

Shapes are given as (axis, axis, …); [axis names](axes.md) are the same everywhere."""


def page(examples: Path, note: str) -> str:
    """Return the page; ``examples`` is the folder of the example files, ``note`` its first line."""
    parts = [note, HEAD.format(changelog="../../CHANGELOG.md")]
    for group, names in modulate.PUBLIC.items():
        code = (examples / f"{EXAMPLES[group]}.py").read_text(encoding="utf-8")
        parts += [f"## {group}", f"```python\n{code}```"]
        for name, module in names.items():
            parts += _entry(name, getattr(importlib.import_module(module), name), module)
    return "\n\n".join(parts) + "\n"


def _entry(name: str, value: Any, module: str) -> Iterator[str]:
    yield f"### `{name}`"
    yield f"```python\n{signature(name, value)}\n```\n\nDefined in `{module}`."
    yield _markdown(inspect.getdoc(value) or "")
    if inspect.isclass(value) and not issubclass(value, Exception):
        for method_name, method in _methods(value):
            yield f"#### `{name}.{method_name}`"
            yield f"```python\n{signature(method_name, method)}\n```"
            yield _markdown(inspect.getdoc(method) or "")


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods that the class itself defines and documents, in their order."""
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not callable(function) or inspect.isclass(function):
            continue
        # Libraries add documented methods to a class, and not in every release the same.
        if inspect.getdoc(function) and function.__module__ == cls.__module__:
            yield name, function


def _markdown(text: str) -> str:
    """Return a docstring as Markdown: roles and double backticks become code."""
    text = re.sub(r":\w+:`~?(?:modulate\.(?:\w+\.)*)?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)
