"""Parsers of the released checkpoint: its content, its pickle, its archive."""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

from tests.durability import mutations as mutate
from tests.durability.parsers.parser import Parser, through_file

DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "bool", "complex64")


def described() -> dict[str, Any]:
    """Return a small released checkpoint as a JSON tree.

    A tensor is written as {"tensor": dtype, "shape": […]}.
    """
    from modulate_gaze.checkpoint import PREFIXES, ReleasedConfig, released_shapes

    config = dict(d_vjepa=3, d_llm=6, n_latents=2, d_latent=4, n_blocks=1, n_layers=1, version="v")
    tensor = lambda *shape: {"tensor": "float32", "shape": list(shape)}
    state = {
        name: tensor(*shape) for name, shape in released_shapes(ReleasedConfig(**config), 1).items()
    }
    lora = {
        f"{PREFIXES[1]}.0.self_attn.{n}_proj.lora_{side}": (
            tensor(2, 6) if side == "A" else tensor(d, 2)
        )
        for n, d in (("q", 6), ("v", 4))
        for side in "AB"
    }
    return {
        "state_dict": state,
        "config": config,
        "lora_state_dict": lora,
        "lora_config": {"rank": 2, "alpha": 16.0},
    }


def built(value: Any) -> Any:
    """Return a described tree with real tensors.

    Large tensors are expanded views of one number: they claim a shape without taking memory.
    """
    import torch

    if isinstance(value, list):
        return [built(item) for item in value]
    if not isinstance(value, dict):
        return value
    if (
        value.get("tensor") in DTYPES
        and isinstance(shape := value.get("shape"), list)
        and all(type(n) is int and 0 <= n < 2**15 for n in shape)
        and len(shape) < 6
    ):
        dtype = getattr(torch, value["tensor"])
        return (
            torch.ones(shape, dtype=dtype)
            if math.prod(shape) < 4096
            else torch.ones((), dtype=dtype).expand(shape)
        )
    return {key: built(item) for key, item in value.items()}


def parse_content(data: bytes) -> Any:
    from modulate.errors import CheckpointError
    from modulate_gaze.checkpoint import parse_content

    try:
        content = built(json.loads(data))
    except (ValueError, RuntimeError, RecursionError) as error:
        # Unreadable files belong to the parser of archives.
        raise CheckpointError("no content") from error
    return parse_content(content, Path("best_model.pt"))


def check_checkpoint(result: Any, data: bytes) -> None:
    c = result.config
    assert set(result.resampler) >= {"amplitude", "latents.0"} and result.resampler[
        "amplitude"
    ].shape == (c.n_layers,)
    assert (
        all(t.isfinite().all() for t in (*result.resampler.values(), *result.lora.values()))
        and len(result.lora) == 4 * c.n_layers
    )
    assert all(
        result.lora[layer, "self_attn.q_proj", "B"].shape == (c.d_llm, result.lora_config.rank)
        for layer in range(c.n_layers)
    )


def archive_seeds() -> list[bytes]:
    import torch

    out = io.BytesIO()
    torch.save(built(described()), out)
    return [out.getvalue()]


def pickle_of(data: bytes) -> bytes:
    """Return the pickle in a file of torch.save."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def check_count(result: int, data: bytes) -> None:
    assert 1 <= result <= 20_000_000


def parsers() -> list[Parser]:
    """Return the parsers of the released checkpoint."""
    from modulate.utils.pickle_check import check_pickle
    from modulate_gaze.checkpoint import read_checkpoint

    checkpoint = Parser(
        name="checkpoint",
        what="what a released checkpoint holds",
        seeds=lambda: [json.dumps(described()).encode()],
        parse=parse_content,
        check=check_checkpoint,
        modules=("modulate_gaze.checkpoint",),
        mutation=mutate.mutate_json,
        never=("_unpickled", "_check_size", "read_checkpoint"),
    )
    pickle = Parser(
        name="pickle",
        what="the pickle in a released checkpoint",
        seeds=lambda: [pickle_of(archive_seeds()[0])],
        parse=lambda data: check_pickle(data, "best_model.pt"),
        check=check_count,
        modules=("modulate.utils.pickle_check",),
        never=("check_archive",),
    )
    archive = Parser(
        name="archive",
        what="a released checkpoint's file",
        seeds=archive_seeds,
        parse=through_file(read_checkpoint, "best_model.pt"),
        check=check_checkpoint,
        modules=("modulate.utils.pickle_check", "modulate_gaze.checkpoint"),
        mutation=mutate.mutate_archive,
        only=("check_archive", "check_pickle", "_run", "_pop", "_unpickled", "_check_size"),
        share=0.1,
    )
    return [checkpoint, pickle, archive]
