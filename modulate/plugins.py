"""Finds plugins, keeps broken ones with their reason, and resolves names of components.

Every entry point of the group ``modulate`` is loaded in its own ``try``: one broken plugin is
listed with its reason and never takes the others down; using something that only it provides is an
error that repeats the reason.
"""

import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pluggy

from modulate import hookspecs
from modulate.errors import ComponentError, ModulateError, PluginError, near_matches
from modulate.utils.entry_points import entry_points, module_of, notes, ships

GROUP = "modulate"
VARIABLE = "MODULATE_PLUGINS"
NOT_ERRORS = frozenset({"OutOfMemoryError", "_StopRecomputationError"})
"""What torch raises when memory is full, and to end a checkpoint's recompute early; known by name,
because this module imports no torch.
"""

KINDS = {
    "signal": "register_signals",
    "signal_encoder": "register_signal_encoders",
    "backbone": "register_backbones",
    "modulator": "register_modulators",
    "host": "register_hosts",
    "dataset": "register_datasets",
    "input": "register_inputs",
}


@dataclass(frozen=True)
class Component:
    """One registered name of one kind."""

    kind: str
    name: str
    target: str | type
    plugin: str

    def load(self) -> Any:
        """Import and return the class.

        Raises :class:`PluginError` naming the plugin when the import fails.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind} {self.name!r} of plugin {self.plugin!r} cannot be loaded from"
                f" {self.target!r}: {error!r}"
            ) from error


@dataclass
class PluginInfo:
    """One plugin as found: where it comes from, what it provides, why it is broken (if it is).

    ``location``: the file that is run when it is loaded; ``off``: it is installed, but
    MODULATE_PLUGINS switches it off, so nothing of it was run; ``notes``: what is odd about where
    it comes from, such as another's name.
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

    @classmethod
    def of(cls, point: EntryPoint, off: bool = False) -> "PluginInfo":
        """Describe an entry point without loading it."""
        dist = point.dist
        place = locate(module_of(point))
        return cls(
            point.name,
            dist.name if dist else "?",
            dist.version if dist else "",
            point.value,
            place,
            off=off,
            notes=notes(point, place),
        )

    @property
    def source(self) -> str:
        """Distribution and module, for a line of text."""
        return f"{self.distribution} ({self.module})" if self.module else self.distribution


