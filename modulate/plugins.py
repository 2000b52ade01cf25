"""Find plugins, record why broken ones are broken, and resolve names of components.

Every entry point of the group ``modulate`` is loaded in its own ``try``, so a broken plugin is
listed with its reason and does not affect the others. Asking for a component that only it provides
is an error that repeats the reason. Components are imported when a recipe asks for them, so one
that cannot be imported stops only the recipes that use it.
"""

import functools
import importlib
import os
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pluggy

from modulate import hookspecs
from modulate.errors import ComponentError, ModulateError, PluginError, near_matches
from modulate.utils.entry_points import (
    PluginInfo,
    entry_points,
    locate,
    module_of,
    notes,
    ships,
)

GROUP = "modulate"
VARIABLE = "MODULATE_PLUGINS"
NOT_ERRORS = frozenset({"OutOfMemoryError", "_StopRecomputationError"})
"""Exceptions of torch that are no defect of a component: full memory, and the end of a recompute.

They are known by name because this module must not import torch.
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
"""Kind of component → the hook that registers it."""


class InterfaceError(Exception):
    """A component's result breaks the rules of its interface.

    The text continues "modulator 'x' of plugin 'y' …". Raise it inside :meth:`Registry.blame`,
    which turns it into a :class:`ComponentError`.
    """


@dataclass(frozen=True)
class Component:
    """A registered component: its kind, its name, its class or the place of it, and its plugin."""

    kind: str
    name: str
    target: str | type
    plugin: str

    def load(self) -> Any:
        """Import and return the class.

        Raises :class:`PluginError` that names the plugin if the import fails.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind} {self.name!r} of plugin {self.plugin!r} cannot be loaded from"
                f" {self.target!r}: {error!r}. {self._remedy(error)}"
            ) from error

    def _remedy(self, error: BaseException) -> str:
        """Return what to do about an import that failed with ``error``."""
        module = str(self.target).partition(":")[0]
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and missing.partition(".")[0] != module.partition(".")[0]:
            return f"Install the package that has the module {missing!r}."
        if missing or isinstance(error, AttributeError):
            return (
                f"Correct the name in the plugin's {KINDS[self.kind]}, which must be"
                ' "module:Class", or the module.'
            )
        return "Mend that module, or install another version of the plugin."


