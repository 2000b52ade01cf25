"""What the core must know of a host, and the generic host, which follows transformers' conventions.

A family (plugin kind ``host``) subclasses :class:`Host` and overrides only what differs. A model
that does not follow the conventions is refused, with what was looked for; nothing is guessed.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from modulate import plugins
from modulate.errors import HostError
from modulate.hosts import encoding, loading
from modulate.hosts.encoding import EncodedPrompt
from modulate.hosts.loading import HostParams
from modulate.hosts.prompt_grids import Modality, Sizes, picture_sizes
from modulate.interfaces.messages import Message, VideoClip, Visual
from modulate.interfaces.visual_grid import VisualGrid

GENERIC = "generic"
"""Name under which recipes ask for the generic host."""


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
        if getattr(self.config, "qformer_config", None) is not None:
            raise HostError(
                f"{name} cannot be modulated: its visual tokens are a Q-Former's queries, which"
                " have no place in the picture, and its `generate` runs the language model past the"
                " module that merges them into the text."
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
    def accepts(cls, model_type: str) -> bool:
        """Return whether this class serves models of a type, when a recipe names it.

        By default those in ``model_types``, or all if it lists none.
        """
        return not cls.model_types or model_type in cls.model_types

    @classmethod
    def open(cls, params: HostParams) -> tuple[nn.Module, Any]:
        """Load model and processor; from now on :func:`understand` has this class serve the model.

        Raises :class:`HostError` as :meth:`load` does, and for a model of a type that this class
        does not serve.
        """
        model, processor = cls.load(params)
        cls.check_type(cast(Any, base_model(model)).config)
        cls.serve(model)
        return model, processor

    @classmethod
    def serve(cls, model: nn.Module) -> None:
        """Have :func:`understand` return a host of this class for ``model``."""
        _chosen[base_model(model)] = cls

    @classmethod
    def check_type(cls, config: Any) -> None:
        """Raise :class:`HostError` unless this class serves the models of a configuration."""
        if not cls.accepts(config.model_type):
            raise HostError(
                f"The host class {cls.__name__}, which the recipe names, serves models of type"
                f" {', '.join(cls.model_types)}, and this one is of type {config.model_type}; set"
                f" host.name to {_name_for(config.model_type)}."
            )

    @classmethod
    def load(cls, params: HostParams) -> tuple[nn.Module, Any]:
        """Load model (frozen, in eval mode) and processor, offline when ``path`` is a folder.

        Only safetensors weights are read: other files are pickles. For random weights, see
        :func:`loading.build_random`. Raises :class:`HostError` with transformers' own message.
        """
        return loading.load(cls, params)

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
        """Return the names of the model's inputs, of which labels are none."""
        names = set(inspect.signature(type(base_model(self.model)).forward).parameters)
        return names - {"labels"}

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


def base_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside torch.compile's and PEFT's wrappers, if any."""
    model = getattr(model, "_orig_mod", model)
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


_chosen: WeakKeyDictionary[nn.Module, type[Host]] = WeakKeyDictionary()
"""The classes that recipes named for the models that they loaded."""


def understand(model: nn.Module) -> Host:
    """Return the :class:`Host` of a loaded model.

    Its class is the one whose :meth:`Host.open` loaded it, or else the one that lists its type, or
    else the generic one. Raises :class:`HostError` for a model that cannot be served.
    """
    config = getattr(base_model(model), "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise HostError(
            f"{type(model).__name__} has no `config.model_type`: a transformers model is needed."
        )
    family = _chosen.get(base_model(model))
    name = _name_for(model_type) if family is None else family.__name__
    if family is None:
        family = plugins.registry().get("host", name) if name != GENERIC else Host
    with plugins.registry().blame("host", name, "its constructor"):
        return family(model)


def _name_for(model_type: str) -> str:
    """Return the name of the family that lists a model type, or the generic host's."""
    registry = plugins.registry()
    for name in registry.names("host"):
        if model_type in registry.get("host", name).model_types:
            return name
    return GENERIC