def locate(module: str) -> str:
    """Return the file of ``module``, of one in a package that is not imported yet the package's
    file; "" where there is none. Nothing is imported.
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


class Registry:
    """The plugins of this process and the components they register.

    ``off``: plugins that are installed and not loaded. ``missing``: names that were asked for and
    are not installed, each with its ``error``: as long as there is one, asking for a component is
    an error, while listing is none.
    """

    def __init__(
        self,
        points: Iterable[EntryPoint],
        wanted: Iterable[str] | None = None,
        hidden: Iterable[EntryPoint] = (),
    ) -> None:
        """Load the plugins of ``points``; only those called as in ``wanted``, where that is given.
        Those that ship come first: no other takes their names.

        ``hidden``: entry points that are listed, and not loaded, because an earlier distribution
        has the name of theirs.
        """
        self.manager = pluggy.PluginManager("modulate")
        self.manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, PluginInfo] = {}
        self.off: dict[str, PluginInfo] = {}
        self.missing: dict[str, PluginInfo] = {}
        self.components: dict[tuple[str, str], Component] = {}
        points = sorted(points, key=lambda p: (not ships(p), p.name))
        names = {p.name for p in points}
        chosen = names if wanted is None else set(wanted)
        for name in sorted(chosen - names):
            self.missing[name] = PluginInfo(
                name,
                error=(
                    f"{VARIABLE} names {name!r}, and no such plugin is installed."
                    f" {near_matches(name, names)}"
                ),
            )
        for point in points:
            if point.name in chosen:
                self._load(point)
            else:
                info = PluginInfo.of(point, off=True)
                self.off[point.name if point.name not in self.off else self._beside(info)] = info
        for point in hidden:
            info = PluginInfo.of(point)
            info.error = (
                f"not loaded: an earlier distribution is called {info.distribution!r} as well;"
                " rename one"
            )
            self.plugins[self._beside(info)] = info

    @staticmethod
    def _beside(info: PluginInfo) -> str:
        """Give a plugin whose name is another's already a name to be listed under, and return it."""
        info.name = f"{info.name} of {info.source}"
        return info.name

    def _load(self, point: EntryPoint) -> None:
        info = PluginInfo.of(point)
        first = self.plugins.get(point.name)
        if first is not None:
            if (
                first.source != info.source
                # the very same one is found twice when a package is installed in two places on the path
            ):
                info.error = (
                    f"the entry point name {point.name!r} is taken by {first.source}; rename one"
                )
                self.plugins[self._beside(info)] = info
            return
        self.plugins[point.name] = info
        try:
            with self.others_stay(point.name):
                plugin = point.load()
            self.add(point.name, plugin, info)
        except (Exception, SystemExit) as error:  # a module that calls exit() ends itself, not us
            info.error = f"{type(error).__name__}: {error}"
        info.location = locate(module_of(point))
        info.notes = notes(point, info.location)

    def add(self, name: str, plugin: object, info: PluginInfo | None = None) -> PluginInfo:
        """Register ``plugin`` (a module or object with hook implementations). All or nothing: a
        clash or a misspelt hook leaves no trace.

        Raises :class:`PluginError` that names the plugin and the hook when it fails there.
        """
        info = info or PluginInfo(
            name, "added at run time", location=str(getattr(plugin, "__file__", None) or "")
        )
        self.manager.register(plugin, name)
        added: list[Component] = []
        try:
            self.manager.check_pending()
            with self.others_stay(name):
                for kind, hook in KINDS.items():
                    added += self._collect(kind, hook, plugin, name)
        except Exception:
            self.manager.unregister(plugin)
            raise
        self.components |= {(c.kind, c.name): c for c in added}
        info.provides = [(c.kind, c.name) for c in added]
        self.plugins[name] = info
        return info

    @contextmanager
    def others_stay(self, name: str) -> Iterator[None]:
        """Run code of the plugin called ``name``; raise :class:`PluginError` when it changed what
        is registered, other than by registering, and undo that.
        """
        components = dict(self.components)
        plugins = dict(self.manager.list_name_plugin())
        try:
            yield
        finally:
            touched = self._undone(components, plugins)
        if touched:
            raise PluginError(
                f"The plugin {name!r} changed what others registered: {', '.join(touched)}. All is"
                " as it was; this plugin is left out."
            )

    def _undone(
        self, components: dict[tuple[str, str], Component], plugins: dict[str, Any]
    ) -> list[str]:
        """Bring back what was registered, and return what had to be."""
        now = dict(self.manager.list_name_plugin())
        touched = [
            f"{kind} {key!r}"
            for kind, key in components.keys() | self.components.keys()
            if components.get((kind, key)) is not self.components.get((kind, key))
        ]
        touched += [
            f"plugin {key!r}"
            for key in plugins.keys() | now.keys()
            if plugins.get(key) is not now.get(key)
        ]
        if touched:
            self.components = components
            for key in now:
                self.manager.unregister(name=key)
            for key, plugin in plugins.items():
                self.manager.register(plugin, key)
        return sorted(touched)

    def remove(self, name: str) -> None:
        """Forget the plugin called ``name`` and everything that it registered."""
        self.manager.unregister(name=name)
        self.plugins.pop(name)
        self.components = {key: c for key, c in self.components.items() if c.plugin != name}

    def _collect(self, kind: str, hook: str, plugin: object, owner: str) -> list[Component]:
        found: dict[str, Component] = {}

        def register(name: str, target: str | type) -> None:
            clash = self.components.get((kind, name)) or found.get(name)
            if clash:
                raise PluginError(
                    f"{kind} {name!r} of plugin {owner!r} clashes with the one of plugin"
                    f" {clash.plugin!r}; rename one of them."
                )
            found[name] = Component(kind, name, target, owner)

        others = [p for p in self.manager.get_plugins() if p is not plugin]
        try:
            self.manager.subset_hook_caller(hook, remove_plugins=others)(register=register)
        except ModulateError:
            raise
        except Exception as error:
            raise PluginError(
                f"The plugin {owner!r} failed in its hook {hook}: {_told(error)}"
            ) from error
        return list(found.values())

    def names(self, kind: str) -> list[str]:
        """Return the registered names of ``kind``, sorted."""
        self._check_missing()
        return sorted(name for k, name in self.components if k == kind)

    def get(self, kind: str, name: str) -> Any:
        """Return the class registered as ``name``.

        Raises :class:`PluginError` with near matches and broken plugins otherwise.
        """
        self._check_missing()
        component = self.components.get((kind, name))
        if component is None:
            broken = [f"{p.name} ({p.error})" for p in self.plugins.values() if p.error]
            note = (
                f" Broken plugins, which may have provided it: {'; '.join(broken)}."
                if broken
                else ""
            )
            note += f" Switched off by {VARIABLE}: {', '.join(self.off)}." if self.off else ""
            raise PluginError(
                f"Unknown {kind} {name!r}. {near_matches(name, self.names(kind))} `modulate"
                f" plugins` lists them.{note}"
            )
        return component.load()

    def _check_missing(self) -> None:
        """Raise when a plugin was asked for that is not there: whoever limits what runs, and
        misspells it, must not get something else.
        """
        for info in self.missing.values():
            raise PluginError(info.error)

    @contextmanager
    def blame(
        self, kind: str, name: str, doing: str, passing: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Name component and plugin in whatever a component raises without meaning to, as
        :class:`ComponentError` with the original as its cause.

        modulate's own errors and those in ``passing`` are left as they are; so is what is nobody's
        defect (:data:`NOT_ERRORS`).
        """
        try:
            yield
        except Exception as error:
            if (
                isinstance(error, (ModulateError, MemoryError, *passing))
                or type(error).__name__ in NOT_ERRORS
            ):
                raise
            component = self.components.get((kind, name))
            owner = f" of plugin {component.plugin!r}" if component else ""
            raise ComponentError(
                f"{kind} {name!r}{owner} failed in {doing}: {_told(error)}"
            ) from error


def _told(error: Exception) -> str:
    """Return an error's type and text, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


@functools.cache
def registry() -> Registry:
    """Return this process's registry.

    The environment variable ``MODULATE_PLUGINS`` limits what is loaded.

    Unset: all plugins. Empty or ``none``: none. Else names of entry points, separated by commas:
    only these.
    """
    given = os.environ.get(VARIABLE)
    points, hidden = entry_points(GROUP)
    if given is None:
        return Registry(points, hidden=hidden)
    given = "" if given.strip() == "none" else given
    return Registry(points, [name for part in given.split(",") if (name := part.strip())], hidden)


def get(kind: str, name: str) -> Any:
    """Return the class registered under ``name`` for ``kind`` (one of :data:`KINDS`)."""
    return registry().get(kind, name)
