"""Read the weights and dimensions of a V-JEPA 2.1 encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modulate.errors import CheckpointError, DataError, RecipeError, shown
from modulate.utils.pickle_check import check_archive
from modulate.utils.safe_load import parse_json, read_limited
from modulate_vjepa.encoder import VJepaConfig, VJepaEncoder

ENCODERS = ("ema_encoder", "target_encoder")
"""Keys of the encoder in published checkpoints: base and large the first, others the second."""

WRAPPERS = ("module.", "backbone.", "encoder.")
"""Prefixes that training code puts before parameter names."""

ALIASES = {
    "embed_dim": "dim",
    "num_heads": "heads",
    "patch_size": "patch",
    "tubelet_size": "tubelet",
    "layernorm_eps": "eps",
}
"""{name of a dimension in the training code: our name}."""


CONFIG_BYTES = 1 << 20
"""Largest size of config.json, bytes."""

_CONFIG = TypeAdapter(VJepaConfig)


def load_encoder(path: Path, config: VJepaConfig | None) -> VJepaEncoder:
    """Return an encoder in float32 with the weights in ``path``.

    ``path`` is a .safetensors file or a published .pt, which is read without unpickling objects.
    ``config`` are the dimensions; if None, they come from the JSON under ``config`` in the file's
    metadata, or from ``config.json`` beside it. Raises :class:`modulate.errors.RecipeError` if both
    are missing, and :class:`modulate.errors.CheckpointError` if the file is unreadable or does not
    fit exactly.
    """
    if path.suffix == ".safetensors":
        metadata, tensors = _read_safetensors(path)
    else:
        metadata = {}
        tensors = _read_published(path)
    config = config or _config_beside(path, metadata)
    # On the meta device: the weights are assigned below, so random ones would be wasted.
    with torch.device("meta"):
        encoder = VJepaEncoder(config)
    try:
        encoder.load_state_dict(
            {name: value.float() for name, value in tensors.items()}, strict=True, assign=True
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit {config}: {error} Name the preset or dims that the weights were"
            " trained with."
        ) from error
    return encoder


def random_encoder(config: VJepaConfig, seed: int) -> VJepaEncoder:
    """Return an encoder with random weights from ``seed``; keeps the global generator's state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VJepaEncoder(config)


def config_from(values: dict[str, Any], source: str) -> VJepaConfig:
    """Return the configuration in ``values``, under our names or the training code's.

    Other keys are ignored. Raises :class:`modulate.errors.RecipeError`, which names ``source``, if
    width, depth or heads are missing.
    """
    known = {field.name for field in dataclasses.fields(VJepaConfig)}
    found = {ALIASES.get(key, key): value for key, value in values.items()}
    missing = sorted({"dim", "depth", "heads"} - set(found))
    if missing:
        raise RecipeError(
            f"{source} does not say {', '.join(missing)} of the encoder. Name them in the recipe"
            " under dims, or a preset."
        )
    twice = sorted(
        own
        for key, own in ALIASES.items()
        if key in values and values.get(own, values[key]) != values[key]
    )
    if twice:
        raise RecipeError(
            f"{source} says {twice[0]} of the encoder twice, under two names and differently. Keep"
            " one, or name dims in the recipe."
        )
    try:
        return _CONFIG.validate_python({key: value for key, value in found.items() if key in known})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecipeError(
            f"{source}: {where}: {first['msg']}; got {shown(first['input'])}. Name a preset or dims"
            " in the recipe instead."
        ) from error


def _config_beside(path: Path, metadata: dict[str, str]) -> VJepaConfig:
    """Return the dimensions from the file's metadata, or from ``config.json`` beside it."""
    beside = path.parent / "config.json"
    if "config" in metadata:
        text = metadata["config"].encode()
        source = f"The metadata of {path}"
    elif beside.is_file():
        text = read_limited(beside, CONFIG_BYTES)
        source = str(beside)
    else:
        raise RecipeError(
            f"Neither {path} nor a config.json beside it says the encoder's dimensions. Name a"
            " preset or dims in the recipe."
        )
    return parse_config(text, source)


def parse_config(data: bytes, source: str) -> VJepaConfig:
    """Return the configuration in JSON text.

    Raises as :func:`config_from`, and :class:`modulate.errors.CheckpointError` for invalid JSON.
    """
    try:
        values = parse_json(data, source)
    except DataError as error:
        raise CheckpointError(f"{error} Name a preset or dims in the recipe instead.") from error
    return config_from(values if isinstance(values, dict) else {}, source)


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the encoder's tensors: those with its prefix, or else all."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            chosen = names
            for prefix in (*ENCODERS, "encoder"):
                own = [name for name in names if name.startswith(f"{prefix}.")]
                if own:
                    chosen = own
                    break
            tensors = {name: file.get_tensor(name) for name in chosen}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Download or export it again."
        ) from error
    return metadata, _checked(tensors, path)


def _read_published(path: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors of a published .pt file."""
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # Unpickling can raise almost anything; each error means that the file is not plain tensors.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a file of plain tensors: {error!s:.2000} Use a published .pt"
            " file or a .safetensors file."
        ) from error
    keys = list(content) if isinstance(content, dict) else []
    chosen = next((key for key in ENCODERS if key in keys), None)
    if chosen is None:
        raise CheckpointError(
            f"{path} holds neither of {', '.join(ENCODERS)}; it holds {shown(keys[:8], 300)}. Use a"
            " published V-JEPA 2.1 checkpoint."
        )
    return _checked(content[chosen], path)


def _checked(tensors: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors under the encoder's names.

    They must be dense floating-point numbers, no more than the file holds, and unique.
    """
    if not isinstance(tensors, dict):
        raise CheckpointError(
            f"{path}: the encoder is a {type(tensors).__name__}; a dictionary of tensors is"
            " expected."
        )
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: the encoder holds {type(value).__name__} under {shown(key)}; tensors"
                " under names are expected."
            )
        # A view can claim far more numbers than the file holds, and converting would take their
        # memory.
        if (
            not value.is_floating_point()
            or value.layout != torch.strided
            or value.numel() * value.element_size() > value.untyped_storage().nbytes()
        ):
            raise CheckpointError(
                f"{path}: tensor {shown(key)} is {value.dtype}, {value.layout}; dense"
                " floating-point numbers, each held by the file, are expected."
            )
        name = _bare(key)
        if name in found:
            raise CheckpointError(
                f"{path} holds {shown(name)} of the encoder twice, the second time as {shown(key)}."
            )
        found[name] = value
    return found


def _bare(name: str) -> str:
    """Return a parameter's name without the prefixes of wrappers."""
    prefixes = (*WRAPPERS, *(f"{key}." for key in ENCODERS))
    while prefix := next((p for p in prefixes if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
