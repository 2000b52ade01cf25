"""Simple alternatives to the paper's parts: three modulators, and an encoder of several signals."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_modulators(register: Register) -> None:
    """Register ``steering``, ``film`` and ``gated_cross_attention``."""
    register("steering", "modulate_basics.steering:Steering")
    register("film", "modulate_basics.film:FiLM")
    register("gated_cross_attention", "modulate_basics.cross_attention:GatedCrossAttention")


@hookimpl
def register_signal_encoders(register: Register) -> None:
    """Register ``together``, which combines one encoder for each kind of signal."""
    register("together", "modulate_basics.together:Together")
