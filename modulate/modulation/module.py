"""The thing one trains, saves, loads and attaches: a signal encoder, a modulator, and its writers
into chosen layers.
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
from modulate.errors import CheckpointError, ComponentError, MissingFileError, RecipeError
from modulate.hosts.host import understand
from modulate.interfaces.components import Modulator, SignalEncoder, SignalFeatures
from modulate.interfaces.params import ComponentSpec
from modulate.interfaces.writer import Memory, Mixture, Projection
from modulate.modulation.clip_inputs import ClipInput, ClipRequirements, check_features
from modulate.modulation.config import (
    CONFIG_BYTES,
    HostSpec,
    ModulationConfig,
    fitting,
    parse_config,
    portable,
)
from modulate.modulation.hub import (
    ADAPTER,
    CONFIG,
    WEIGHTS,
    count_numbers,
    fetch,
    is_repository,
    upload,
)
from modulate.modulation.latents import Latents, step_spans
from modulate.modulation.lora import LoraTensors, check_numbers, describe
from modulate.utils.atomic_files import read_tensors
from modulate.utils.safe_load import read_limited

if TYPE_CHECKING:
    from modulate.modulation.attachment import Attachment


class Modulation(nn.Module):
    """Signal encoder, modulator, its writers (which write 0 at first), amplitudes, and LoRA tensors
    if any. Always fp32.
    """

    def __init__(self, config: ModulationConfig) -> None:
        super().__init__()
        self.config = config
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
    ) -> Self:
        """Build a fresh modulation for a loaded host; layer indices and LoRA targets are checked
        against it.

        Raises :class:`RecipeError` when a component starts with numbers that are not finite.
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
        )
        fresh = cls(config)
        wrong = [
            name
            for name, value in fresh.state_dict().items()
            if value.is_floating_point() and not value.is_meta and not value.isfinite().all()
        ]
        if wrong:
            raise RecipeError(
                f"A fresh modulation of {encoder.name} and {modulator.name} starts with numbers in"
                f" {wrong[0]!r} that are not finite."
            )
        return fresh

    # --- residuals

    def latents(self, clips: Sequence[ClipInput]) -> Latents:
        """Compute all layers' latents of all clips with a signal, in order; clips of one token
        count go through in one batch.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, clip in enumerate(clips):
            groups.setdefault((clip.grid.rows, clip.grid.cols), []).append(i)
        parts: dict[int, list[Tensor | Mixture]] = {}
        whole = not all(
            isinstance(writer, Projection) for writer in self.out
        )  # such writers look at each token's own latents
        active = [0] * len(clips)
        for members in groups.values():
            chosen = [clips[i] for i in members]
            with self.config.encoder.blame("signal_encoder", "forward"):
                signal: SignalFeatures = self.encoder(
                    [c.signal for c in chosen], [c.grid for c in chosen]
                )
            features = torch.cat([self._features(c) for c in chosen])
            with self.config.modulator.blame("modulator", "forward"):
                layers = [
                    z.dense() if whole and isinstance(z, Mixture) else z
                    for z in self.modulator(features, signal)
                ]
            steps = [c.grid.steps for c in chosen]
            split = [z.split(steps) for z in layers]
            for k, (i, reached) in enumerate(zip(members, signal.active.split(steps), strict=True)):
                active[i] = int(reached.sum())
                parts[i] = [
                    part if isinstance(part := z[k], Mixture) else part.flatten(0, 1) for z in split
                ]
        by_layer = [
            [parts[i][k] for i in range(len(clips))]
            for k in range(len(self.config.injection.layers))
        ]
        return Latents(
            by_layer,
            tuple(c.grid.steps for c in clips),
            tuple(active),
            step_spans([c.grid for c in clips]),
        )

    @property
    def needs(self) -> ClipRequirements:
        """What is read of a clip."""
        return ClipRequirements(
            self.encoder.signal_kind, self.config.d_features, self.amplitude.is_meta
        )

    def _features(self, clip: ClipInput) -> Tensor:
        return check_features("Features", clip, self.needs).to(self.amplitude.device, torch.float32)

    def residual(
        self,
        k: int,
        latents: Tensor | list[Mixture],
        memory: Memory | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return what the ``k``-th injected layer adds, (token, d_model) in fp32: α_k times what
        its writer makes of the latents.

        ``latents``: (token, d_latent), or whole clips, which only a
        :class:`modulate.interfaces.writer.Projection` takes as mixtures. ``hidden`` and ``memory``:
        see :class:`modulate.interfaces.writer.Writer`; a writer that looks at neither does without.
        """
        device = self.amplitude.device
        hidden = None if hidden is None else hidden.to(device)
        writer: Any = self.out[0 if len(self.out) == 1 else k]
        try:
            with torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False):
                if isinstance(latents, Tensor):
                    return self.amplitude[k] * writer(latents.float(), hidden, memory)
                found = [writer.mixed(mixture, self.amplitude[k]) for mixture in latents]
                return torch.cat(found) if len(found) > 1 else found[0]
        except Exception:
            with self.config.modulator.blame(
                "modulator", "writer"
            ):  # only now: this runs inside compiled hosts
                raise

    # --- attaching

    def attach(self, model: nn.Module) -> "Attachment":
        """Hook into a loaded host and return the attachment; ``detach()`` takes everything out
        again.
        """
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

        Each file atomically.
        """
        from modulate.utils.atomic_files import write_atomically, write_text

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            k: v.detach().cpu().contiguous()
            for k, v in self.state_dict().items()
            if not k.startswith("lora.")
        }
        write_atomically(
            folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"})
        )
        if self.lora is not None:
            config, adapter = self.lora.to_peft()
            (folder / ADAPTER).mkdir(exist_ok=True)
            write_atomically(
                folder / ADAPTER / "adapter_model.safetensors",
                lambda path: save_file(adapter, path, metadata={"format": "pt"}),
            )
            text = json.dumps(
                config, indent=2, default=lambda v: sorted(v) if isinstance(v, set) else str(v)
            )
            write_text(folder / ADAPTER / "adapter_config.json", text + "\n")
        named = portable(self.config, self.modulator)
        write_text(folder / CONFIG, named.model_dump_json(indent=2) + "\n")

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **hub: Any) -> str:
        """Upload to the hub with a model card; return the commit's address.

        For ``private`` and ``hub`` see :func:`modulate.modulation.hub.upload`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, private=private, **hub)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, is_trainable: bool = False, **hub: Any
    ) -> Self:
        """Load a folder or a hub repository (``hub``: arguments of
        ``huggingface_hub.snapshot_download``).

        Frozen and in evaluation mode, as PEFT's adapters, unless ``is_trainable``: otherwise
        ``condition()`` outside of ``no_grad`` would record a graph that nobody asked for, and keep
        it.

        Raises :class:`MissingFileError` or :class:`CheckpointError` naming file and key.
        """
        folder = Path(path_or_repo)
        if not folder.is_dir() and is_repository(str(path_or_repo)):
            folder = fetch(str(path_or_repo), **hub)
        if not (folder / CONFIG).is_file():
            raise MissingFileError(f"{folder} is no saved modulation: {CONFIG} is missing there.")
        with fitting(str(folder / CONFIG)):
            config = parse_config(read_limited(folder / CONFIG, CONFIG_BYTES), str(folder / CONFIG))
            _refuse_misfit(config, folder)
            modulation = cls(config)
        modulation.load(folder)
        return modulation.train(is_trainable).requires_grad_(is_trainable)

    def load(self, folder: Path) -> None:
        """Take over the weights in ``folder``, strictly.

        Raises :class:`CheckpointError` on any missing, unexpected or misshapen tensor.
        """
        try:
            self.fill(read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
            if self.lora is not None:
                self.lora.load_peft(read_tensors(folder / ADAPTER / "adapter_model.safetensors"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"The weights in {folder} cannot be read: {error}") from error

    def fill(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take over ``tensors``, LoRA's aside; ``source`` names their file in errors.

        Raises :class:`CheckpointError` as :meth:`load` does.
        """
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("lora.")}
        wrong = sorted(tensors.keys() ^ own.keys()) or sorted(
            k for k in own if own[k].shape != tensors[k].shape
        )
        if wrong:
            raise CheckpointError(
                f"{source} does not fit its configuration: {len(wrong)} tensors differ, the first"
                f" is {wrong[0]!r:.200}."
            )
        check_numbers(tensors, source)
        self.load_state_dict(dict(tensors), strict=False)


def _refuse_misfit(config: ModulationConfig, folder: Path) -> None:
    """Raise :class:`CheckpointError` when the files hold less than ``config`` speaks of: before
    memory of that size is taken.

    What differs otherwise, and components that cannot be built without memory, are left to the
    strict comparison in :meth:`Modulation.load`.
    """
    files = [
        folder / WEIGHTS,
        *([folder / ADAPTER / "adapter_model.safetensors"] if config.lora else []),
    ]
    try:
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in Modulation(config).state_dict().items()}
    except ComponentError:
        return
    wanted = sum(math.prod(shape) for shape in expected.values())
    found = sum(map(count_numbers, files))
    if wanted > found:
        raise CheckpointError(
            f"The weights in {folder} do not fit their configuration: it speaks of {wanted}"
            f" numbers, they hold {found}."
        )
