"""Small parts beside the paper's: three modulators (a direction, a scale and shift, attention from
the hidden states) and an encoder of several signals.
"""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_modulators(register: Register) -> None:
    """``steering``, ``film`` and ``gated_cross_attention``."""
    register("steering", "modulate_basics.steering:Steering")
    register("film", "modulate_basics.film:FiLM")
    register("gated_cross_attention", "modulate_basics.cross_attention:GatedCrossAttention")


@hookimpl
def register_signal_encoders(register: Register) -> None:
    """``together``: an encoder for each of several kinds of signal."""
    register("together", "modulate_basics.together:Together")