class Registry:
    """The plugins of this process and the components they register.

    ``off``: plugins that are installed but not loaded. ``missing``: requested plugins that are not
    installed, each with its ``error``. While one is missing, plugins can be listed, but asking for
    a component is an error.
    """

    def __init__(
        self,
        points: Iterable[EntryPoint],
        wanted: Iterable[str] | None = None,
        hidden: Iterable[EntryPoint] = (),
    ) -> None:
        """Load the plugins of ``points``, or only those named in ``wanted`` if that is given.

        ``hidden``: entry points that are listed but not loaded, because an earlier distribution has
        the same name as theirs.
        """
        self.manager = pluggy.PluginManager("modulate")
        self.manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, PluginInfo] = {}
        self.off: dict[str, PluginInfo] = {}
        self.missing: dict[str, PluginInfo] = {}
        self.components: dict[tuple[str, str], Component] = {}
        # Shipped plugins come first, so that no other plugin can take their names.
        points = sorted(points, key=lambda point: (not ships(point), point.name))
        names = {point.name for point in points}
        chosen = names if wanted is None else set(wanted)
        for name in sorted(chosen - names):
            error = (
                f"{VARIABLE} names {name!r}, and no such plugin is installed."
                f" {near_matches(name, names)}"
            )
            self.missing[name] = PluginInfo(name, error=error)
        for point in points:
            if point.name in chosen:
                self._load(point)
            else:
                info = PluginInfo.of(point, off=True)
                key = self._rename(info) if point.name in self.off else point.name
                self.off[key] = info
        for point in hidden:
            info = PluginInfo.of(point)
            info.error = (
                f"not loaded: an earlier distribution is called {info.distribution!r} as well;"
                " rename one"
            )
            self.plugins[self._rename(info)] = info

    @staticmethod
    def _rename(info: PluginInfo) -> str:
        """Rename a plugin whose name is taken, so that it can be listed; return the new name."""
        info.name = f"{info.name} of {info.source}"
        return info.name

    def _load(self, point: EntryPoint) -> None:
        info = PluginInfo.of(point)
        first = self.plugins.get(point.name)
        if first is not None:
            # A package installed in two places on the path is found twice, which does no harm.
            if first.source != info.source:
                info.error = (
                    f"the entry point name {point.name!r} is taken by {first.source}; rename one"
                )
                self.plugins[self._rename(info)] = info
            return
        self.plugins[point.name] = info
        try:
            with self.protect_others(point.name):
                plugin = point.load()
            self.add(point.name, plugin, info)
        # SystemExit: a module that calls exit() must not end this process.
        except (Exception, SystemExit) as error:
            info.error = f"{type(error).__name__}: {error}"
        info.location = locate(module_of(point))
        info.notes = notes(point, info.location)

    def add(self, name: str, plugin: object, info: PluginInfo | None = None) -> PluginInfo:
        """Register ``plugin``, a module or object with hook implementations.

        All or nothing: a clash or a misspelled hook leaves no trace. Raises :class:`PluginError`
        that names the plugin and the hook that failed.
        """
        if info is None:
            location = str(getattr(plugin, "__file__", None) or "")
            info = PluginInfo(name, "added at run time", location=location)
        self.manager.register(plugin, name)
        added: list[Component] = []
        try:
            self.manager.check_pending()
            with self.protect_others(name):
                for kind, hook in KINDS.items():
                    added += self._collect(kind, hook, plugin, info)
        except Exception:
            self.manager.unregister(plugin)
            raise
        self.components |= {(component.kind, component.name): component for component in added}
        info.provides = [(component.kind, component.name) for component in added]
        self.plugins[name] = info
        return info

    @contextmanager
    def protect_others(self, name: str) -> Iterator[None]:
        """Run code of the plugin ``name`` so that it cannot change what others registered.

        Such changes are undone when the block ends, and raise :class:`PluginError`.
        """
        components = dict(self.components)
        plugins = dict(self.manager.list_name_plugin())
        try:
            yield
        finally:
            changed = self._restore(components, plugins)
        if changed:
            raise PluginError(
                f"The plugin {name!r} changed what others registered: {', '.join(changed)}. The"
                " changes are undone, and this plugin is left out."
            )

    def _restore(
        self, components: dict[tuple[str, str], Component], plugins: dict[str, Any]
    ) -> list[str]:
        """Restore what was registered, and return the names of what had changed."""
        current = dict(self.manager.list_name_plugin())
        changed = [
            f"{kind} {name!r}"
            for kind, name in components.keys() | self.components.keys()
            if components.get((kind, name)) is not self.components.get((kind, name))
        ]
        changed += [
            f"plugin {name!r}"
            for name in plugins.keys() | current.keys()
            if plugins.get(name) is not current.get(name)
        ]
        if changed:
            self.components = components
            for name in current:
                self.manager.unregister(name=name)
            for name, plugin in plugins.items():
                self.manager.register(plugin, name)
        return sorted(changed)

    def remove(self, name: str) -> None:
        """Remove the plugin ``name`` and everything that it registered."""
        self.manager.unregister(name=name)
        self.plugins.pop(name)
        self.components = {
            key: component for key, component in self.components.items() if component.plugin != name
        }

    def _collect(self, kind: str, hook: str, plugin: object, info: PluginInfo) -> list[Component]:
        """Call one hook of ``plugin`` and return what it registers."""
        registered: dict[str, Component] = {}
        owner = info.name

        def register(name: str, target: str | type) -> None:
            clash = self.components.get((kind, name)) or registered.get(name)
            if clash:
                info.clashes.append((kind, name))
                raise PluginError(
                    f"{kind} {name!r} of plugin {owner!r} clashes with the one of plugin"
                    f" {clash.plugin!r}; rename one of them. {owner!r} came later and registers"
                    " nothing."
                )
            registered[name] = Component(kind, name, target, owner)

        others = [known for known in self.manager.get_plugins() if known is not plugin]
        try:
            self.manager.subset_hook_caller(hook, remove_plugins=others)(register=register)
        except ModulateError:
            raise
        except Exception as error:
            raise PluginError(
                f"The plugin {owner!r} failed in its hook {hook}: {_describe(error)}"
            ) from error
        return list(registered.values())

    def names(self, kind: str) -> list[str]:
        """Return the registered names of ``kind``, sorted."""
        self._check_missing()
        return sorted(name for known, name in self.components if known == kind)

    def get(self, kind: str, name: str) -> Any:
        """Return the class registered as ``name``.

        Raises :class:`PluginError` with similar names, and with the plugins that are broken or
        switched off.
        """
        self._check_missing()
        component = self.components.get((kind, name))
        if component is None:
            raise PluginError(self._unknown(kind, name))
        for info in self.plugins.values():
            if (kind, name) in info.clashes:
                warnings.warn(
                    f"{kind} {name!r} is the one of plugin {component.plugin!r}. That of"
                    f" {info.name!r} has the same name and is left out.",
                    stacklevel=3,
                )
        return component.load()

    def loadable(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield name and class of each component of ``kind``, sorted by name.

        One that cannot be loaded is left out with a warning.
        """
        for name in self.names(kind):
            try:
                yield name, self.get(kind, name)
            except PluginError as error:
                warnings.warn(f"{error} It is left out here.", stacklevel=2)

    def name_of(self, kind: str, cls: type) -> str:
        """Return the name that ``cls`` is registered under; its own if it is not."""
        targets = (cls, f"{cls.__module__}:{cls.__qualname__}")
        return next(
            (
                component.name
                for component in self.components.values()
                if component.kind == kind and component.target in targets
            ),
            cls.__name__,
        )

    def provider(self, kind: str, name: str) -> PluginInfo | None:
        """Return the plugin that provides a component, or None if there is none."""
        component = self.components.get((kind, name))
        return None if component is None else self.plugins.get(component.plugin)

    def _unknown(self, kind: str, name: str) -> str:
        text = (
            f"Unknown {kind} {name!r}. {near_matches(name, self.names(kind))} `modulate plugins`"
            " lists them."
        )
        broken = [f"{info.name} ({info.error})" for info in self.plugins.values() if info.error]
        if broken:
            text += f" Broken plugins, which may have provided it: {'; '.join(broken)}."
        if self.off:
            text += f" Switched off by {VARIABLE}: {', '.join(self.off)}."
        return text

    def _check_missing(self) -> None:
        """Raise :class:`PluginError` if a requested plugin is not installed.

        Whoever limits which plugins run, and misspells one, must not silently get other results.
        """
        for info in self.missing.values():
            raise PluginError(info.error)

    @contextmanager
    def blame(
        self, kind: str, name: str, doing: str, passing: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Turn an unexpected exception into a :class:`ComponentError` that names the component.

        ``doing`` says what the component was doing. Errors of modulate, those in ``passing``, full
        memory, and :data:`NOT_ERRORS` are not changed. The original becomes the cause.
        """
        try:
            yield
        except InterfaceError as error:
            raise ComponentError(f"{self._guilty(kind, name, package=True)} {error}") from error
        except Exception as error:
            if (
                isinstance(error, (ModulateError, MemoryError, *passing))
                or type(error).__name__ in NOT_ERRORS
            ):
                raise
            raise ComponentError(
                f"{self._guilty(kind, name)} failed in {doing}: {_describe(error)}"
            ) from error

    def _guilty(self, kind: str, name: str, package: bool = False) -> str:
        """Return how errors call a component; ``package``: with its distribution and version."""
        component = self.components.get((kind, name))
        if component is None:
            return f"{kind} {name!r}"
        info = self.plugins.get(component.plugin)
        origin = f" ({info.package})" if package and info and info.package else ""
        return f"{kind} {name!r} of plugin {component.plugin!r}{origin}"


def _describe(error: Exception) -> str:
    """Return the type and text of an error, and the line that raised it."""
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


@functools.cache
def registry() -> Registry:
    """Return the registry of this process.

    The environment variable ``MODULATE_PLUGINS`` limits which plugins are loaded: if unset, all; if
    empty or ``none``, none; otherwise the named entry points, separated by commas.
    """
    setting = os.environ.get(VARIABLE)
    points, hidden = entry_points(GROUP)
    if setting is None:
        return Registry(points, hidden=hidden)
    if setting.strip() == "none":
        return Registry(points, [], hidden)
    names = [part.strip() for part in setting.split(",")]
    return Registry(points, [name for name in names if name], hidden)


def get(kind: str, name: str) -> Any:
    """Return the class registered under ``name`` for ``kind`` (one of :data:`KINDS`)."""
    return registry().get(kind, name)
