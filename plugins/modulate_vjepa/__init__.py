"""V-JEPA 2.1 as a backbone: features of a clip."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_backbones(register: Register) -> None:
    """Register ``vjepa2_1``: V-JEPA 2.1's encoder, from a published or a custom checkpoint."""
    register("vjepa2_1", "modulate_vjepa.backbone:VJepa21")
