"""The packages whose components a saved modulation needs: recorded with it, named when missing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from modulate import plugins
from modulate.errors import PluginError
from modulate.interfaces.multi_signal import KIND_SEPARATOR
from modulate.interfaces.params import ComponentSpec, Params
from modulate.utils.entry_points import DISTRIBUTION

NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
"""Names of distributions. Anything else could be more than a name in the command that we print."""

VERSION = r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$"
"""Versions of distributions."""


class RequiredPlugin(Params):
    """A package, and those of its components that a modulation needs."""

    package: str = Field(pattern=NAME, max_length=100, description="name to install it by")
    version: str = Field(
        pattern=VERSION, max_length=50, description="version that was installed when it was saved"
    )
    components: dict[str, tuple[str, ...]] = Field(
        description="names of the components that are needed, by kind"
    )

    @property
    def requirement(self) -> str:
        """The package and version as pip takes them."""
        return f"{self.package}=={self.version}"


def required_plugins(components: Iterable[tuple[str, str]]) -> tuple[RequiredPlugin, ...]:
    """Return the packages that provide ``components``, each a kind and a name.

    What was registered at run time, without a package, is left out.
    """
    registry = plugins.registry()
    packages: dict[tuple[str, str], dict[str, set[str]]] = {}
    for kind, name in components:
        info = registry.provider(kind, name)
        if info is not None and info.version:
            of_package = packages.setdefault((info.distribution, info.version), {})
            of_package.setdefault(kind, set()).add(name)
    return tuple(
        RequiredPlugin(
            package=package,
            version=version,
            components={kind: tuple(sorted(names)) for kind, names in sorted(found.items())},
        )
        for (package, version), found in sorted(packages.items())
    )


def components_in(kind: str, spec: ComponentSpec) -> Iterator[tuple[str, str]]:
    """Yield kind and name of a component, and of those that its parameters name."""
    yield kind, spec.name
    _, params = spec.resolved(kind)
    for nested in _specs_in(dict(params)):
        yield from components_in(kind, nested)


def kinds_in(signal: str) -> Iterator[tuple[str, str]]:
    """Yield ("signal", kind) for each kind of a recipe's ``signal``."""
    for kind in signal.split(KIND_SEPARATOR):
        yield "signal", kind


def _specs_in(value: Any) -> Iterator[ComponentSpec]:
    if isinstance(value, ComponentSpec):
        yield value
    elif isinstance(value, BaseModel):
        yield from _specs_in(dict(value))
    elif isinstance(value, Mapping):
        yield from _specs_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _specs_in(item)


def refuse_missing(required: Sequence[RequiredPlugin], kinds: Iterable[str], source: str) -> None:
    """Raise :class:`PluginError` if a component of ``kinds`` that is ``required`` is not here.

    ``source``: what requires it. The error names the package, and how to install it.
    """
    registry = plugins.registry()
    for kind in kinds:
        for plugin in required:
            for name in plugin.components.get(kind, ()):
                if registry.provider(kind, name) is None:
                    raise PluginError(_missing(registry, plugin, kind, name, source))


def _missing(
    registry: plugins.Registry, plugin: RequiredPlugin, kind: str, name: str, source: str
) -> str:
    installed = {info.distribution: info for info in registry.plugins.values()}
    info = installed.get(plugin.package)
    text = (
        f"{source} needs the {kind} {name!r} of the package {plugin.package} {plugin.version},"
        f" which is {f'installed as {info.version}' if info else 'not installed'} here."
    )
    off = [entry.name for entry in registry.off.values() if entry.distribution == plugin.package]
    if info is not None and info.error:
        return f"{text} Its plugin {info.name!r} is broken: {info.error}"
    if off:
        return f"{text} {plugins.VARIABLE} switches these plugins of it off: {', '.join(off)}."
    trust = "" if plugin.package == DISTRIBUTION else " If you trust its authors:"
    return f"{text}{trust} `pip install {plugin.requirement}`."
