"""Entry points of installed distributions, and whether they are what they say: a distribution or a
plugin may bear the name of another.
"""

import functools
import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path

OURS = frozenset({"basics", "dinov2", "gaze", "hand", "hosts", "streamgaze", "tabletop", "vjepa"})
"""Plugins that ship with modulate; the package of each is ``modulate_`` and its name."""

DISTRIBUTION = "modulate"
_PACKAGE = Path(__file__).resolve().parents[1]
# Where the plugins that ship lie: beside the package when installed, in plugins/ in the sources.
_HOMES = (_PACKAGE.parent, _PACKAGE.parent / "plugins")


def module_of(point: EntryPoint) -> str:
    """Return the module that an entry point names."""
    return point.value.partition(":")[0].strip()  # EntryPoint.module fails for a value that is none


def ships(point: EntryPoint) -> bool:
    """Return whether an entry point is one of a plugin that ships with modulate, by its name and
    its module.
    """
    return point.name in OURS and module_of(point) == f"modulate_{point.name}"


def entry_points(
    group: str, found: Iterable[Distribution] | None = None
) -> tuple[list[EntryPoint], list[EntryPoint]]:
    """Return the entry points of ``group``, and those of distributions that are hidden by an
    earlier one of the same name.

    As importlib.metadata has it, the first distribution on the path counts; but the plugins that
    ship with modulate are found whoever comes first, and what is hidden and the same as what is not
    (a package installed twice) is left out.
    """
    given = [
        (dist, points)
        for dist in (distributions() if found is None else found)
        if (points := list(dist.entry_points.select(group=group)))
    ]
    given.sort(key=lambda item: not any(map(ships, item[1])))  # stable: on the path's order
    used: dict[str, list[EntryPoint]] = {}
    hidden = []
    for dist, points in given:
        first = used.setdefault(_normal(dist.name), points)
        if first is not points:
            known = {(p.name, p.value) for p in first}
            hidden += [p for p in points if (p.name, p.value) not in known]
    return [point for points in used.values() for point in points], hidden


def notes(point: EntryPoint, location: str) -> list[str]:
    """Return what is odd about where a plugin comes from. ``location``: the file that is run when
    it is loaded.
    """
    own = ships(point)
    said = []
    if point.name in OURS and not own:
        said.append(
            "it has the name of a plugin that ships with modulate, and is not it: that one is"
            f" modulate_{point.name}"
        )
    if point.dist is not None and _normal(point.dist.name) == DISTRIBUTION and not own:
        said.append(
            f"its distribution calls itself {DISTRIBUTION!r}, and it is none of the plugins that"
            " ship with modulate"
        )
    if (
        own
        and location
        and not any(
            Path(location).resolve().is_relative_to(home / module_of(point)) for home in _HOMES
        )
    ):
        said.append(
            f"the module {module_of(point)} that ships with modulate lies beside {_PACKAGE}; this"
            " one has its name, and is run in its place"
        )
    return said + _doubles(point)


def _doubles(point: EntryPoint) -> list[str]:
    """Return that there are several distributions called as that of ``point``, with their versions
    and places, unless they say the same.
    """
    if point.dist is None:
        return []
    name = _normal(point.dist.name)
    same = {_place(dist): dist for dist in _named(tuple(sys.path)).get(name, ())}
    same.setdefault(_place(point.dist), point.dist)
    if (
        len(
            {
                (dist.version, tuple(sorted((p.group, p.name, p.value) for p in dist.entry_points)))
                for dist in same.values()
            }
        )
        < 2
    ):
        return []
    places = ", ".join(f"{dist.version} in {place}" for place, dist in same.items())
    return [
        f"{len(same)} distributions are called {point.dist.name!r}: {places}; this is of"
        f" {_place(point.dist)}"
    ]


@functools.lru_cache(maxsize=1)
def _named(path: tuple[str, ...]) -> dict[str, list[Distribution]]:
    """Return the distributions on ``path`` by name."""
    found: dict[str, list[Distribution]] = {}
    for dist in distributions(path=list(path)):
        for name in _names(dist):
            found.setdefault(name, []).append(dist)
    return found


def _names(dist: Distribution) -> set[str]:
    """Return the names of a distribution: of its folder, and, where it has plugins, the one that it
    gives itself. Reading that of all takes long.
    """
    folder = Path(_place(dist)).name
    by_folder = (
        {_normal(folder.rpartition(".")[0].partition("-")[0])}
        if folder.endswith((".dist-info", ".egg-info"))
        else set()
    )
    return by_folder | (
        {_normal(dist.name)}
        if not by_folder or dist.entry_points.select(group="modulate")
        else set()
    )


def _place(dist: Distribution) -> str:
    """Return the folder of a distribution's metadata, where it has one."""
    return str(getattr(dist, "_path", None) or dist.locate_file(""))


def _normal(name: str | None) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name or "").lower()
