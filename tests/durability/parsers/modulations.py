"""Parsers of a saved modulation: configuration, weights, LoRA, and a backbone's dimensions."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.durability import mutations as mutate
from tests.durability.parsers.parser import Parser, scratch

WEIGHTS = "model.safetensors"
ADAPTER = "adapter/adapter_model.safetensors"


@functools.cache
def saved(name: str = "saved") -> tuple[Any, Path]:
    """Return a small modulation with LoRA, and the scratch folder ``name`` that holds it."""
    import torch

    from modulate.config.injection import Injection, LoraParams
    from modulate.interfaces.params import ComponentSpec
    from modulate.modulation.lora import LoraSpec
    from modulate.modulation.module import HostSpec, Modulation, ModulationConfig

    torch.set_num_threads(1)
    config = ModulationConfig(
        host=HostSpec(model_type="qwen2_5_vl", d_model=8, n_layers=3),
        encoder=ComponentSpec(name="heatmap_dur", params={"dim": 4}),
        modulator=ComponentSpec(
            name="gaze_resampler", params={"width": 4, "latents": 2, "blocks": 1}
        ),
        injection=Injection(layers=(0, 2)),
        d_features=3,
        lora=LoraSpec(
            params=LoraParams(rank=2),
            shapes={"self_attn.q_proj": (8, 8), "self_attn.v_proj": (8, 4)},
            layers={"self_attn.v_proj": (1,)},
            layers_path="model.layers",
        ),
        backbone=ComponentSpec(name="vjepa2_1", params={"weights": "random"}),
        training={"seed": 0},
    )
    modulation = Modulation(config)
    modulation.save_pretrained(scratch() / name)
    return modulation, scratch() / name


def config_seeds() -> list[bytes]:
    return [(saved()[1] / "config.json").read_bytes()]


def check_config(result: Any, data: bytes) -> None:
    tree = json.loads(data)
    assert result.host.d_model == int(float(tree["host"]["d_model"])) and list(
        result.injection.layers
    ) == [int(float(n)) for n in tree["injection"]["layers"]]
    assert type(result).model_validate_json(result.model_dump_json()) == result
    assert all(0 <= layer < result.host.n_layers for layer in result.injection.layers)


def read_folder(path: Path) -> Any:
    """Load a modulation with the configuration in ``path`` and the weights of the seed."""
    from modulate.modulation.module import Modulation

    folder = scratch() / "changed"
    if not folder.exists():
        folder.mkdir()
        for name in ("model.safetensors", "adapter"):
            (folder / name).symlink_to(saved()[1] / name)
    (folder / "config.json").write_bytes(path.read_bytes())
    return Modulation.from_pretrained(folder).config


def fill_weights(data: bytes) -> Any:
    """Load the bytes of a weights file into a small modulation."""
    modulation, _ = saved("changed numbers")
    modulation.fill(tensors_of(data), "model.safetensors")
    return modulation


def fill_adapter(data: bytes) -> Any:
    """Load the bytes of an adapter file into the LoRA of a small modulation."""
    modulation, _ = saved("changed numbers")
    modulation.lora.load_peft(tensors_of(data))
    return modulation


def tensors_of(data: bytes) -> dict[str, Any]:
    """Return the tensors in a file's bytes; raise CheckpointError as `Modulation.load` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from modulate.errors import CheckpointError

    try:
        return load(data)
    except SafetensorError as error:
        raise CheckpointError(f"The weights cannot be read: {error}") from error


def load_file(name: str) -> Callable[[Path], Any]:
    """Return a function that loads the small modulation with its file ``name`` replaced."""

    def read(path: Path) -> Any:
        modulation, folder = saved("changed numbers")
        (folder / name).write_bytes(path.read_bytes())
        try:
            modulation.load(folder)
        finally:
            (folder / name).write_bytes(weight_seeds(name)()[0])
        return modulation

    return read


def check_weights(name: str) -> Callable[[Any, bytes], None]:
    """Return a check that the modulation holds exactly the numbers in a file's bytes."""

    def check(result: Any, data: bytes) -> None:
        from safetensors.torch import load

        short = lambda key: (
            key if name == "model.safetensors" else key[key.rindex("layers.") :]
        )  # where the layers are in a host is not the adapter's to say
        own = {
            short(key): tensor
            for key, tensor in (
                result.state_dict() if name == "model.safetensors" else result.lora.to_peft()[1]
            ).items()
        }
        for key, tensor in load(data).items():
            assert tensor.isfinite().all() and bool((own[short(key)] == tensor.float()).all())

    return check


def weight_seeds(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(saved()[1] / name).read_bytes()]


def encoder_seeds() -> list[bytes]:
    trees = (
        {"dim": 48, "depth": 12, "heads": 3},
        {
            "embed_dim": 768,
            "depth": 4,
            "num_heads": 12,
            "mlp_ratio": 4.0,
            "levels": [1, 3],
            "patch_size": 16,
            "other": None,
        },
    )
    return [json.dumps(tree).encode() for tree in trees]


def check_encoder(result: Any, data: bytes) -> None:
    tree = json.loads(data)
    assert (
        result.dim == int(float(tree.get("dim", tree.get("embed_dim"))))
        and result.depth == int(float(tree["depth"]))
        and result.dim % result.heads == 0
    )
    assert (
        result.levels[-1] == result.depth - 1
        and max(result.dim, result.depth, result.hidden // result.dim) <= 1 << 16
    )


def parsers() -> list[Parser]:
    """Return the parsers of a saved modulation."""
    from modulate.modulation.config import parse_config
    from modulate_vjepa.weights import parse_config as parse_encoder_config

    config = Parser(
        name="config",
        what="config.json of a saved modulation",
        seeds=config_seeds,
        parse=lambda data: parse_config(data, "config.json"),
        check=check_config,
        modules=("modulate.modulation.config",),
        mutation=mutate.mutate_json,
        read=read_folder,
        suffix=".json",
        never=("of", "portable"),
        same=False,
    )
    weights = Parser(
        name="weights",
        what="safetensors of a saved modulation",
        seeds=weight_seeds(WEIGHTS),
        parse=fill_weights,
        check=check_weights(WEIGHTS),
        modules=("modulate.modulation.module", "modulate.modulation.lora"),
        mutation=mutate.mutate_safetensors,
        read=load_file(WEIGHTS),
        suffix=".safetensors",
        only=("load", "fill", "check_numbers"),
    )
    adapter = Parser(
        name="adapter",
        what="safetensors of its LoRA",
        seeds=weight_seeds(ADAPTER),
        parse=fill_adapter,
        check=check_weights(ADAPTER),
        modules=("modulate.modulation.lora",),
        mutation=mutate.mutate_safetensors,
        read=load_file(ADAPTER),
        suffix=".safetensors",
        only=("check_numbers", "load_peft", "_slot", "_unslot"),
    )
    encoder = Parser(
        name="encoder",
        what="dimensions beside a backbone's weights, JSON",
        seeds=encoder_seeds,
        parse=lambda data: parse_encoder_config(data, "config.json"),
        check=check_encoder,
        modules=("modulate_vjepa.weights", "modulate_vjepa.encoder"),
        mutation=mutate.mutate_json,
        only=("parse_config", "config_from", "__post_init__", "hidden"),
    )
    return [config, weights, adapter, encoder]
