"""Read GazeQwen's released checkpoint, a pickle, without trusting it.

Kind and size of the file are checked first. It is unpickled into plain tensors, numbers and texts
only, and validated against a schema: every entry, and every tensor's name, shape and dtype, must be
as expected. [github.com/phamtrongthang123/gazeqwen; checkpoint phamtrongthang/gazeqwen,
best_model.pt]
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from modulate.errors import CheckpointError, MissingFileError, shown
from modulate.utils.pickle_check import check_archive

LIMIT = 2**28
"""Largest size of a checkpoint in bytes, on disk, unpacked and as tensors.

256 MiB is five times the released one.
"""

ENTRIES = ("state_dict", "config", "lora_state_dict", "lora_config")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that convert to float32 without loss."""

PREFIXES = ("model.layers", "model.language_model.layers")
"""Paths of Qwen2.5-VL's decoder layers in transformers up to 4.51, and since."""

COORD_PE = frozenset({"coordpe", "g3", "g3coordpe"})
"""Names of the only supported gaze encoding in older checkpoints, letters and digits only.

The released code calls it G3.
"""

_FLAT = re.compile(
    r"(proj_in|proj_out|proj_gaze)\.|latents$|(q|k|v|g)_projs\.\d+\.(weight|bias)$|block_norms\.\d+\.(weight|bias)$",
    re.ASCII,
)
_LORA = re.compile(
    rf"({'|'.join(map(re.escape, PREFIXES))})"
    r"\.(0|[1-9][0-9]{0,3})\.(self_attn\.[qv]_proj)\.lora_([AB])$"
)


class ReleasedConfig(BaseModel):
    """The checkpoint's entry ``config``: the arguments of the released class.

    The bounds only exclude absurd files. A missing size has the default of the released class; the
    shapes of the tensors must agree in any case. ``gaze_input`` and ``per_layer`` occur in older
    checkpoints: the class ignores them, but here they must describe what it builds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    d_vjepa: int = Field(
        768, ge=1, le=16384, description="width of the frame features [GazeQwen: 768]"
    )
    d_llm: int = Field(
        3584, ge=1, le=16384, description="width of the host's hidden states [GazeQwen: 3584]"
    )
    n_latents: int = Field(32, ge=1, le=1024, description="learned latents [GazeQwen: 32]")
    d_latent: int = Field(
        256,
        ge=4,
        le=4096,
        multiple_of=4,
        description="width of the latents and of the gaze's encoding [GazeQwen: 256]",
    )
    n_blocks: int = Field(2, ge=1, le=32, description="blocks of each module [GazeQwen: 2]")
    n_layers: int = Field(28, ge=1, le=512, description="decoder layers of the host [GazeQwen: 28]")
    version: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="version of the training code; unknown if absent",
    )
    gaze_input: str = Field(
        "coord_pe", max_length=64, description="encoding of gaze; only coord_pe is supported"
    )
    per_layer: bool = Field(
        True, description="whether each layer has its own module; only true is supported"
    )
    amplitude_init: float = Field(
        1.0,
        allow_inf_nan=False,
        description="initial value of the amplitudes; the file's values replace it",
    )

    @field_validator("gaze_input")
    @classmethod
    def _is_coord_pe(cls, value: str) -> str:
        if re.sub(r"[\W_]", "", value.lower()) not in COORD_PE:
            raise ValueError(
                "the file was trained with another encoding of gaze than coord_pe, the only one"
                " that is read"
            )
        return value

    @field_validator("per_layer")
    @classmethod
    def _has_modules(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "the file was trained with one module shared by all layers; only one for each layer"
                " is read"
            )
        return value

    def ignored(self) -> list[str]:
        """Return one sentence for each value that has no effect or is missing."""
        of_no_effect = {
            "gaze_input": "coord_pe is the only encoding that is built",
            "per_layer": "a module for each layer is all that is built",
            "amplitude_init": "the file has the trained amplitudes",
        }
        sentences = [
            f"Ignored: config.{key} is {getattr(self, key)!r}; {why}."
            for key, why in of_no_effect.items()
            if key in self.model_fields_set
        ]
        missing = [
            name
            for name in type(self).model_fields
            if name not in self.model_fields_set and name not in of_no_effect
        ]
        return sentences + [f"Not in config: {name}; {self._instead(name)}." for name in missing]

    def _instead(self, name: str) -> str:
        return (
            "it is noted as unknown"
            if name == "version"
            else f"taken to be {getattr(self, name)}, as by the released class"
        )


class ReleasedLora(BaseModel):
    """The checkpoint's entry ``lora_config``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rank: int = Field(ge=1, le=1024, description="rank of the update [GazeQwen: 8]")
    alpha: float = Field(
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="the update is scaled by alpha / rank [GazeQwen: 16]",
    )


