"""How a recipe loads a host: pretrained, or with random weights from a configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import nn

from modulate.errors import HostError
from modulate.interfaces.params import LocalPath, Params
from modulate.utils.paths import local_or_hub


class HostParams(Params):
    """How a recipe loads a host."""

    path: Annotated[str, LocalPath()] = Field(
        description="folder, hub id, or `package:NAME/folder` for one inside an installed package"
    )
    weights: Literal["pretrained", "random"] = Field(
        "pretrained",
        description=(
            "random: the true architecture with seeded random weights, for checks and benchmarks;"
            " no network is used"
        ),
    )
    seed: int = Field(0, description="seed of random weights")
    dtype: str = Field(
        "float32", description="torch dtype of the weights: float32, bfloat16 or float16"
    )
    device: str = Field(
        "auto",
        description=(
            "`auto` (CUDA where present, else CPU) or a torch device; `meta`, with random weights:"
            " shapes without memory"
        ),
    )
    trust_remote_code: bool = Field(
        False,
        description=(
            "run Python files that come with the model; refused unless --trust-remote-code on the"
            " command line confirms it"
        ),
    )
    attention: str = Field(
        "sdpa",
        description=(
            "attention implementation that transformers is asked for: sdpa, eager,"
            " flash_attention_2 …"
        ),
    )


class Family(Protocol):
    """What loading must know of a host class."""

    def check_type(self, config: Any) -> None:
        """Raise :class:`HostError` unless the class serves the models of a configuration."""

    def shipped_config(self, path: str) -> Any:
        """Return the configuration that ships for a hub id."""

    def stand_in_processor(self, path: str, config: Any) -> Any:
        """Return a processor for random weights."""


def load(family: Family, params: HostParams) -> tuple[nn.Module, Any]:
    """Return model (frozen, in eval mode) and processor; see :meth:`host.Host.load`."""
    device = params.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if params.weights == "random":
        return build_random(family, params, device)
    return _load_pretrained(family, params, device)


def _load_pretrained(family: Family, params: HostParams, device: str) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    path = local_or_hub(params.path)
    # Always passed: left out, transformers asks at the terminal.
    trust = params.trust_remote_code
    try:
        # Before the weights, which may take minutes.
        family.check_type(AutoConfig.from_pretrained(path, trust_remote_code=trust))
        with _no_progress_bar():
            model = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=getattr(torch, params.dtype),
                attn_implementation=params.attention,
                use_safetensors=True,
                trust_remote_code=trust,
            )
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust)
    except HostError:
        raise
    except (OSError, ValueError) as error:
        # Not there, no network, no safetensors, or code of its own that is not trusted.
        here = Path(path).absolute()
        hint = "" if here.exists() else f" (There is no folder {here} either.)"
        raise HostError(f"The host {params.path!r} cannot be loaded: {error}{hint}") from error
    return model.requires_grad_(False).eval().to(device), processor


def build_random(family: Family, params: HostParams, device: str) -> tuple[nn.Module, Any]:
    """Return model and processor with random weights from a configuration.

    The configuration is the folder's own, or the one that ships with the family for a hub id. A hub
    id, and a folder without a processor, get the family's stand-in processor. Raises
    :class:`HostError` for what cannot be built.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    path = local_or_hub(params.path)
    trust = params.trust_remote_code
    local = Path(path).is_dir()
    has_processor = local and any(
        (Path(path) / name).is_file()
        for name in ("processor_config.json", "preprocessor_config.json")
    )
    try:
        if local:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        else:
            config = family.shipped_config(path)
        family.check_type(config)
        # The caller's own random numbers must not depend on whether weights are random.
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(params.seed)
            model = AutoModelForImageTextToText.from_config(
                config,
                dtype=getattr(torch, params.dtype),
                attn_implementation=params.attention,
                trust_remote_code=trust,
            )
        if has_processor:
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust)
        else:
            processor = family.stand_in_processor(path, config)
    except HostError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise HostError(
            f"The host {params.path!r} cannot be built with random weights: {error}"
        ) from error
    return model.requires_grad_(False).eval(), processor


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide transformers' bar for loading weights, which would break our own progress display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
