"""Families of hosts: what each needs beyond the generic transformers host."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_hosts(register: Register) -> None:
    """Qwen2.5-VL in full."""
    register("qwen2_5_vl", "modulate_hosts.qwen2_5_vl:Qwen25VL")
