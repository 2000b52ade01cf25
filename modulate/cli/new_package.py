"""Write the package of a new plugin from the templates of its kind."""

import importlib.util
import keyword
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import Template

from modulate import plugins
from modulate.errors import DataError, PluginError, near_matches
from modulate.utils.atomic_files import write_text

TEMPLATES = Path(__file__).parent / "templates"
"""A folder of templates for each kind, and ``common``: files of every package, ``$name`` filled in.
"""

KINDS = {
    "signal": "signal",
    "encoder": "signal_encoder",
    "backbone": "backbone",
    "modulator": "modulator",
    "dataset": "dataset",
    "input": "input",
    "host": "host",
}
"""Kinds of plugins that can be begun → kind of their component."""

NAME = re.compile(r"[a-z][a-z0-9_]*")


def write_package(kind: str, name: str, into: Path) -> Path:
    """Write the package of a plugin that registers ``name``, and return its folder.

    Args:
        kind: one of :data:`KINDS`.
        name: of the component. The package is called ``modulate-NAME``.
        into: the folder for the new folder.

    Raises:
        PluginError: the kind is unknown, or the name is none or taken.
        DataError: the folder exists.
    """
    if kind not in KINDS:
        raise PluginError(f"No kind of plugin is called {kind!r}. {near_matches(kind, KINDS)}")
    name = name.replace("-", "_")
    _check_name(kind, name)
    package = f"modulate-{name.replace('_', '-')}"
    folder = into / package
    if folder.exists():
        raise DataError(f"{folder} exists; nothing is overwritten. Choose another name or --into.")
    words = {
        "name": name,
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "package": package,
        "module": f"modulate_{name}",
        "kind": kind,
        "component_kind": KINDS[kind],
    }
    for path in (*_files("common"), *_files(kind)):
        relative = path.relative_to(TEMPLATES).parts[1:]
        target = folder.joinpath(*(part.replace("MODULE", words["module"]) for part in relative))
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Template(path.read_text(encoding="utf-8")).substitute(words)
        write_text(target.with_suffix(""), text)  # without .template
    return folder


def _files(folder: str) -> list[Path]:
    return sorted((TEMPLATES / folder).rglob("*.template"))


def _check_name(kind: str, name: str) -> None:
    """Raise :class:`PluginError` unless a new component and its package can be called ``name``."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > 40:
        raise PluginError(
            f"{name!r} is no name for a plugin: it needs small letters, digits and underscores,"
            " begins with a letter, and is no word of Python's."
        )
    registry = plugins.registry()
    owner = registry.provider(KINDS[kind], name)
    if owner is not None:
        raise PluginError(
            f"{KINDS[kind]} {name!r} exists: the plugin {owner.name!r} provides it. Choose another"
            " name."
        )
    taken = name in registry.plugins or importlib.util.find_spec(f"modulate_{name}") is not None
    if taken or _is_installed(f"modulate-{name.replace('_', '-')}"):
        raise PluginError(f"A plugin or package modulate_{name} is installed. Choose another name.")


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
