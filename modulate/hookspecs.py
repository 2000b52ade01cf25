"""Every extension point of modulate, on one screen.

A plugin is an installed package with an entry point in the group ``modulate`` that implements any
of these hooks. Each hook receives ``register(name, target)``: ``name`` is what recipes write, and
``target`` is the class or ``"module:Class"``, which is imported only when it is used, so that
listing plugins stays instant. The base class named in each hook documents the interface.
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
    """Register kinds of time-stamped side signals.

    Base class: :class:`modulate.interfaces.signal.Signal`.
    """


@hookspec
def register_signal_encoders(register: Register) -> None:
    """Register encoders: signal + visual grid → features per visual token.

    Base class: :class:`modulate.interfaces.components.SignalEncoder`.
    """


@hookspec
def register_backbones(register: Register) -> None:
    """Register frozen vision encoders of raw frames.

    Base class: :class:`modulate.interfaces.components.Backbone`.
    """


@hookspec
def register_modulators(register: Register) -> None:
    """Register modulators: signal features + backbone features → residuals.

    Base class: :class:`modulate.interfaces.components.Modulator`.
    """


@hookspec
def register_hosts(register: Register) -> None:
    """Register hosts: what a family of multimodal LLMs needs beyond the generic host.

    Base class: :class:`modulate.hosts.host.Host`.
    """


@hookspec
def register_datasets(register: Register) -> None:
    """Register datasets: questions about clips, with their signals.

    Base class: :class:`modulate.interfaces.components.Dataset`.
    """


@hookspec
def register_inputs(register: Register) -> None:
    """Register input-side baselines, which show a signal to the bare host in frames or prompt.

    Base class: :class:`modulate.interfaces.components.InputTransform`.
    """


@hookspec
def register_commands(cli: "typer.Typer") -> None:
    """Add commands to the ``modulate`` command line."""
