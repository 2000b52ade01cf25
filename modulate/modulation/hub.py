"""Modulations on the Hugging Face hub: which files they are, the model card, upload and download.
Works on saved folders; imports no torch.
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from modulate.errors import CheckpointError, MissingFileError
from modulate.utils.atomic_files import write_text
from modulate.utils.safe_load import parse_json

CARD = "README.md"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
FILES = (CONFIG, WEIGHTS, f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/adapter_model.safetensors")
"""What a saved modulation consists of; nothing else is fetched."""


def is_repository(name: str) -> bool:
    """Say whether ``name`` can be a hub repository, ``owner/name``, rather than a path."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def fetch(repo_id: str, **hub: Any) -> Path:
    """Download a modulation's files and return their folder.

    ``hub``: arguments of ``huggingface_hub.snapshot_download``, such as ``revision`` and ``token``.
    Raises :class:`MissingFileError` when the repository is not there, may not be read, or the hub
    cannot be reached and nothing is cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo_id, **{"allow_patterns": list(FILES), **hub}))
    except (
        OSError,
        HFValidationError,
        # every failure of the client is an OSError: HTTP status, no connection, offline mode
    ) as error:
        raise MissingFileError(
            f"{repo_id!r} is no folder here, and no modulation could be fetched from the hub under"
            f" that name: {error}"
        ) from error


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    **hub: Any,
) -> str:
    """Write the model card into a saved modulation's folder, create the repository if needed,
    upload the folder, return the commit's address.

    Args:
        folder: what ``save_pretrained`` wrote.
        repo_id: ``owner/name``.
        private: of a new repository; None: as the account has it by default. One that exists keeps its visibility.
        token: of the hub; by default the one that is logged in.
        endpoint: the hub's address; by default the public one.
        hub: further arguments of ``HfApi.upload_folder``, such as ``commit_message``, ``revision`` and ``create_pr``.

    Raises :class:`CheckpointError` when the folder holds no modulation, and what huggingface_hub
    raises.
    """
    from huggingface_hub import HfApi

    text = model_card(folder, repo_id)
    write_text(folder / CARD, text)
    api = HfApi(endpoint=endpoint, token=token, library_name="modulate")
    api.create_repo(repo_id, private=private, exist_ok=True)
    # an adapter of an earlier upload, when the modulation has none any more, would look as if it
    # belonged to it
    settings = {"commit_message": "Upload a modulation", "delete_patterns": [f"{ADAPTER}/*"], **hub}
    return str(
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=[CARD, *FILES], **settings
        ).commit_url
    )


# --- the model card


def model_card(folder: Path, repo_id: str) -> str:
    """Return the text of the card, from config.json and the shapes in the weights' headers.

    Raises :class:`CheckpointError` when they cannot be read.
    """
    try:
        config = parse_json((folder / CONFIG).read_bytes(), CONFIG)
        own = count_numbers(folder / WEIGHTS)
        lora = count_numbers(folder / FILES[-1]) if config["lora"] else 0
        return _front(config) + _body(config, repo_id, own, lora)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} holds no modulation that a card can be written for: {type(error).__name__}:"
            f" {error}"
        ) from error


def count_numbers(path: Path) -> int:
    """Return how many numbers a safetensors file holds, from its header.

    Raises :class:`CheckpointError`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"The weights in {path.parent} cannot be read: {path.name}: {error}"
        ) from error


def _front(config: dict[str, Any]) -> str:
    tags = [
        "modulate",
        config["host"]["model_type"],
        config["encoder"]["name"],
        config["modulator"]["name"],
        *(["lora"] if config["lora"] else []),
    ]
    base = (
        [f"base_model: {json.dumps(config['host']['name'])}"] if config["host"].get("name") else []
    )
    lines = [
        "---",
        "library_name: modulate",
        *base,
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
        "---",
    ]
    return "\n".join(lines) + "\n\n"


def _body(config: dict[str, Any], repo_id: str, own: int, lora: int) -> str:
    host = config["host"]
    injection = config["injection"]
    adapter = config["lora"]
    rows = [
        (
            "host",
            (
                f"{_named(host)}, {host['n_layers']} decoder layers of width {host['d_model']}; not"
                " part of this repository"
            ),
        ),
        ("signal encoder", _chosen(config["encoder"])),
        ("modulator", _chosen(config["modulator"])),
        (
            "frame features",
            (
                "width"
                f" {config['d_features']}{' from ' + _chosen(config['backbone']) if config['backbone'] else ''}"
            ),
        ),
        (
            "injected after decoder layers",
            f"{', '.join(map(str, injection['layers']))}, on {injection['tokens']['kind']} tokens",
        ),
        ("parameters", f"{own:,}" + (f", and {lora:,} of LoRA" if adapter else "")),
    ]
    if adapter:
        p = adapter["params"]
        rows.append(
            (
                "LoRA",
                (
                    f"rank {p['rank']}, alpha {p['alpha']:g}, on {', '.join(p['targets'])} (PEFT"
                    f" format, in `{ADAPTER}/`)"
                ),
            )
        )
    table = "\n".join(
        ["| part | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    )
    notes = (
        "\n## How it was"
        f" made\n\n```json\n{json.dumps(config['training'], indent=2, ensure_ascii=False)}\n```\n"
        if config["training"]
        else ""
    )
    return f"""# {repo_id.rpartition("/")[2]}

A modulation: a small module that adds residuals to the hidden states of a frozen multimodal LLM, so that it listens to a side signal.
The host's own weights are neither changed nor included.

{table}

## How to load it

```python
import modulate

modulation = modulate.Modulation.from_pretrained({json.dumps(repo_id)})
attachment = modulation.attach(host)  # a loaded transformers model of the type above
with attachment.condition([[modulate.ClipInput(signal=signal, grid=grid, features=features)]]):
    output = host.generate(**inputs)
attachment.detach()
```

Weights are safetensors and JSON; loading them runs no code from this repository.
{notes}"""


def _named(host: dict[str, Any]) -> str:
    return f"`{host['model_type']}`" + (
        f" ({json.dumps(host['name'])})" if host.get("name") else ""
    )


def _chosen(choice: dict[str, Any]) -> str:
    params = ", ".join(
        f"{name} {json.dumps(value)}" for name, value in choice["params"].items()
    ).replace("|", "\\|")
    return f"`{choice['name']}`" + (f" ({params})" if params else "")
