"""The saved configuration of a modulation, config.json, and how an untrusted one is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modulate.config.injection import Injection
from modulate.config.required_plugins import (
    RequiredPlugin,
    components_in,
    kinds_in,
    refuse_missing,
    required_plugins,
)
from modulate.config.usage import HERE_ONLY, Usage, is_public
from modulate.errors import CheckpointError, DataError, shown
from modulate.hosts.host import Host
from modulate.interfaces.components import Modulator
from modulate.interfaces.params import ComponentSpec, Params
from modulate.modulation.lora import LoraSpec
from modulate.utils.paths import is_repository
from modulate.utils.safe_load import parse_json

CONFIG_BYTES = 1 << 20
"""Largest config.json that is read."""


class HostSpec(Params):
    """The host that a modulation was made for."""

    model_type: str = Field(description="transformers' model_type")
    d_model: int = Field(ge=1, le=2**20, description="width of the hidden states")
    n_layers: int = Field(ge=1, le=1024, description="number of decoder layers")
    name: str | None = Field(
        None,
        max_length=200,
        description=(
            "the host's repository on the hub, if it was loaded from one; attaching does not check"
            " it"
        ),
    )

    @classmethod
    def of(cls, host: Host) -> "HostSpec":
        """Describe a loaded host."""
        name = getattr(host.config, "name_or_path", None) or ""
        # A local path would say nothing elsewhere, and may be private.
        is_on_hub = is_repository(name) and not Path(name).exists()
        return cls(
            model_type=host.config.model_type,
            d_model=host.d_model,
            n_layers=len(host.layers),
            name=name if is_on_hub else None,
        )


class ModulationConfig(BaseModel):
    """Everything about a modulation but its weights; saved as config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    host: HostSpec
    encoder: ComponentSpec
    modulator: ComponentSpec
    injection: Injection
    backbone: ComponentSpec | None = Field(
        None, description="source of the frame features, for those who attach it elsewhere"
    )
    d_features: int = Field(ge=1, le=2**20, description="width of the frame features")
    lora: LoraSpec | None = None
    usage: Usage | None = Field(
        None, description="how it is used; null for one that was not trained by a recipe"
    )
    plugins: tuple[RequiredPlugin, ...] = Field(
        (),
        max_length=100,
        description="packages that provide the components named here; written when it is saved",
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="a run's notes on how it was trained; not read back"
    )

    @model_validator(mode="after")
    def _layers_are_the_hosts(self) -> "ModulationConfig":
        layers = list(self.injection.layers)
        if self.lora is not None:
            for adapted in self.lora.layers.values():
                layers += adapted
        n_layers = self.host.n_layers
        for layer in layers:
            if not 0 <= layer < n_layers:
                raise ValueError(
                    f"layer {layer} does not exist: the host has layers 0 to {n_layers - 1}"
                )
        return self


def parse_config(data: bytes, source: str) -> ModulationConfig:
    """Return the configuration in the JSON text ``data``; ``source`` names it in errors.

    Raises :class:`CheckpointError` for anything that does not fit, the components' parameters
    included, and :class:`modulate.errors.PluginError` for components that are not installed.
    """
    with checkpoint_errors(source):
        config = ModulationConfig.model_validate(parse_json(data, source))
        refuse_missing(config.plugins, ("signal_encoder", "modulator"), source)
        for kind, spec in (("signal_encoder", config.encoder), ("modulator", config.modulator)):
            _, params = spec.resolved(kind)
            _refuse_files(spec, params, source)
        _refuse_local_host(config.usage, source)
        return config


def _refuse_local_host(usage: Usage | None, source: str) -> None:
    """Raise :class:`CheckpointError` where the host to load is a folder of this machine."""
    if usage is None or usage.host is None:
        return
    path = str(usage.host.params.get("path", ""))
    if not is_public(path) or usage.host.params.keys() & HERE_ONLY:
        raise CheckpointError(
            f"{source}: usage.host names {shown(path)} with {sorted(usage.host.params)}. A saved"
            " modulation may name a hub id or a file of an installed package, and neither a device"
            " nor trust in remote code."
        )


def _refuse_files(spec: ComponentSpec, params: Params, source: str) -> None:
    """Raise :class:`CheckpointError` where a component's parameters name a file.

    An untrusted configuration must not choose which files of this machine are read.
    """
    for key, value in params:
        if isinstance(value, Path):
            raise CheckpointError(
                f"{source}: {key} of {spec.name} names the file {str(value)[:200]!r}. A saved"
                " modulation holds what it needs; save it again where it was made."
            )


def portable(config: ModulationConfig, modulator: Modulator) -> ModulationConfig:
    """Return ``config`` as it is saved: without names of files, with the packages that it needs.

    See :meth:`modulate.interfaces.components.Modulator.portable`.
    """
    _, params = config.modulator.resolved("modulator")
    with config.modulator.blame("modulator", "portable"):
        saved_params = modulator.portable(params)
    spec = config.modulator
    if saved_params is not params:
        spec = ComponentSpec(
            name=spec.name, params=saved_params.model_dump(mode="json", exclude_unset=True)
        )
    required = required_plugins(_components(config))
    return config.model_copy(update={"modulator": spec, "plugins": required})


def _components(config: ModulationConfig) -> Iterator[tuple[str, str]]:
    """Yield kind and name of each component that using a modulation takes."""
    yield from components_in("signal_encoder", config.encoder)
    yield from components_in("modulator", config.modulator)
    if config.backbone is not None:
        yield "backbone", config.backbone.name
    if config.usage is not None:
        yield from kinds_in(config.usage.signal)
        if config.usage.host is not None:
            yield "host", config.usage.host.name


@contextmanager
def checkpoint_errors(source: str) -> Iterator[None]:
    """Turn errors about the configuration ``source`` into :class:`CheckpointError`."""
    try:
        yield
    except (ValidationError, DataError) as error:
        raise CheckpointError(
            f"{source} does not fit this version of modulate: {error!s:.2000}"
        ) from error
