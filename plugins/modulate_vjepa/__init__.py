"""V-JEPA 2.1 as a backbone: features of short stretches of video."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_backbones(register: Register) -> None:
    """``vjepa2_1``: the encoder of V-JEPA 2.1, from a published or a self-trained checkpoint."""
    register("vjepa2_1", "modulate_vjepa.backbone:VJepa21")
