"""Families of hosts: what each needs beyond the generic transformers host."""

from modulate.hookspecs import Register, hookimpl


@hookimpl
def register_hosts(register: Register) -> None:
    """Register the generic host, and the families that it does not serve in full."""
    register("generic", "modulate.hosts.host:Host")
    register("qwen2_vl", "modulate_hosts.qwen2_vl:Qwen2VL")
    register("qwen2_5_vl", "modulate_hosts.qwen2_5_vl:Qwen25VL")
    register("qwen3_vl", "modulate_hosts.qwen3_vl:Qwen3VL")
    register("llava", "modulate_hosts.llava:Llava")
    register("llava_next_video", "modulate_hosts.llava:LlavaNextVideo")
    register("llava_onevision", "modulate_hosts.llava_onevision:LlavaOnevision")
    register("glm4v", "modulate_hosts.glm4v:Glm4v")
    register("gemma4", "modulate_hosts.gemma4:Gemma4")
    register("llama4", "modulate_hosts.llama4:Llama4")
    register("minicpmv4_6", "modulate_hosts.minicpm:MiniCPMV46")
    register("video_llava", "modulate_hosts.video_llava:VideoLlava")
