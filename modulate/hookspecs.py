"""Every extension point of modulate, on one screen.

A plugin is an installed package with an entry point in the group ``modulate``; it implements any of
these hooks. Each hook is handed ``register(name, target)``: ``name`` is what recipes write,
``target`` is ``"module:Class"`` (imported only when used, so that listing plugins stays instant) or
the class itself. What each class must look like is said in the module named beside the hook.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

hookspec = pluggy.HookspecMarker("modulate")
hookimpl = pluggy.HookimplMarker("modulate")

Register = Callable[[str, str | type], None]


@hookspec
def register_signals(register: Register) -> None:
    """Kinds of time-stamped side information: subclasses of
    :class:`modulate.interfaces.signal.Signal`.
    """


@hookspec
def register_signal_encoders(register: Register) -> None:
    """Signal + visual grid → features per visual token:
    :class:`modulate.interfaces.components.SignalEncoder`.
    """


@hookspec
def register_backbones(register: Register) -> None:
    """Frozen vision encoders of the raw frames: :class:`modulate.interfaces.components.Backbone`."""


@hookspec
def register_modulators(register: Register) -> None:
    """Signal features + backbone features → residuals:
    :class:`modulate.interfaces.components.Modulator`.
    """


@hookspec
def register_hosts(register: Register) -> None:
    """What a family of multimodal LLMs needs beyond the generic host:
    :class:`modulate.hosts.host.Host`.
    """


@hookspec
def register_datasets(register: Register) -> None:
    """Questions about clips, with their signals: :class:`modulate.interfaces.components.Dataset`."""


@hookspec
def register_inputs(register: Register) -> None:
    """Ways of telling the bare host about a signal by what it is given, to compare with:
    :class:`modulate.interfaces.components.InputTransform`.
    """


@hookspec
def register_commands(cli: "typer.Typer") -> None:
    """Further commands of the ``modulate`` command line, added to ``cli``."""
