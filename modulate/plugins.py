"""Finds plugins, keeps broken ones with their reason, and resolves names of components.

Every entry point of the group ``modulate`` is loaded in its own ``try``: one broken plugin is listed with its reason and never takes
the others down; using something that only it provides is an error that repeats the reason.
"""

import functools
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from modulate import hookspecs
from modulate.errors import PluginError, near_matches

GROUP = "modulate"
KINDS = {
    "signal": "register_signals",
    "signal_encoder": "register_signal_encoders",
    "backbone": "register_backbones",
    "modulator": "register_modulators",
    "host": "register_hosts",
    "dataset": "register_datasets",
}


@dataclass(frozen=True)
class Component:
    """One registered name of one kind."""

    kind: str
    name: str
    target: str | type
    plugin: str

    def load(self) -> Any:
        """Import and return the class. Raises :class:`PluginError` naming the plugin when the import fails."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(f"{self.kind} {self.name!r} of plugin {self.plugin!r} cannot be loaded from {self.target!r}: {error!r}") from error


@dataclass
class PluginInfo:
    """One plugin as found: where it comes from, what it provides, why it is broken (if it is)."""

    name: str
    source: str
    version: str = ""
    error: str = ""
    provides: list[tuple[str, str]] = field(default_factory=list)


class Registry:
    """The plugins of this process and the components they register."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self.manager = pluggy.PluginManager("modulate")
        self.manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, PluginInfo] = {}
        self.components: dict[tuple[str, str], Component] = {}
        for point in sorted(points, key=lambda p: p.name):
            self._load(point)

    def _load(self, point: EntryPoint) -> None:
        dist = point.dist
        info = PluginInfo(point.name, f"{dist.name if dist else '?'} ({point.value})", dist.version if dist else "")
        first = self.plugins.get(point.name)
        if first is not None:
            if first.source != info.source:  # the very same one is found twice when a package is installed in two places on the path
                info.name = f"{point.name} of {info.source}"
                info.error = f"the entry point name {point.name!r} is taken by {first.source}; rename one"
                self.plugins[info.name] = info
            return
        self.plugins[point.name] = info
        try:
            self.add(point.name, point.load(), info)
        except Exception as error:
            info.error = f"{type(error).__name__}: {error}"

    def add(self, name: str, plugin: object, info: PluginInfo | None = None) -> PluginInfo:
        """Register ``plugin`` (a module or object with hook implementations). All or nothing: a clash or a misspelt hook leaves no trace."""
        info = info or PluginInfo(name, "added at run time")
        self.manager.register(plugin, name)
        added: list[Component] = []
        try:
            self.manager.check_pending()
            for kind, hook in KINDS.items():
                added += self._collect(kind, hook, plugin, name)
        except Exception:
            self.manager.unregister(plugin)
            raise
        self.components |= {(c.kind, c.name): c for c in added}
        info.provides = [(c.kind, c.name) for c in added]
        self.plugins[name] = info
        return info

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
                raise PluginError(f"{kind} {name!r} of plugin {owner!r} clashes with the one of plugin {clash.plugin!r}; rename one of them.")
            found[name] = Component(kind, name, target, owner)

        others = [p for p in self.manager.get_plugins() if p is not plugin]
        self.manager.subset_hook_caller(hook, remove_plugins=others)(register=register)
        return list(found.values())

    def names(self, kind: str) -> list[str]:
        """Return the registered names of ``kind``, sorted."""
        return sorted(name for k, name in self.components if k == kind)

    def get(self, kind: str, name: str) -> Any:
        """Return the class registered as ``name``. Raises :class:`PluginError` with near matches and broken plugins otherwise."""
        component = self.components.get((kind, name))
        if component is None:
            broken = [f"{p.name} ({p.error})" for p in self.plugins.values() if p.error]
            note = f" Broken plugins, which may have provided it: {'; '.join(broken)}." if broken else ""
            raise PluginError(f"Unknown {kind} {name!r}. {near_matches(name, self.names(kind))} `modulate plugins` lists them.{note}")
        return component.load()


@functools.cache
def registry() -> Registry:
    """Return this process's registry. ``MODULATE_PLUGINS`` (comma-separated entry point names; empty for none) limits what is loaded."""
    points: Iterable[EntryPoint] = entry_points(group=GROUP)
    wanted = os.environ.get("MODULATE_PLUGINS")
    if wanted is not None:
        names = {name.strip() for name in wanted.split(",")}
        points = [p for p in points if p.name in names]
    return Registry(points)


def get(kind: str, name: str) -> Any:
    """Return the class registered under ``name`` for ``kind`` (one of :data:`KINDS`)."""
    return registry().get(kind, name)
