"""Families of hosts: what each needs beyond the generic transformers host."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_hosts(register: Register) -> None:
    """Register the families that the generic host does not serve in full."""
    register("qwen2_vl", "modulate_hosts.qwen2_vl:Qwen2VL")
    register("qwen2_5_vl", "modulate_hosts.qwen2_5_vl:Qwen25VL")
    register("qwen3_vl", "modulate_hosts.qwen3_vl:Qwen3VL")
    register("llava_onevision", "modulate_hosts.llava_onevision:LlavaOnevision")
    register("video_llava", "modulate_hosts.video_llava:VideoLlava")
