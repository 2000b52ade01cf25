"""Find entry points of installed distributions, and notice names that are used twice.

A distribution, plugin or module may have the name of one that ships with modulate.
"""

import functools
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path

OURS = frozenset(
    {"basics", "dinov2", "gaze", "hand", "hosts", "streamgaze", "table", "tabletop", "vjepa"}
)
"""Plugins that ship with modulate, each in the package ``modulate_NAME``."""

DISTRIBUTION = "modulate"
_PACKAGE = Path(__file__).resolve().parents[1]
# Where the plugins that ship lie: beside the package when installed, in plugins/ in the sources.
_HOMES = (_PACKAGE.parent, _PACKAGE.parent / "plugins")


def module_of(point: EntryPoint) -> str:
    """Return the module that an entry point names."""
    # EntryPoint.module raises for a malformed value; such a plugin is to be listed as broken.
    return point.value.partition(":")[0].strip()


def ships(point: EntryPoint) -> bool:
    """Return whether a plugin ships with modulate, judged by its name and module."""
    return point.name in OURS and module_of(point) == f"modulate_{point.name}"


@dataclass
class PluginInfo:
    """A plugin: its origin, what it provides, and why it is broken, if it is.

    ``location``: the file that runs when it is loaded. ``off``: it is installed, but
    MODULATE_PLUGINS switches it off, so none of its code ran. ``notes``: warnings about its origin,
    such as a name that belongs to another plugin. ``clashes``: (kind, name) that it wanted to
    register, but another plugin has.
    """

    name: str
    distribution: str = ""
    version: str = ""
    module: str = ""
    location: str = ""
    error: str = ""
    off: bool = False
    provides: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clashes: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, point: EntryPoint, off: bool = False) -> "PluginInfo":
        """Describe an entry point without loading it."""
        dist = point.dist
        location = locate(module_of(point))
        return cls(
            point.name,
            dist.name if dist else "?",
            dist.version if dist else "",
            point.value,
            location,
            off=off,
            notes=notes(point, location),
        )

    @property
    def source(self) -> str:
        """The distribution and module, as text."""
        return f"{self.distribution} ({self.module})" if self.module else self.distribution

    @property
    def package(self) -> str:
        """The distribution and version, as text; "" for a plugin that was added at run time."""
        return f"{self.distribution} {self.version}" if self.version else ""


def locate(module: str) -> str:
    """Return the file of ``module`` without importing anything; "" if there is none.

    For a submodule of a package that is not imported yet, it is the file of the package.
    """
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return str(loaded)
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    return next((place for place in places if place and Path(place).exists()), "")


def entry_points(
    group: str, available: Iterable[Distribution] | None = None
) -> tuple[list[EntryPoint], list[EntryPoint]]:
    """Return the entry points of ``group``: those in use, and hidden ones.

    Of distributions with the same name, the first on the path is in use, as importlib.metadata has
    it, and hides the others. But plugins that ship with modulate are never hidden. A hidden entry
    point equal to a used one, as of a package installed twice, is left out. ``available``: the
    distributions to search, by default all.
    """
    candidates = []
    for dist in distributions() if available is None else available:
        points = list(dist.entry_points.select(group=group))
        if points:
            candidates.append((dist, points))
    # The sort is stable, so the order of the path decides among all others.
    candidates.sort(key=lambda item: not any(map(ships, item[1])))
    used: dict[str, list[EntryPoint]] = {}
    hidden: list[EntryPoint] = []
    for dist, points in candidates:
        first = used.setdefault(_normal(dist.name), points)
        if first is not points:
            known = {(point.name, point.value) for point in first}
            hidden += [point for point in points if (point.name, point.value) not in known]
    return [point for points in used.values() for point in points], hidden


def notes(point: EntryPoint, location: str) -> list[str]:
    """Return notes on a plugin whose origin could be mistaken for another's.

    ``location``: the file that runs when the plugin is loaded.
    """
    shipped = ships(point)
    texts = []
    if point.name in OURS and not shipped:
        texts.append(
            "it has the name of a plugin that ships with modulate, but is another one: the shipped"
            f" plugin is modulate_{point.name}"
        )
    if point.dist is not None and _normal(point.dist.name) == DISTRIBUTION and not shipped:
        texts.append(
            f"its distribution calls itself {DISTRIBUTION!r}, but the plugin does not ship with"
            " modulate"
        )
    if shipped and location and not _lies_at_home(module_of(point), location):
        texts.append(
            f"the module {module_of(point)} that ships with modulate lies beside {_PACKAGE}; this"
            " one has its name and runs in its place"
        )
    return texts + _duplicates(point)


def _lies_at_home(module: str, location: str) -> bool:
    """Return whether ``location`` is in the folder of the shipped ``module``."""
    path = Path(location).resolve()
    return any(path.is_relative_to(home / module) for home in _HOMES)


def _duplicates(point: EntryPoint) -> list[str]:
    """Return a note if several different distributions have the name of that of ``point``.

    Equal ones, of the same version with the same entry points, do no harm.
    """
    if point.dist is None:
        return []
    name = _normal(point.dist.name)
    same_name = {_place(dist): dist for dist in _by_name(tuple(sys.path)).get(name, ())}
    same_name.setdefault(_place(point.dist), point.dist)
    if len({_contents(dist) for dist in same_name.values()}) < 2:
        return []
    places = ", ".join(f"{dist.version} in {place}" for place, dist in same_name.items())
    return [
        f"{len(same_name)} distributions are called {point.dist.name!r}: {places}; this plugin is"
        f" from {_place(point.dist)}"
    ]


def _contents(dist: Distribution) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    """Return what tells distributions of one name apart: the version and all entry points."""
    points = sorted((point.group, point.name, point.value) for point in dist.entry_points)
    return dist.version, tuple(points)


@functools.lru_cache(maxsize=1)
def _by_name(path: tuple[str, ...]) -> dict[str, list[Distribution]]:
    """Return the distributions on ``path`` by name."""
    by_name: dict[str, list[Distribution]] = {}
    for dist in distributions(path=list(path)):
        for name in _names(dist):
            by_name.setdefault(name, []).append(dist)
    return by_name


def _names(dist: Distribution) -> set[str]:
    """Return the names of a distribution: that of its folder, and that in its metadata.

    Reading the metadata of all distributions is slow, so it is read only for those with plugins and
    those whose folder has no name.
    """
    names = set()
    folder = Path(_place(dist)).name
    if folder.endswith((".dist-info", ".egg-info")):
        names.add(_normal(folder.rpartition(".")[0].partition("-")[0]))
    if not names or dist.entry_points.select(group="modulate"):
        names.add(_normal(dist.name))
    return names


def _place(dist: Distribution) -> str:
    """Return the folder of a distribution's metadata, or its root if it has none."""
    return str(getattr(dist, "_path", None) or dist.locate_file(""))


def _normal(name: str | None) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name or "").lower()