@dataclass(frozen=True)
class Checkpoint:
    """A released checkpoint that passed all checks.

    ``resampler``: tensors under their released names. ``modules``: number of independent copies.
    ``lora``: (layer, sub-module of the layer, "A" or "B") → tensor, A (rank, d_in) and B (d_out,
    rank). ``d_value``: output width of the host's ``v_proj``.
    """

    config: ReleasedConfig
    resampler: dict[str, Tensor]
    modules: int
    lora_config: ReleasedLora
    lora: dict[tuple[int, str, str], Tensor]
    d_value: int


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a ``best_model.pt``.

    Raises :class:`MissingFileError`, or :class:`CheckpointError` with the entry or tensor that does
    not fit.
    """
    return parse_content(_unpickled(path), path)


def parse_content(content: Any, path: Path) -> Checkpoint:
    """Validate the content of a file against the schema; ``path`` names it in errors.

    Raises :class:`CheckpointError`.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; a released checkpoint is a dictionary of"
            f" {', '.join(ENTRIES)}."
        )
    _same_keys(content, ENTRIES, f"{path}", "entry")
    config = _validated(ReleasedConfig, content["config"], "config", path)
    lora_config = _validated(ReleasedLora, content["lora_config"], "lora_config", path)
    state, lora = (
        _tensors(content[name], name, path) for name in ("state_dict", "lora_state_dict")
    )
    # A view can claim far more numbers than its file holds, and copying would take their memory.
    claimed = sum(
        tensor.numel() * tensor.element_size() for tensor in (*state.values(), *lora.values())
    )
    if claimed > LIMIT:
        raise CheckpointError(
            f"The tensors of {path} take {claimed} bytes, more than the {LIMIT} that are read. It"
            " is no released GazeQwen checkpoint."
        )
    modules = _check_resampler(state, config, path)
    found = _lora_by_place(lora, path)
    d_value = _check_lora(found, config, lora_config, path)
    for name, tensor in (*state.items(), *lora.items()):
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: tensor {name!r} holds numbers that are not finite.")
    return Checkpoint(
        config,
        state,
        modules,
        lora_config,
        {place: tensor for place, (_, tensor) in found.items()},
        d_value,
    )


# --- the file


def _unpickled(path: Path) -> Any:
    """Return the content of ``path``, after checking its size and kind.

    Only plain tensors, numbers, texts and containers are created.
    """
    if not path.is_file():
        raise MissingFileError(
            f"There is no checkpoint at {path}. Name the file, for example best_model.pt of the hub"
            " repository phamtrongthang/gazeqwen."
        )
    _check_size(path, path.stat().st_size, "bytes")
    check_archive(path, LIMIT)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # Unpickling can raise almost anything; each error means that the file is not plain tensors.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a file of plain tensors: {error!s:.2000}"
        ) from error


def _check_size(path: Path, size: int, unit: str) -> None:
    if size > LIMIT:
        raise CheckpointError(
            f"{path} has {size} {unit}, more than the {LIMIT} that are read; GazeQwen's released"
            " checkpoint has about 53 million."
        )


# --- the schema


def _same_keys(
    found: Mapping[Any, Any], expected: tuple[str, ...] | dict[str, Any], where: str, what: str
) -> None:
    """Raise :class:`CheckpointError` with the first unexpected or else the first missing key."""
    extra = sorted(shown(key) for key in found if key not in expected)
    if extra:
        raise CheckpointError(
            f"{where} holds an unexpected {what} {extra[0]} ({len(extra)} in all); nothing was"
            " converted."
        )
    missing = [key for key in expected if key not in found]
    if missing:
        raise CheckpointError(
            f"{where} lacks the {what} {missing[0]!r} ({len(missing)} in all); nothing was"
            " converted."
        )


def _validated(model: type[Any], value: Any, name: str, path: Path) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([name, *map(str, first["loc"])])
        problem = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path}: {key:.200}: {problem}; got {shown(first['input'])}."
        ) from error


def _tensors(value: Any, name: str, path: Path) -> dict[str, Tensor]:
    """Return ``value`` as a dictionary of dense floating-point tensors."""
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: {name} is a {type(value).__name__}; a dictionary of tensors is expected."
        )
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: {name} holds {type(tensor).__name__} under {shown(key)}; tensors under"
                " names are expected."
            )
        if (
            tensor.dtype not in FLOATS
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
        ):
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise CheckpointError(
                f"{path}: tensor {shown(key)} is {tensor.dtype}, {tensor.layout}, on"
                f" {tensor.device}; dense {allowed} is expected."
            )
    return {key: tensor.detach() for key, tensor in value.items()}


def released_shapes(config: ReleasedConfig, modules: int) -> dict[str, tuple[int, ...]]:
    """Return {released name: shape} of a resampler with ``modules`` independent copies."""
    return dict(_shapes(config, modules))


