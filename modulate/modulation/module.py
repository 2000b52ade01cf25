"""The trained module: a signal encoder, a modulator, and its writers into chosen layers.

One trains, saves, loads and attaches it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from modulate.config.injection import Injection, LoraParams
from modulate.config.usage import Usage
from modulate.errors import CheckpointError, ComponentError, MissingFileError, RecipeError
from modulate.hosts.host import understand
from modulate.interfaces.components import Modulator, SignalEncoder
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.result_checks import (
    check_latents,
    check_residual,
    check_signal_features,
)
from modulate.interfaces.writer import Memory, Mixture, Projection
from modulate.modulation.clip_inputs import ClipInput, ClipRequirements, check_features
from modulate.modulation.config import (
    CONFIG_BYTES,
    HostSpec,
    ModulationConfig,
    checkpoint_errors,
    parse_config,
    portable,
)
from modulate.modulation.hub import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    CONFIG,
    WEIGHTS,
    count_numbers,
    fetch,
    upload,
)
from modulate.modulation.latents import Latents, step_spans
from modulate.modulation.lora import LoraTensors, check_numbers, describe
from modulate.utils.atomic_files import read_tensors, write_atomically, write_text
from modulate.utils.paths import is_repository
from modulate.utils.safe_load import read_limited

if TYPE_CHECKING:
    from modulate.modulation.attachment import Attachment


class Modulation(nn.Module):
    """Signal encoder, modulator, writers (which write 0 at first), amplitudes, and optional LoRA.

    Always fp32, whatever the host's dtype.
    """

    def __init__(self, config: ModulationConfig) -> None:
        super().__init__()
        self.config = config
        self.source: str | None = None  # the folder that it was loaded from
        self.encoder: SignalEncoder = config.encoder.build("signal_encoder")
        n_layers = len(config.injection.layers)
        self.modulator: Modulator = config.modulator.build(
            "modulator",
            d_features=config.d_features,
            d_signal=self.encoder.d_signal,
            n_layers=n_layers,
        )
        with config.modulator.blame("modulator", "writer"):
            self.out = nn.ModuleList(
                self.modulator.writer(k, config.host.d_model)
                for k in range(1 if self.modulator.shared_output else n_layers)
            )
        self.amplitude = nn.Parameter(torch.full((n_layers,), float(config.injection.alpha)))
        self.lora = LoraTensors(config.lora, config.host.n_layers) if config.lora else None

    @classmethod
    def for_host(
        cls,
        model: nn.Module,
        *,
        encoder: ComponentSpec,
        modulator: ComponentSpec,
        injection: Injection,
        d_features: int,
        lora: LoraParams | None = None,
        backbone: ComponentSpec | None = None,
        usage: Usage | None = None,
    ) -> Self:
        """Build a fresh modulation for a loaded host.

        Args:
            model: a transformers model.
            encoder: the signal encoder.
            modulator: what turns frame features and signal into latents.
            injection: the decoder layers and tokens to modulate.
            d_features: width of the frame features.
            lora: parameters of LoRA; None for none.
            backbone: source of the frame features; only recorded in the configuration.
            usage: what it reads and how it is asked; only recorded, for :func:`modulate.load`.

        Raises :class:`HostError` for layers or LoRA targets that the host lacks,
        :class:`RecipeError` when a component starts with numbers that are not finite.
        """
        host = understand(model)
        host.check_layers(injection.layers)
        config = ModulationConfig(
            host=HostSpec.of(host),
            encoder=encoder,
            modulator=modulator,
            injection=injection,
            backbone=backbone,
            d_features=d_features,
            lora=describe(host, lora) if lora else None,
            usage=usage,
        )
        modulation = cls(config)
        for name, value in modulation.state_dict().items():
            if value.is_meta or not value.is_floating_point() or value.isfinite().all():
                continue
            raise RecipeError(
                f"A fresh modulation of {encoder.name} and {modulator.name} starts with numbers in"
                f" {name!r} that are not finite."
            )
        return modulation

    # --- residuals

    def latents(self, clips: Sequence[ClipInput]) -> Latents:
        """Compute all layers' latents of all clips, each of which has a signal."""
        parts: dict[int, list[Tensor | Mixture]] = {}
        active: dict[int, int] = {}
        for members in _same_step_shape(clips):
            group = [clips[i] for i in members]
            layers, is_active = self._modulate(group)
            steps = [clip.grid.steps for clip in group]
            for i, of_clip in zip(members, is_active.split(steps), strict=True):
                active[i] = int(of_clip.sum())
                parts[i] = []
            for layer in layers:
                for i, part in zip(members, layer.split(steps), strict=True):
                    parts[i].append(part if isinstance(part, Mixture) else part.flatten(0, 1))
        order = range(len(clips))
        n_layers = len(self.config.injection.layers)
        return Latents(
            [[parts[i][k] for i in order] for k in range(n_layers)],
            steps=tuple(clip.grid.steps for clip in clips),
            active=tuple(active[i] for i in order),
            span=step_spans([clip.grid for clip in clips]),
        )

    def _modulate(self, clips: Sequence[ClipInput]) -> tuple[list[Tensor | Mixture], Tensor]:
        """Return each layer's latents, (step, token, d_latent), and (step,) which steps are active.

        The steps are those of all ``clips``, whose grids have the same rows and columns.
        """
        with self.config.encoder.blame("signal_encoder", "forward"):
            grids = [clip.grid for clip in clips]
            encoded = self.encoder([clip.signal for clip in clips], grids)
            signal = check_signal_features(encoded, self.encoder, grids)
        features = torch.cat([self._features(clip) for clip in clips])
        # Only projections can write mixtures; other writers look at each token's own latents.
        keep_mixtures = all(isinstance(writer, Projection) for writer in self.out)
        with self.config.modulator.blame("modulator", "forward"):
            computed = self.modulator(features, signal)
            checked = check_latents(computed, self.modulator, len(self.amplitude), signal)
            layers = [
                layer if keep_mixtures or not isinstance(layer, Mixture) else layer.dense()
                for layer in checked
            ]
        return layers, signal.active

    @property
    def clip_requirements(self) -> ClipRequirements:
        """Return what a clip must bring."""
        return ClipRequirements(
            self.encoder.signal_kind, self.config.d_features, on_meta=self.amplitude.is_meta
        )

    def _features(self, clip: ClipInput) -> Tensor:
        features = check_features("Features", clip, self.clip_requirements)
        return features.to(self.amplitude.device, torch.float32)

    def residual(
        self,
        k: int,
        latents: Tensor | list[Mixture],
        memory: Memory | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return the residuals of the ``k``-th injected layer, (token, d_model), in fp32.

        They are α_k times the output of the layer's writer.

        Args:
            k: number of the layer among the injected ones.
            latents: (token, d_latent), or mixtures of whole clips, which only a
                :class:`modulate.interfaces.writer.Projection` accepts.
            memory: as ``hidden``, see :class:`modulate.interfaces.writer.Writer`; not needed for
                a writer that reads neither.
            hidden: (token, d_model), the states about to be modified.
        """
        device = self.amplitude.device
        hidden = None if hidden is None else hidden.to(device)
        writer: Any = self.out[0 if len(self.out) == 1 else k]
        autocast_device = "cpu" if device.type == "meta" else device.type
        try:
            with torch.autocast(autocast_device, enabled=False):
                if isinstance(latents, Tensor):
                    written = writer(latents.float(), hidden, memory)
                    return self.amplitude[k] * check_residual(
                        written, latents, self.config.host.d_model
                    )
                residuals = [
                    writer.write_mixture(mixture, self.amplitude[k]) for mixture in latents
                ]
                return torch.cat(residuals) if len(residuals) > 1 else residuals[0]
        except Exception:
            # Entered only after a failure: this runs inside compiled hosts, which cannot trace it.
            with self.config.modulator.blame("modulator", "writer"):
                raise

    # --- attaching

    def attach(self, model: nn.Module) -> "Attachment":
        """Hook into a loaded host and return the attachment; its ``detach()`` undoes this."""
        # Deferred: an attachment is built on modulations, this is a shortcut to it.
        from modulate.modulation.attachment import Attachment

        return Attachment(self, model)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator["Attachment"]:
        """Attach for the length of a ``with`` block."""
        attachment = self.attach(model)
        try:
            yield attachment
        finally:
            attachment.detach()

    # --- saving and loading

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and, with LoRA, a PEFT adapter folder.

        Each file is written atomically.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: tensor.cpu().contiguous() for name, tensor in self._own_state().items()}
        _save_tensors(folder / WEIGHTS, own)
        if self.lora is not None:
            config, adapter = self.lora.to_peft()
            (folder / ADAPTER).mkdir(exist_ok=True)
            _save_tensors(folder / ADAPTER_WEIGHTS, adapter)
            text = json.dumps(config, indent=2, default=_as_json)
            write_text(folder / ADAPTER / "adapter_config.json", text + "\n")
        # Last: a folder counts as a saved modulation once this file is there.
        config_text = portable(self.config, self.modulator).model_dump_json(indent=2)
        write_text(folder / CONFIG, config_text + "\n")

    def _own_state(self) -> dict[str, Tensor]:
        """Return all tensors but LoRA's, which are saved in a format of their own."""
        state = self.state_dict()
        return {name: value for name, value in state.items() if not name.startswith("lora.")}

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **hub: Any) -> str:
        """Upload to the hub with a model card and return the URL of the commit.

        For ``private`` and ``hub`` see :func:`modulate.modulation.hub.upload`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, private=private, **hub)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, is_trainable: bool = False, **hub: Any
    ) -> Self:
        """Load a folder or a hub repository.

        It is frozen and in evaluation mode, as PEFT's adapters are, unless ``is_trainable``.
        Otherwise ``condition()`` outside of ``no_grad`` would record a graph that nobody needs, and
        keep it. ``hub``: arguments of ``huggingface_hub.snapshot_download``.

        Raises:
            MissingFileError, CheckpointError: files are missing or wrong; names file and key.
            PluginError: a component is not installed; names its package, and how to install it.
        """
        folder = Path(path_or_repo)
        if not folder.is_dir() and is_repository(str(path_or_repo)):
            folder = fetch(str(path_or_repo), **hub)
        if not (folder / CONFIG).is_file():
            raise MissingFileError(
                f"{folder} is not a saved modulation: {CONFIG} is missing there."
            )
        with checkpoint_errors(str(folder / CONFIG)):
            config = parse_config(read_limited(folder / CONFIG, CONFIG_BYTES), str(folder / CONFIG))
            _refuse_misfit(config, folder)
            modulation = cls(config)
        modulation.load(folder)
        modulation.source = str(folder.resolve())
        return modulation.train(is_trainable).requires_grad_(is_trainable)

    def load(self, folder: Path) -> None:
        """Load the weights in ``folder``.

        Raises :class:`CheckpointError` on any missing, unexpected or misshapen tensor.
        """
        try:
            self.fill(read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
            if self.lora is not None:
                self.lora.load_peft(read_tensors(folder / ADAPTER_WEIGHTS))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"The weights in {folder} cannot be read: {error}") from error

    def fill(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Load ``tensors``, which are all but LoRA's; ``source`` names their file in errors.

        Raises :class:`CheckpointError` as :meth:`load` does.
        """
        own = self._own_state()
        wrong = sorted(tensors.keys() ^ own.keys()) or sorted(
            name for name in own if own[name].shape != tensors[name].shape
        )
        if wrong:
            raise CheckpointError(
                f"{source} does not fit its configuration: {len(wrong)} tensors differ, the first"
                f" is {wrong[0]!r:.200}."
            )
        check_numbers(tensors, source)
        self.load_state_dict(dict(tensors), strict=False)


