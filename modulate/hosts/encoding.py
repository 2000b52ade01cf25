"""Conversations as model inputs, through any processor that follows transformers' conventions.

The processor's own chat template places clips and pictures; its own preprocessing turns them into
tensors. What belongs to which clip is read off the prompt: every clip and picture must have as many
placeholders as its grid has visual tokens, and a processor that does not fit is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modulate.errors import DataError, HostError
from modulate.errors import shown as shown_value
from modulate.hosts.prompt_grids import HostConventions, Shown, grids_of
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Content, Message, VideoClip, Visual
from modulate.interfaces.visual_grid import VisualGrid
from modulate.plugins import InterfaceError

WHOLE: dict[str, Any] = {
    "do_image_splitting": False,
    "crop_to_patches": False,
    "do_pan_and_scan": False,
    "slice_mode": False,
    "use_token_compression": False,
}
"""Arguments of processors that leave pictures in one piece, and keep all of their tokens."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A conversation, encoded by the host's processor.

    Attributes:
        inputs: model inputs (batch 1).
        grids: the true visual grid of each clip and picture, in order of appearance.
    """

    inputs: dict[str, Tensor]
    grids: tuple[VisualGrid, ...]


def encode(
    host: HostConventions, processor: Any, messages: Sequence[Message], add_generation_prompt: bool
) -> EncodedPrompt:
    """Encode a conversation; see :meth:`modulate.hosts.host.Host.encode`."""
    # Imported here: jinja2 comes with transformers, which loads it on first use as well.
    from jinja2 import TemplateError

    _refuse_placeholders(host, processor, messages)
    shown = [Shown.of(host, processor, visual) for m in messages for visual in m.visuals]
    try:
        prompt = render(processor, messages, shown, add_generation_prompt)
        outputs = _process(host, processor, prompt, shown)
    except (ValueError, TypeError, RuntimeError, ImportError, TemplateError) as error:
        frames = {len(item.pictures) for item in shown if item.modality == "video"}
        hint = ""
        if len(frames) > 1:
            hint = (
                f" Its clips have {' and '.join(map(str, sorted(frames)))} frames, which some"
                " processors cannot put into one tensor."
            )
        reason = str(error).rstrip(".")
        raise HostError(
            f"{type(processor).__name__} cannot encode this conversation: {reason}.{hint}"
        ) from error
    replacements = outputs.pop("text_replacement_offsets", None)
    outputs = {name: _tensor(value) for name, value in outputs.items()}
    grids = grids_of(host, processor, shown, outputs, replacements[0] if replacements else None)
    names = host.input_names()
    inputs = {
        name: value
        for name, value in outputs.items()
        if name in names and isinstance(value, Tensor)
    }
    return EncodedPrompt(inputs, grids)


def check_encoded(result: Any, host: HostConventions, visuals: int) -> EncodedPrompt:
    """Return what a host's ``encode`` made of a conversation with ``visuals`` clips and pictures.

    Raises :class:`modulate.plugins.InterfaceError` if a host's own ``encode`` broke its interface.
    """
    if not isinstance(result, EncodedPrompt):
        raise InterfaceError(
            f"returned a value of type {type(result).__name__} from encode; it must return an"
            " EncodedPrompt(inputs, grids)."
        )
    wrong = [name for name, value in result.inputs.items() if not isinstance(value, Tensor)]
    ids = result.inputs.get("input_ids")
    if wrong or not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1:
        missing = f"{wrong[0]!r} as no tensor" if wrong else "no `input_ids` of shape (1, position)"
        raise InterfaceError(
            f"returned inputs with {missing} from encode; they must be the model's tensors for one"
            " conversation."
        )
    grids: Any = result.grids
    is_grids = isinstance(grids, tuple) and all(isinstance(grid, VisualGrid) for grid in grids)
    if not is_grids or len(grids) != visuals:
        count = len(grids) if is_grids else shown_value(grids)
        raise InterfaceError(
            f"returned {count} grids from encode for {visuals} clips and pictures; it must return a"
            " tuple with a VisualGrid for each, in order."
        )
    expected = sum(len(host.placeholders(grid)) for grid in grids)
    visual_ids = torch.tensor(list(host.visual_ids.values()), device=ids.device)
    found = int(torch.isin(ids, visual_ids).sum())
    if found != expected:
        raise InterfaceError(
            f"returned a prompt with {found} placeholders from encode, and grids of"
            f" {' + '.join(f'{g.steps}×{g.rows}×{g.cols}' for g in grids) or 'no'} tokens, which"
            f" are {expected}. Each clip needs as many as its grid has."
        )
    return result


def _refuse_placeholders(
    host: HostConventions, processor: Any, messages: Sequence[Message]
) -> None:
    """Raise :class:`DataError` for text that would be taken for a clip or picture."""
    tokens = {getattr(processor, f"{kind}_token", None) for kind in ("image", "video")}
    tokens |= set(processor.tokenizer.convert_ids_to_tokens(list(host.visual_ids.values())))
    for message in messages:
        for part in message.content:
            found = isinstance(part, str) and [t for t in tokens if t and t in part]
            if found:
                raise DataError(
                    f"The text {part!r} contains {found[0]!r}, which stands for a clip or picture"
                    " in this host's prompts; reword it."
                )


def metadata(clip: VideoClip) -> dict[str, Any]:
    """Return video metadata with a clip's true frame times, and its true mean frame rate.

    Processors compute a frame's time as index / rate: at 1000 fps, frame i is shown at i ms. Those
    whose family knows only a rate scale it by the share of frames that they were given. Without
    metadata, processors assume a rate.
    """
    times = clip.frames.times
    # A single frame has no rate. Any will do, since there is only one step.
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
    return {
        "total_num_frames": len(times) * 1000.0 / rate,
        "fps": 1000.0,
        "frames_indices": [round(1000 * time) for time in times],
        "duration": max(clip.window[1], times[-1]),
    }


# --- the prompt


def render(
    processor: Any, messages: Sequence[Message], shown: Sequence[Shown], generation: bool
) -> str:
    """Return the conversation as text, by the processor's chat template.

    A processor without one is asked for its tokenizer's, which takes text alone, so that
    placeholders are written into the text. Without any template, a conversation is lines of
    ``ROLE: content``, as LLaVA's were.
    """
    of_visual = {id(item.visual): item for item in shown}
    parts = [
        (message.role, [entry for part in message.content for entry in _entries(part, of_visual)])
        for message in messages
    ]
    if getattr(processor, "chat_template", None) is not None:
        chat = [{"role": role, "content": entries} for role, entries in parts]
        return str(
            processor.apply_chat_template(chat, add_generation_prompt=generation, tokenize=False)
        )
    flat = [
        {"role": role, "content": "".join(_as_text(processor, entry) for entry in entries)}
        for role, entries in parts
    ]
    if getattr(processor.tokenizer, "chat_template", None) is not None:
        return str(
            processor.tokenizer.apply_chat_template(
                flat, add_generation_prompt=generation, tokenize=False
            )
        )
    lines = [f"{message['role'].upper()}: {message['content']}" for message in flat]
    return "\n".join([*lines, "ASSISTANT:"] if generation else lines)


def _entries(part: Content, shown: Mapping[int, Shown]) -> list[dict[str, str]]:
    if isinstance(part, str):
        return [{"type": "text", "text": part}]
    item = shown[id(part)]
    return [{"type": item.modality}] * len(item.lengths)


def _as_text(processor: Any, entry: dict[str, str]) -> str:
    if entry["type"] == "text":
        return entry["text"]
    return f"{getattr(processor, entry['type'] + '_token')}\n"


def whole_pictures(component: Any) -> dict[str, Any]:
    """Return arguments with which an image or video processor shows pictures whole.

    They keep it from cutting pictures into tiles and from leaving out tokens, and make a center
    crop a resize to the same size. Only arguments that ``component`` has are returned.
    """
    settings = {name: value for name, value in WHOLE.items() if hasattr(component, name)}
    if getattr(component, "do_center_crop", None):
        crop = component.crop_size
        size = {"height": crop["height"], "width": crop["width"]}
        settings |= {"do_center_crop": False, "do_resize": True, "size": size}
    return settings


def _process(
    host: HostConventions, processor: Any, prompt: str, shown: Sequence[Shown]
) -> dict[str, Any]:
    """Return what the processor makes of the prompt; no frame is dropped or cut into tiles."""
    clips = [item for item in shown if item.modality == "video"]
    pictures = [item for item in shown if item.modality == "image"]
    given: dict[str, Any] = {}
    if clips:
        # Nested: some releases take a list of clips for the frames of one.
        given["videos"] = [[item.pictures.transpose(0, 3, 1, 2) for item in clips]]
        given["videos_kwargs"] = {
            "video_metadata": [metadata(_as_clip(item.visual)) for item in clips],
            "do_sample_frames": False,
            "return_tensors": "pt",
            **host.picture_settings(processor.video_processor),
        }
    if pictures:
        given["images"] = [p.transpose(2, 0, 1) for item in pictures for p in item.pictures]
        given["images_kwargs"] = {
            "return_tensors": "pt",
            **host.picture_settings(processor.image_processor),
        }
    if shown:
        given["return_text_replacement_offsets"] = True
    begin = processor.tokenizer.bos_token
    if begin and prompt.startswith(begin):
        # Else the tokenizer writes a second one.
        given["text_kwargs"] = {"add_special_tokens": False}
    return dict(processor(text=[prompt], **given))


def _as_clip(visual: Visual) -> VideoClip:
    """Return a picture as a clip of one frame."""
    if isinstance(visual, VideoClip):
        return visual
    return VideoClip(Frames(visual.image[None], (visual.window[0],)), visual.window)


def _tensor(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return torch.stack(value) if len({v.shape for v in value}) == 1 else value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value  # a ragged list, or words; no model takes these
