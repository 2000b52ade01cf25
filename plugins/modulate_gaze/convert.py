"""Convert GazeQwen's released checkpoint to a modulation: same numbers, our names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modulate.config.injection import Injection, LoraParams
from modulate.errors import CheckpointError
from modulate.interfaces.params import ComponentSpec
from modulate.modulation.lora import LoraSpec
from modulate.modulation.module import HostSpec, Modulation, ModulationConfig
from modulate.utils.atomic_files import content_hash
from modulate_gaze.checkpoint import Checkpoint, read_checkpoint
from modulate_gaze.released import read_released

LAYERS = (6, 13, 20, 27)
"""Decoder layers of the released checkpoint's four modules, in order; the host has 28."""

HOST_LAYERS = 28
FEATURES = {768: {"weights": "vjepa2_1_vitb_dist_vitG_384.pt", "preset": "base", "image_size": 384}}
"""Parameters of the backbone for released features, by their width.

The weights have the file name of their publisher.
"""


@dataclass(frozen=True)
class Converted:
    """A converted modulation with counts of parameters.

    ``resampler`` and ``lora`` count the checkpoint's parameters, ``written`` those of the
    modulation without LoRA. ``ignored``: one sentence for each value of the file's configuration
    that has no effect or was missing.
    """

    modulation: Modulation
    resampler: int
    lora: int
    written: int
    ignored: tuple[str, ...] = ()

    @property
    def dead(self) -> int | None:
        """The injected layer that is the host's last, or None.

        After the last layer, nothing attends to visual tokens, so a residual there cannot change
        the answer.
        """
        last = self.modulation.config.host.n_layers - 1
        return last if last in self.modulation.config.injection.layers else None


def convert(source: Path, folder: Path, layers: Sequence[int] | None = None) -> Converted:
    """Convert a released checkpoint and save the modulation in ``folder``.

    ``layers``: see :func:`modulation_from`. Raises :class:`CheckpointError` if the checkpoint does
    not fit, or if ``folder`` is not empty; then nothing is written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder; name another.")
    checkpoint = read_checkpoint(source)
    modulation = modulation_from(
        checkpoint, layers, {"file": source.name, "sha256": content_hash(source)}
    )
    modulation.save_pretrained(folder)
    return Converted(
        modulation,
        resampler=sum(tensor.numel() for tensor in checkpoint.resampler.values()),
        lora=sum(tensor.numel() for tensor in checkpoint.lora.values()),
        written=sum(
            tensor.numel()
            for name, tensor in modulation.state_dict().items()
            if not name.startswith("lora.")
        ),
        ignored=tuple(checkpoint.config.ignored()),
    )


def modulation_from(
    checkpoint: Checkpoint,
    layers: Sequence[int] | None = None,
    origin: dict[str, str] | None = None,
) -> Modulation:
    """Return the modulation of a checkpoint.

    ``layers``: decoder layer of each module, in order. The file does not contain them; for four
    modules and 28 layers the default is the released code's 6, 13, 20, 27. ``origin``: notes on the
    file, saved with the configuration.

    Raises :class:`CheckpointError` if the layers do not fit the modules or the host.
    """
    c = checkpoint.config
    chosen = _layers(checkpoint, layers)
    released = read_released(checkpoint.resampler, chosen)
    config = ModulationConfig(
        host=HostSpec(model_type="qwen2_5_vl", d_model=c.d_llm, n_layers=c.n_layers),
        # As released: coordinates without DETR's factor 2π; a fixation is active if it contains the
        # step's time in float32; features are added to the keys only.
        encoder=ComponentSpec(
            name="coord_pe",
            params={
                "dim": c.d_latent,
                "temperature": 10000.0,
                "scale": 1.0,
                "active": "released",
                "to_features": False,
            },
        ),
        modulator=ComponentSpec(name="gaze_resampler", params=released.params.model_dump()),
        injection=Injection(layers=chosen, empty="none"),
        backbone=ComponentSpec(name="vjepa2_1", params=FEATURES.get(c.d_vjepa, {})),
        d_features=released.d_features,
        lora=_lora_spec(checkpoint),
        training={
            "converted_from": {
                **(origin or {}),
                **({"version": c.version} if c.version is not None else {}),
            }
        },
    )
    modulation = Modulation(config).eval()
    modulation.modulator.load_state_dict(released.resampler)
    with torch.no_grad():
        for writer, weight in zip(modulation.out, released.outputs, strict=True):
            writer.get_parameter("weight").copy_(weight)
        modulation.amplitude.copy_(released.amplitude)
    assert modulation.lora is not None  # the configuration above has one
    modulation.lora.load_peft(
        {
            f"layers.{layer}.{name}.lora_{side}.weight": tensor
            for (layer, name, side), tensor in checkpoint.lora.items()
        }
    )
    return modulation


def _lora_spec(checkpoint: Checkpoint) -> LoraSpec:
    d = checkpoint.config.d_llm
    lora = checkpoint.lora_config
    return LoraSpec(
        params=LoraParams(rank=lora.rank, alpha=lora.alpha, targets=("q_proj", "v_proj")),
        shapes={"self_attn.q_proj": (d, d), "self_attn.v_proj": (d, checkpoint.d_value)},
        # path in current versions of transformers, for PEFT; the file's may be older
        layers_path="model.language_model.layers",
    )


def _layers(checkpoint: Checkpoint, layers: Sequence[int] | None) -> tuple[int, ...]:
    n = checkpoint.config.n_layers
    modules = checkpoint.modules
    if layers is None and (modules, n) != (len(LAYERS), HOST_LAYERS):
        raise CheckpointError(
            f"The checkpoint has {modules} modules for a host of {n} layers; which layers they"
            f" serve is known only for {len(LAYERS)} of {HOST_LAYERS}. Name one layer for each"
            " module, in order: --layers."
        )
    chosen = tuple(LAYERS if layers is None else layers)
    outside = [layer for layer in chosen if not 0 <= layer < n]
    if outside or len(chosen) != modules or len(set(chosen)) < len(chosen):
        raise CheckpointError(
            f"Layers {chosen} do not fit: {modules} different ones from 0 to {n - 1} are needed,"
            " one for each module, in order."
        )
    return chosen
