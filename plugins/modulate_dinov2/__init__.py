"""DINOv2 as a backbone: features of single frames."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_backbones(register: Register) -> None:
    """Register ``dinov2``: patch tokens of a DINOv2 ViT, frame by frame."""
    register("dinov2", "modulate_dinov2.backbone:DinoV2")
