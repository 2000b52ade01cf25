"""What the core must know of a host, and the generic host, which follows transformers' conventions.

A family (plugin kind ``host``) subclasses :class:`Host` and overrides only what differs. A model
that does not follow the conventions is refused, with what was looked for; nothing is guessed.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from modulate import plugins
from modulate.errors import HostError
from modulate.hosts import encoding
from modulate.hosts.encoding import EncodedPrompt
from modulate.hosts.prompt_grids import Modality, Sizes, picture_sizes
from modulate.interfaces.messages import Message, VideoClip, Visual
from modulate.interfaces.params import Params
from modulate.interfaces.visual_grid import VisualGrid


class HostParams(Params):
    """How a recipe loads a host."""

    path: str = Field(
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


class Host:
    """A loaded model: its decoder layers, their width, and the token ids that stand for vision.

    ``entry`` is the module whose forward receives token ids and cache and merges vision into the
    text (``model.model`` of the usual conditional-generation classes): a hook on it covers calls at
    every level above. ``language`` is the language model inside it.
    """

    language_names: ClassVar[tuple[str, ...]] = ("language_model", "text_model")
    """Names under which transformers' classes hold the language model."""

    type_arguments: ClassVar[tuple[str, ...]] = ("mm_token_type_ids",)
    """Arguments of a forward in which 0 is text and everything else vision.

    ``token_type_ids`` is not among them by default: PaliGemma's gives pictures type 0 too.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    Params: ClassVar[type[HostParams]] = HostParams

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.entry, self.language = self.find_entry(base_model(model))
        self.layers = self.find_layers(self.language)
        self.config = cast(Any, self.entry.config)
        self.d_model = int(self.config.get_text_config().hidden_size)
        self.visual_ids = self.find_visual_ids(self.config)
        if not self.visual_ids:
            raise HostError(
                f"{type(self).__name__} names no visual placeholder: its find_visual_ids returned"
                " none."
            )
        self.check_states()

    # --- what is where

    @classmethod
    def find_entry(cls, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the module that merges vision into text, and its language model.

        Raises :class:`HostError` listing what was looked for.
        """
        for candidate in (model, getattr(model, "model", None)):
            if not isinstance(candidate, nn.Module):
                continue
            # Some classes expose `language_model` as a property that reaches through `model`: the
            # entry must own it.
            children = dict(candidate.named_children())
            for name in cls.language_names:
                if name in children:
                    return candidate, children[name]
        found = ", ".join(name for name, _ in model.named_children())
        config = getattr(model, "config", None)
        hint = ""
        if getattr(config, "vision_config", None) is None:
            hint = " Its configuration has no vision_config: it is no host with a vision tower."
        wanted = ", ".join(
            f"`{prefix}{name}`" for name in cls.language_names for prefix in ("", "model.")
        )
        raise HostError(
            f"{type(model).__name__} is not understood as a multimodal host: looked for {wanted},"
            f" found only {found or 'no sub-modules'}.{hint}"
        )

    @staticmethod
    def find_layers(language: Any) -> nn.ModuleList:
        """Return the decoder layers of the language model, never those of a vision tower."""
        for owner in (language, getattr(language, "model", None)):
            layers = getattr(owner, "layers", None)
            if isinstance(layers, nn.ModuleList) and len(layers):
                return layers
        raise HostError(
            f"{type(language).__name__} is not understood as a language model: looked for `layers`"
            " and `model.layers`, a ModuleList."
        )

    @staticmethod
    def find_visual_ids(config: Any) -> dict[str, int]:
        """Return the placeholder ids that the configuration names: {"image": id, "video": id}."""
        found = {}
        for modality in ("image", "video"):
            for name in (f"{modality}_token_id", f"{modality}_token_index"):
                value = getattr(config, name, None)
                if isinstance(value, int):
                    found[modality] = value
                    break
        if not found:
            raise HostError(
                f"{type(config).__name__} names no visual placeholder: looked for image_token_id,"
                " video_token_id, image_token_index, video_token_index."
            )
        return found

    def placeholders(self, grid: VisualGrid) -> Sequence[int]:
        """Return for each placeholder of a clip its visual token in ``grid``, or −1 for none.

        By default placeholders are the grid's tokens. A family whose clips have others (ends of
        lines, separators) overrides this.
        """
        return range(grid.tokens)

    def check_states(self) -> None:
        """Raise :class:`HostError` unless layers pass on (batch, position, d_model) with vision.

        Some of the positions must be visual tokens, which is where residuals are written.
        """
        name = type(base_model(self.model)).__name__
        for index, layer in enumerate(self.layers):
            for child, _ in layer.named_children():
                if child.startswith(("cross_att", "crossatt", "encoder_att")):
                    raise HostError(
                        f"{name} cannot be modulated: vision reaches its decoder by cross-attention"
                        f" (`{child}` of layer {index}), so that none of its positions are visual"
                        " tokens."
                    )
        streams = getattr(self.config.get_text_config(), "altup_num_inputs", 1) or 1
        if streams > 1:
            raise HostError(
                f"{name} cannot be modulated: its decoder layers hand on {streams} states of each"
                " token (AltUp), of which only some reach the answer."
            )

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise :class:`HostError` when a layer index does not exist."""
        missing = [layer for layer in layers if not 0 <= layer < len(self.layers)]
        if missing:
            raise HostError(
                f"Injection asks for decoder layer {', '.join(map(str, missing))}, but"
                f" {type(base_model(self.model)).__name__} has layers 0 to {len(self.layers) - 1}."
            )

    # --- loading and encoding

    @classmethod
    def load(cls, params: HostParams) -> tuple[nn.Module, Any]:
        """Load model (frozen, in eval mode) and processor, offline when ``path`` is a folder.

        Only safetensors weights are read: other files are pickles. For random weights, see
        :meth:`build_random`. Raises :class:`HostError` with transformers' own message.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        path = _local_or_hub(params.path)
        device = params.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if params.weights == "random":
            return cls.build_random(params, device)
        # Always passed: left out, transformers asks at the terminal.
        trust = params.trust_remote_code
        try:
            with _no_progress_bar():
                model = AutoModelForImageTextToText.from_pretrained(
                    path,
                    dtype=getattr(torch, params.dtype),
                    attn_implementation=params.attention,
                    use_safetensors=True,
                    trust_remote_code=trust,
                )
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust)
        except (OSError, ValueError) as error:
            # Not there, no network, no safetensors, or code of its own that is not trusted.
            raise HostError(f"The host {params.path!r} cannot be loaded: {error}") from error
        return model.requires_grad_(False).eval().to(device), processor

    @classmethod
    def build_random(cls, params: HostParams, device: str) -> tuple[nn.Module, Any]:
        """Build model and processor with random weights from a configuration.

        The configuration is the folder's own, or the one that ships with the family for a hub id. A
        hub id, and a folder without a processor, get the family's stand-in processor. Raises
        :class:`HostError` for what cannot be built.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        path = _local_or_hub(params.path)
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
                config = cls.shipped_config(path)
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
                processor = cls.stand_in_processor(path, config)
        except (OSError, ValueError, KeyError) as error:
            raise HostError(
                f"The host {params.path!r} cannot be built with random weights: {error}"
            ) from error
        return model.requires_grad_(False).eval(), processor

    @classmethod
    def shipped_config(cls, path: str) -> Any:
        """Return the transformers configuration that ships with the family for hub id ``path``.

        Raises :class:`HostError` by default: none ships.
        """
        raise HostError(
            f"No configuration of {path!r} ships with {cls.__name__}; give a folder with its"
            " config.json as path."
        )

    @classmethod
    def stand_in_processor(cls, path: str, config: Any) -> Any:
        """Return a processor for random weights that gives the real one's numbers of visual tokens.

        Raises :class:`HostError` by default: there is none.
        """
        raise HostError(
            f"{cls.__name__} cannot build a processor; the folder {path!r} must hold the model's"
            " own."
        )

    @classmethod
    def narrow(cls, config: Any) -> Any:
        """Return ``config`` with the same layers, each as narrow as possible.

        Checks take gradients through such a model where the real one is too large. Raises
        :class:`HostError` by default.
        """
        raise HostError(f"{cls.__name__} does not say how its configuration is narrowed.")

    def encode(
        self, processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> EncodedPrompt:
        """Encode a conversation, with the true times of its clips' frames.

        Every frame is shown whole. Families without videos are shown frames as pictures.

        Args:
            processor: the host's processor.
            messages: text, clips and pictures, in order.
            add_generation_prompt: end with the beginning of the assistant's turn.

        Raises :class:`DataError` for text that contains a placeholder, and :class:`HostError` if
        what the processor makes of the conversation does not fit transformers' conventions.
        """
        return encoding.encode(self, processor, messages, add_generation_prompt)

    def modality(self, visual: Visual) -> Modality:
        """Return what a processor for videos is given a clip or picture as.

        A clip that is given as images is one image a frame.
        """
        return "video" if isinstance(visual, VideoClip) else "image"

    def picture_settings(self, component: Any) -> dict[str, Any]:
        """Return arguments with which an image or video processor shows every picture whole.

        See :func:`encoding.whole_pictures`, which gives the default.
        """
        return encoding.whole_pictures(component)

    def stretched_size(self, processor: Any) -> tuple[int, int] | None:
        """Return (height, width) to which pictures are stretched before the processor gets them.

        None by default: as they are. For families whose processors would pad them.
        """
        return None

    def sizes(
        self,
        outputs: Mapping[str, Any],
        modality: Modality,
        lengths: Mapping[Modality, Sequence[int]],
    ) -> Sizes:
        """Return (step, height, width) of what is shown in one modality, after preprocessing.

        Only the ratio of height to width counts. See :func:`picture_sizes`.
        """
        return picture_sizes(outputs, modality, lengths)

    def input_names(self) -> set[str]:
        """Return the names of the model's inputs."""
        return set(inspect.signature(type(base_model(self.model)).forward).parameters)

    def collate(self, rows: Sequence[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
        """Join encoded prompts into a batch.

        Inputs along the prompt are padded on the left, where generation expects padding; the vision
        inputs of all rows are joined by :meth:`join`.
        """
        longest = max(row["input_ids"].shape[1] for row in rows)
        batch = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            owners = [row for row in rows if name in row]
            values = [row[name] for row in owners]
            if all(row[name].shape == row["input_ids"].shape for row in owners):
                fill = pad_id if name == "input_ids" else 0
                values = [
                    nn.functional.pad(value, (longest - value.shape[1], 0), value=fill)
                    for value in values
                ]
            batch[name] = self.join(name, values)
        return batch

    def join(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """Return a vision input of several rows as one tensor.

        By default they are concatenated. Pictures by row, (1, picture, channel, height, width) and
        their masks, are padded with empty pictures, which hosts with such inputs leave out.

        Raises :class:`HostError` if the rows differ in shape.
        """
        by_row = {"pixel_values": 5, "pixel_attention_mask": 4}.get(name)
        if all(value.ndim == by_row for value in values):
            most = max(value.shape[1] for value in values)
            values = [
                nn.functional.pad(value, (0, 0) * (value.ndim - 2) + (0, most - value.shape[1]))
                for value in values
            ]
        if len({value.shape[1:] for value in values}) > 1:
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            raise HostError(
                f"{type(self).__name__} cannot take these samples in one batch: their {name} differ"
                f" in shape ({shapes}). Give all clips the same number of frames, or use batches of"
                " one sample."
            )
        return torch.cat(list(values))


def _local_or_hub(path: str) -> str:
    """Return the absolute path of a folder on this machine, or a hub id unchanged."""
    from modulate.utils.paths import resolve

    return str(resolve(path)) if path.startswith(("package:", ".", "/")) else path


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


def base_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside torch.compile's and PEFT's wrappers, if any."""
    model = getattr(model, "_orig_mod", model)
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def understand(model: nn.Module) -> Host:
    """Return the :class:`Host` of a loaded model: its family's, or the generic one.

    Raises :class:`HostError` for a model that neither can serve.
    """
    config = getattr(base_model(model), "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise HostError(
            f"{type(model).__name__} has no `config.model_type`: a transformers model is needed."
        )
    registry = plugins.registry()
    for name, family in registry.loadable("host"):
        if model_type in family.model_types:
            with registry.blame("host", name, "its constructor"):
                return family(model)
    return Host(model)
