"""A small checkpoint with the content of GazeQwen's released one."""

import math

import torch

from modulate_gaze.checkpoint import PREFIXES, ReleasedConfig, released_shapes


def released_content(
    d_vjepa=6,
    d_llm=8,
    n_latents=3,
    d_latent=8,
    n_blocks=2,
    n_layers=28,
    modules=4,
    rank=2,
    d_value=4,
    prefix=PREFIXES[1],
    seed=0,
):
    """Return a checkpoint's content like the released code's, with random numbers everywhere."""
    config = dict(
        d_vjepa=d_vjepa,
        d_llm=d_llm,
        n_latents=n_latents,
        d_latent=d_latent,
        n_blocks=n_blocks,
        n_layers=n_layers,
        version="gazelens",
    )
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])
    state = {
        name: random(*shape)
        for name, shape in released_shapes(ReleasedConfig(**config), modules).items()
    }
    state["amplitude"] = torch.rand(n_layers, generator=generator) + 0.5
    lora = {}
    for layer in range(n_layers):
        for name, d_out in (("q_proj", d_llm), ("v_proj", d_value)):
            lora[f"{prefix}.{layer}.self_attn.{name}.lora_A"] = random(rank, d_llm)
            lora[f"{prefix}.{layer}.self_attn.{name}.lora_B"] = random(d_out, rank)
    return {
        "state_dict": state,
        "config": config,
        "lora_state_dict": lora,
        "lora_config": {"rank": rank, "alpha": 16.0},
    }
