"""What is saved of a modulation beside its weights, config.json, and how one that a stranger wrote
is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modulate.config.injection import Injection
from modulate.errors import CheckpointError, DataError
from modulate.hosts.host import Host
from modulate.interfaces.components import Modulator
from modulate.interfaces.params import ComponentSpec, Params
from modulate.modulation.hub import is_repository
from modulate.modulation.lora import LoraSpec
from modulate.utils.safe_load import parse_json

CONFIG_BYTES = 1 << 20
"""Largest config.json."""


class HostSpec(Params):
    """The host that a modulation was made for."""

    model_type: str = Field(description="transformers' model_type")
    d_model: int = Field(ge=1, le=2**20, description="width of the hidden states")
    n_layers: int = Field(ge=1, le=1024, description="number of decoder layers")
    name: str | None = Field(
        None,
        max_length=200,
        description=(
            "the host's repository on the hub, where it was loaded from one; attaching does not ask"
            " for it"
        ),
    )

    @classmethod
    def of(cls, host: Host) -> "HostSpec":
        """Describe a loaded host."""
        name = getattr(host.config, "name_or_path", None) or ""
        kept = name if is_repository(name) and not Path(name).exists() else None
        return cls(
            model_type=host.config.model_type,
            d_model=host.d_model,
            n_layers=len(host.layers),
            name=kept,
        )


class ModulationConfig(BaseModel):
    """Everything but the weights; saved as config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    host: HostSpec
    encoder: ComponentSpec
    modulator: ComponentSpec
    injection: Injection
    backbone: ComponentSpec | None = Field(
        None, description="where the frame features came from, for those who attach it elsewhere"
    )
    d_features: int = Field(ge=1, le=2**20, description="width of the frame features")
    lora: LoraSpec | None = None
    training: dict[str, Any] = Field(
        default_factory=dict, description="what a run notes of how it was made; not read back"
    )

    @model_validator(mode="after")
    def _layers_are_the_hosts(self) -> "ModulationConfig":
        adapted = (
            [layer for layers in self.lora.layers.values() for layer in layers] if self.lora else []
        )
        outside = [
            layer
            for layer in (*self.injection.layers, *adapted)
            if not 0 <= layer < self.host.n_layers
        ]
        if outside:
            raise ValueError(f"layer {outside[0]} is none of a host of {self.host.n_layers} layers")
        return self


def parse_config(data: bytes, source: str) -> ModulationConfig:
    """Return the configuration in the JSON text ``data``, its components' parameters checked;
    ``source`` names it in errors.

    Raises :class:`CheckpointError`, and :class:`modulate.errors.PluginError` for components that
    are not known here.
    """
    with fitting(source):
        config = ModulationConfig.model_validate(parse_json(data, source))
        for kind, choice in (("signal_encoder", config.encoder), ("modulator", config.modulator)):
            _refuse_files(choice, choice.resolved(kind)[1], source)
        return config


def _refuse_files(choice: ComponentSpec, params: Params, source: str) -> None:
    """Raise :class:`CheckpointError` where parameters name a file: a stranger's configuration does
    not choose what is read here.
    """
    for key, value in params:
        if isinstance(value, Path):
            raise CheckpointError(
                f"{source}: {key} of {choice.name} names the file {str(value)[:200]!r}. A saved"
                " modulation holds what it needs; save it again where it was made."
            )


def portable(config: ModulationConfig, modulator: Modulator) -> ModulationConfig:
    """Return ``config`` as it is saved: without names of files, see
    :meth:`modulate.interfaces.components.Modulator.portable`.
    """
    _, params = config.modulator.resolved("modulator")
    with config.modulator.blame("modulator", "portable"):
        kept = modulator.portable(params)
    if kept is params:
        return config
    return config.model_copy(
        update={
            "modulator": ComponentSpec(
                name=config.modulator.name, params=kept.model_dump(mode="json", exclude_unset=True)
            )
        }
    )


@contextmanager
def fitting(source: str) -> Iterator[None]:
    """Turn findings about the configuration of this name into :class:`CheckpointError`."""
    try:
        yield
    except (ValidationError, DataError) as error:
        raise CheckpointError(
            f"{source} does not fit this version of modulate: {error!s:.2000}"
        ) from error
