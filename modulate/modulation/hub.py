"""Modulations on the Hugging Face hub: their files, the model card, upload and download.

Works on saved folders; imports no torch.
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from modulate.errors import CheckpointError, MissingFileError
from modulate.utils.atomic_files import write_text
from modulate.utils.entry_points import DISTRIBUTION
from modulate.utils.safe_load import parse_json

CARD = "README.md"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
ADAPTER_WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS, f"{ADAPTER}/adapter_config.json", ADAPTER_WEIGHTS)
"""The files of a saved modulation; no other file is fetched."""


def fetch(repo_id: str, **hub: Any) -> Path:
    """Download a modulation's files and return their folder.

    ``hub``: arguments of ``huggingface_hub.snapshot_download``, such as ``revision`` and ``token``.
    Raises :class:`MissingFileError` when the repository does not exist or may not be read, and when
    the hub cannot be reached and nothing is cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo_id, **{"allow_patterns": list(FILES), **hub}))
    # Every failure of the client is an OSError: HTTP status, no connection, offline mode.
    except (OSError, HFValidationError) as error:
        raise MissingFileError(
            f"{repo_id!r} is not a local folder, and no modulation could be fetched from the hub"
            f" under that name: {error}"
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
    """Upload a saved modulation with its model card and return the URL of the commit.

    Args:
        folder: what ``save_pretrained`` wrote; the model card is written into it.
        repo_id: ``owner/name``; created if it does not exist.
        private: whether a new repository is private; None: the account's default. An existing
            one keeps its visibility.
        token: of the hub; by default the one that is logged in.
        endpoint: the hub's address; by default the public one.
        hub: further arguments of ``HfApi.upload_folder``, such as ``commit_message``, ``revision``
            and ``create_pr``.

    Raises :class:`CheckpointError` when the folder holds no modulation, and what huggingface_hub
    raises.
    """
    from huggingface_hub import HfApi

    write_text(folder / CARD, model_card(folder, repo_id))
    api = HfApi(endpoint=endpoint, token=token, library_name="modulate")
    api.create_repo(repo_id, private=private, exist_ok=True)
    # Without the deletion, the adapter of an earlier upload would seem to belong to this one.
    settings = {"commit_message": "Upload a modulation", "delete_patterns": [f"{ADAPTER}/*"], **hub}
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=[CARD, *FILES], **settings
    )
    return str(commit.commit_url)


# --- the model card


def model_card(folder: Path, repo_id: str) -> str:
    """Return the text of the card, made from config.json and the headers of the weights.

    Raises :class:`CheckpointError` when these cannot be read.
    """
    try:
        config = parse_json((folder / CONFIG).read_bytes(), CONFIG)
        own = count_numbers(folder / WEIGHTS)
        lora = count_numbers(folder / ADAPTER_WEIGHTS) if config["lora"] else 0
        return _front_matter(config) + _body(config, repo_id, own, lora)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} holds no modulation that a card can be written for: {type(error).__name__}:"
            f" {error}"
        ) from error


def count_numbers(path: Path) -> int:
    """Return how many numbers a safetensors file holds, read from its header.

    Raises :class:`CheckpointError` for a file that cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"The weights in {path.parent} cannot be read: {path.name}: {error}"
        ) from error


def _front_matter(config: dict[str, Any]) -> str:
    host = config["host"]
    tags = ["modulate", host["model_type"], config["encoder"]["name"], config["modulator"]["name"]]
    if config["lora"]:
        tags.append("lora")
    lines = ["---", "library_name: modulate"]
    if host.get("name"):
        lines.append(f"base_model: {json.dumps(host['name'])}")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---"]
    return "\n".join(lines) + "\n\n"


def _parts_table(config: dict[str, Any], own: int, lora: int) -> str:
    """Return the table of a modulation's parts; ``own``, ``lora``: how many parameters."""
    host = config["host"]
    injection = config["injection"]
    adapter = config["lora"]
    source = f" from {_component(config['backbone'])}" if config["backbone"] else ""
    layers = ", ".join(map(str, injection["layers"]))
    rows = {
        "host": (
            f"{_host_name(host)}, {host['n_layers']} decoder layers of width {host['d_model']}; not"
            " part of this repository"
        ),
        "signal encoder": _component(config["encoder"]),
        "modulator": _component(config["modulator"]),
        "frame features": f"width {config['d_features']}{source}",
        "injected after decoder layers": f"{layers}, on {injection['tokens']['kind']} tokens",
        "parameters": f"{own:,}" + (f", and {lora:,} of LoRA" if adapter else ""),
    }
    if config.get("plugins", []):
        rows["made with"] = ", ".join(
            f"{plugin['package']} {plugin['version']}" for plugin in config.get("plugins", [])
        )
    if adapter:
        params = adapter["params"]
        rows["LoRA"] = (
            f"rank {params['rank']}, alpha {params['alpha']:g}, on {', '.join(params['targets'])}"
            f" (PEFT format, in `{ADAPTER}/`)"
        )
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| part | |", "|---|---|", *lines])


def _body(config: dict[str, Any], repo_id: str, own: int, lora: int) -> str:
    notes = ""
    if config["training"]:
        training = json.dumps(config["training"], indent=2, ensure_ascii=False)
        notes = f"\n## How it was made\n\n```json\n{training}\n```\n"
    description = (
        "A modulation: a small module that adds residuals to the hidden states of a frozen"
        " multimodal LLM, conditioned on a side signal."
    )
    return f"""# {repo_id.rpartition("/")[2]}

{description}
The host's own weights are neither changed nor included.

{_parts_table(config, own, lora)}

## How to load it

```sh
pip install {" ".join(_packages(config))}
```

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


def _packages(config: dict[str, Any]) -> list[str]:
    """Return the packages that loading a modulation takes, as pip takes them."""
    return sorted({DISTRIBUTION, *(plugin["package"] for plugin in config.get("plugins", []))})


def _host_name(host: dict[str, Any]) -> str:
    repository = f" ({json.dumps(host['name'])})" if host.get("name") else ""
    return f"`{host['model_type']}`{repository}"


def _component(spec: dict[str, Any]) -> str:
    """Return a component's name and parameters, for a cell of a Markdown table."""
    params = ", ".join(f"{name} {json.dumps(value)}" for name, value in spec["params"].items())
    params = params.replace("|", "\\|")
    return f"`{spec['name']}`" + (f" ({params})" if params else "")
