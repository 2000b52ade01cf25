"""Load an assistant from a run, a saved modulation, or the hub."""

from pathlib import Path
from typing import Any

from torch import nn

from modulate import plugins
from modulate.config.recipe import Recipe, load_recipe
from modulate.config.required_plugins import refuse_missing
from modulate.config.usage import Usage, is_public
from modulate.errors import HostError, RecipeError
from modulate.hosts.host import Host
from modulate.inference.assistant import Assistant
from modulate.interfaces.components import Backbone
from modulate.interfaces.params import ComponentSpec
from modulate.modulation.config import ModulationConfig
from modulate.modulation.module import Modulation
from modulate.runs.run import Run


def load(
    source: str | Path,
    *,
    recipe: str | Path | None = None,
    host: str | Path | nn.Module | None = None,
    processor: Any = None,
    backbone: Backbone | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    **hub: Any,
) -> Assistant:
    """Return an assistant with a trained modulation and the host that it was trained for.

    Args:
        source: folder of a run, folder of a saved modulation, or its hub repository.
        recipe: name or file of a recipe, for a modulation that does not say how it is used, such
            as those of version 0.1: it names host, backbone and form of the prompt.
        host: folder or hub id of the host, or the loaded model; by default the one that the
            modulation was trained with.
        processor: the processor of a loaded ``host``.
        backbone: encoder of raw frames; by default the one that the modulation names.
        device: where the host is loaded to; by default a GPU if there is one.
        dtype: torch dtype of the host's weights; by default as in training.
        trust_remote_code: permission to run code that comes with the host.
        hub: arguments of ``huggingface_hub.snapshot_download``, such as ``revision``.

    Raises :class:`MissingFileError` and :class:`CheckpointError` for the modulation,
    :class:`HostError` for the host, :class:`RecipeError` for what the modulation does not say, and
    :class:`PluginError`, with the package to install, for a plugin that is missing.
    """
    folder = Path(source)
    used_by: Recipe | None = None
    if (folder / "recipe.yaml").is_file():
        run = Run.open(folder)
        run.check_weights()
        modulation = Modulation.from_pretrained(run.weights)
        used_by = run.recipe
    else:
        modulation = Modulation.from_pretrained(source, **hub)
        # Named with their packages, which a recipe's own errors could not do.
        needed = {"signal": True, "backbone": backbone is None, "host": host is None}
        kinds = [kind for kind, is_needed in needed.items() if is_needed and recipe is None]
        refuse_missing(modulation.config.plugins, kinds, str(source))
    if recipe is not None:
        used_by = load_recipe(str(recipe))
    if used_by is not None:
        usage: Usage | None = Usage.of(used_by)
        host_spec: ComponentSpec | None = used_by.host
        # Unlike a saved modulation, the user's own recipe may name files of this machine.
        backbone = backbone or used_by.backbone.build("backbone")
    else:
        usage = modulation.config.usage
        host_spec = _host_spec(modulation.config)
        if backbone is None:
            _refuse_local_backbone(modulation.config)
    if isinstance(host, nn.Module):
        if processor is None:
            raise HostError("A loaded host needs its processor: pass processor=….")
        return Assistant(host, processor, modulation, backbone, usage)
    changes = {"path": None if host is None else str(host), "device": device, "dtype": dtype}
    model, own_processor = _load_host(modulation.config, host_spec, changes, trust_remote_code)
    return Assistant(model, processor or own_processor, modulation, backbone, usage)


def _host_spec(config: ModulationConfig) -> ComponentSpec | None:
    """Return how the modulation's host is loaded, as far as its configuration says."""
    if config.usage is not None and config.usage.host is not None:
        return config.usage.host
    if config.host.name is not None:
        return ComponentSpec(name="", params={"path": config.host.name})
    return None


def _load_host(
    config: ModulationConfig,
    spec: ComponentSpec | None,
    changes: dict[str, str | None],
    trust_remote_code: bool,
) -> tuple[nn.Module, Any]:
    """Load the host that ``spec`` names, with ``changes`` of its parameters that are not None."""
    params = dict(spec.params) if spec else {}
    params |= {key: value for key, value in changes.items() if value is not None}
    if "path" not in params:
        raise RecipeError(
            f"This modulation does not say where its host, a {config.host.model_type} of"
            f" {config.host.n_layers} layers, is loaded from: it lay in a folder of the machine"
            " that trained it. Pass host=…, a folder, a hub id or the loaded model."
        )
    if params.get("trust_remote_code") and not trust_remote_code:
        raise RecipeError(
            "The host was trained with code that comes with it. Read that code, and pass"
            " trust_remote_code=True to run it."
        )
    family = _family(config.host.model_type, spec)
    # Whatever the caller permits, only a host that needs it runs code of its own.
    with plugins.registry().blame("host", family.__name__, "load"):
        return family.open(family.Params.model_validate(params))


def _family(model_type: str, spec: ComponentSpec | None) -> type[Host]:
    registry = plugins.registry()
    if spec is not None and spec.name:
        found: type[Host] = registry.get("host", spec.name)
        return found
    family: type[Host]
    for _, family in registry.loadable("host"):
        if model_type in family.model_types:
            return family
    return Host


def _refuse_local_backbone(config: ModulationConfig) -> None:
    """Raise :class:`RecipeError` if a saved configuration would choose a file of this machine."""
    if config.backbone is None:
        return
    for key, value in config.backbone.params.items():
        looks_local = isinstance(value, str) and ("/" in value or Path(value).exists())
        if looks_local and not is_public(str(value)):
            raise RecipeError(
                f"This modulation's backbone {config.backbone.name} has {key} {value!r}, a file of"
                " the machine that trained it. Build the backbone with your own copy and pass"
                " backbone=…."
            )
