"""Read the layout of the repository from docstrings.

It is used for the README's tree, the architecture page's table, and the test of imports.

The docstring of `modulate` lists the packages from the bottom up; each package's own docstring says
what it holds. Nothing else states either, so pages and the import test cannot drift from the code.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import modulate

ORDER = re.compile(r"bottom up: (.+?)\.", re.S)


@dataclass(frozen=True)
class Part:
    """A package or top-level module of the core, with the summaries of its modules."""

    name: str
    summary: str
    modules: dict[str, str]

    @property
    def path(self) -> str:
        """The path from the repository's root; that of a package ends with a slash."""
        return f"modulate/{self.name}/" if self.modules else f"modulate/{self.name}.py"


def order() -> list[str]:
    """Return the core's packages and top-level modules: each imports only from those before it."""
    match = ORDER.search(modulate.__doc__ or "")
    if match is None:
        raise ValueError(
            "The docstring of modulate no longer lists its packages from the bottom up."
        )
    return re.findall(r"\w+", match[1])


def parts() -> list[Part]:
    """Return every part of the core in the order of :func:`order`."""
    root = Path(modulate.__file__ or "").parent
    return [_part(root, name) for name in order()]


def _part(root: Path, name: str) -> Part:
    folder = root / name
    if not folder.is_dir():
        return Part(name, summary(root / f"{name}.py"), {})
    modules = {
        path.relative_to(folder).with_suffix("").as_posix(): summary(path)
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__init__.py"
    }
    return Part(name, summary(folder / "__init__.py"), modules)


def summary(path: Path) -> str:
    """Return the first sentence of a module's docstring, without its period."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")


ENTRIES = {
    "recipes/": "recipes and sweeps that ship, installed as the package modulate_recipes",
    "tests/": "the tests, in the folders of what they test; tests/contract for every host",
    "docs/": "tutorial, how-to, reference, explanation, results: start at docs/index.md",
    "benchmarks/": "speed and memory (`make bench`), faults put into the core (`make mutants`)",
    "requirements/": "the lock, and the script that makes it",
    "pyproject.toml": "package, dependencies, entry points, settings of tools",
    "mkdocs.yml": "the docs as a site (`make docs`)",
    "Makefile": "every task: demo, test, check, docs, bench, torture, mutants, lock",
    "CHANGELOG.md": "what changed, by version",
    "SECURITY.md": "how to report a hole, and what the boundaries are",
    "LICENSE": "Apache-2.0",
    "README.md": "this page",
}
"""Entries of the repository that are not packages, and what they contain."""


def tree(root: Path) -> str:
    """Return the README's tree of the repository at ``root`` as a code block."""
    rows = [("modulate/", "the core; a package imports only from those below it")]
    rows += [("  " + part.path.removeprefix("modulate/"), part.summary) for part in parts()[::-1]]
    rows.append(("plugins/", "what ships, through the same entry points as anybody's plugin"))
    for folder in sorted((root / "plugins").glob("modulate_*/__init__.py")):
        rows.append((f"  {folder.parent.name}/", summary(folder)))
    rows += [(name, text) for name, text in ENTRIES.items() if (root / name).exists()]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(["```", *(f"{name:<{width}}{text}" for name, text in rows), "```"])


def table() -> str:
    """Return the architecture page's table of packages, with every module and what it does."""
    rows = ["| | package | module | |", "|---|---|---|---|"]
    for level, part in enumerate(parts()):
        rows.append(f"| {level} | **`{part.name}`** | | {part.summary} |")
        rows += [f"| | | `{name}` | {text} |" for name, text in part.modules.items()]
    return "\n".join(rows)


def filled(page: str, name: str, text: str) -> str:
    """Return ``page`` with ``text`` between its markers ``name``.

    Raises :class:`ValueError` if the page has no such markers.
    """
    begin = f"<!-- {name} -->"
    end = f"<!-- /{name} -->"
    before, opening, remainder = page.partition(begin)
    _, closing, after = remainder.partition(end)
    if not opening or not closing:
        raise ValueError(f"The page has no {begin} … {end}.")
    return f"{before}{begin}\n{text}\n{end}{after}"