def _same_step_shape(clips: Sequence[ClipInput]) -> list[list[int]]:
    """Return the indices of the clips in groups that can go through the modulator as one batch.

    It runs on single time steps, so the clips of a group may differ in their number of steps.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, clip in enumerate(clips):
        groups.setdefault((clip.grid.rows, clip.grid.cols), []).append(i)
    return list(groups.values())


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata={"format": "pt"}))


def _as_json(value: Any) -> Any:
    """Return a value of PEFT's configuration, which holds sets and enumerations, for JSON."""
    return sorted(value) if isinstance(value, set) else str(value)


def _refuse_misfit(config: ModulationConfig, folder: Path) -> None:
    """Raise :class:`CheckpointError` when the files hold fewer numbers than ``config`` describes.

    A configuration from elsewhere could otherwise make us allocate any amount of memory. All other
    differences, and components that cannot be built without memory, are left to the strict
    comparison in :meth:`Modulation.load`.
    """
    files = [folder / WEIGHTS]
    if config.lora:
        files.append(folder / ADAPTER_WEIGHTS)
    try:
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in Modulation(config).state_dict().items()}
    except ComponentError:
        return
    described = sum(math.prod(shape) for shape in expected.values())
    found = sum(map(count_numbers, files))
    if described > found:
        raise CheckpointError(
            f"The weights in {folder} do not fit their configuration: it describes {described}"
            f" numbers, they hold {found}."
        )
