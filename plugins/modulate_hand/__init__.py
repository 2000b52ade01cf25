"""Hand positions as a signal, for the encoders of gaze. Registration imports no torch."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_signals(register: Register) -> None:
    """Register ``hand``: sampled positions from ``<video stem>_hand.csv``."""
    register("hand", "modulate_hand.path:HandPath")