def _shapes(config: ReleasedConfig, modules: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d = config.d_latent
    wide = 4 * config.d_latent
    for module in range(modules):
        yield f"latents.{module}", (config.n_latents, d)
        yield f"proj_ins.{module}.weight", (d, config.d_vjepa)
        yield f"proj_outs.{module}.weight", (config.d_llm, d)
        for block in range(config.n_blocks):
            for name, out, into in (
                ("q_projs", d, d),
                ("k_projs", d, d),
                ("g_projs", d, d),
                ("v_projs", d, d),
            ):
                yield f"{name}.{module}.{block}.weight", (out, into)
                yield f"{name}.{module}.{block}.bias", (out,)
            for part, out, into in ((1, wide, d), (3, d, wide)):
                yield f"ff_blocks.{module}.{block}.{part}.weight", (out, into)
                yield f"ff_blocks.{module}.{block}.{part}.bias", (out,)
            for norm in (f"ff_blocks.{module}.{block}.0", f"block_norms.{module}.{block}"):
                yield f"{norm}.weight", (d,)
                yield f"{norm}.bias", (d,)
    yield "amplitude", (config.n_layers,)


def _check_resampler(state: dict[str, Tensor], config: ReleasedConfig, path: Path) -> int:
    """Return the number of modules, after checking names and shapes against ``config``."""
    # The config does not contain the number of modules, so it comes from the names of tensors.
    modules = sum(name.startswith("latents.") for name in state)
    if modules == 0 and (flat := next((name for name in state if _FLAT.match(name)), None)):
        raise CheckpointError(
            f"{path}: tensor {flat!r} belongs to the older layout with one shared module, which is"
            " not supported: the released class itself cannot load it. Take best_model.pt."
        )
    expected = released_shapes(config, max(modules, 1))
    _same_keys(state, expected, f"{path}: state_dict", "tensor")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, but config says"
                f" {shape}."
            )
    return modules


def _lora_by_place(
    lora: dict[str, Tensor], path: Path
) -> dict[tuple[int, str, str], tuple[str, Tensor]]:
    """Return (layer, sub-module, side) → (released name, tensor).

    All names must come from one version of transformers.
    """
    found: dict[tuple[int, str, str], tuple[str, Tensor]] = {}
    prefix = None
    for name, tensor in lora.items():
        match = _LORA.match(name)
        if match is None or match[2] != str(int(match[2])) or prefix not in (None, match[1]):
            mixed = f" beside {prefix!r}" if match and prefix not in (None, match[1]) else ""
            layout = " or ".join(
                f"{prefix}.N.self_attn.{{q,v}}_proj.lora_{{A,B}}" for prefix in PREFIXES
            )
            raise CheckpointError(
                f"{path}: lora_state_dict holds an unexpected tensor {shown(name)}{mixed}; {layout}"
                " is expected, one of the two."
            )
        prefix = match[1]
        found[int(match[2]), match[3], match[4]] = (name, tensor)
    return found


def _check_lora(
    found: dict[tuple[int, str, str], tuple[str, Tensor]],
    config: ReleasedConfig,
    lora: ReleasedLora,
    path: Path,
) -> int:
    """Return the output width of ``v_proj``, after checking the updates of every layer."""
    places = [
        (layer, f"self_attn.{name}_proj", side)
        for layer in range(config.n_layers)
        for name in "qv"
        for side in "AB"
    ]
    extra = [place for place in found if place not in set(places)]
    missing = [place for place in places if place not in found]
    if extra:
        raise CheckpointError(
            f"{path}: lora_state_dict holds an unexpected tensor {found[extra[0]][0]!r}: config"
            f" says {config.n_layers} layers."
        )
    if missing:
        layer, name, side = missing[0]
        raise CheckpointError(
            f"{path}: lora_state_dict lacks {len(missing)} tensors, the first is {name}.lora_{side}"
            f" of layer {layer}."
        )
    # The config does not contain v_proj's width, so the first update defines it for all layers.
    first = found[0, "self_attn.v_proj", "B"][1]
    d_value = int(first.shape[0]) if first.ndim == 2 else 0
    d_out = {"self_attn.q_proj": config.d_llm, "self_attn.v_proj": d_value}
    for (_, name, side), (released, tensor) in found.items():
        shape = (lora.rank, config.d_llm) if side == "A" else (d_out[name], lora.rank)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {released!r} has shape {tuple(tensor.shape)}, but config and"
                f" lora_config say {shape}."
            )
    if not 0 < d_value <= config.d_llm:
        raise CheckpointError(
            f"{path}: v_proj's update is {d_value} wide; 1 to d_llm = {config.d_llm} is expected."
        )
    return d_value
