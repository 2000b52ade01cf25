"""Batches: which samples share a forward, their inputs padded to one length, option logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modulate.hosts.host import Host
from modulate.hosts.vision_tower_cache import ContentKeys
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.sample import Sample

LAST_LOGITS: dict[str, Any] = {"logits_to_keep": 1, "use_cache": False}
"""Arguments of every scoring forward: the last position's logits only, and no key-value cache."""

NO_OPTION = -1
"""Padding of :attr:`Batch.options`, where a sample offers fewer options than others; in
:attr:`Batch.answers`, an answer that is not known."""


def clip_key(sample: Sample) -> tuple[Any, ...]:
    """Return a key that is equal for samples that show the same clips with the same signals."""
    return tuple(
        (clip.file, clip.window, tuple(sorted(clip.signals.items()))) for clip in sample.clips
    )


def batches_in_order(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return ``samples`` in their order, in batches of at most ``size``."""
    return [list(samples[start : start + size]) for start in range(0, len(samples), size)]


def batches_by_clip(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return ``samples`` in batches of at most ``size``, each of the same clips.

    Clips, and the samples of a clip, stay in order of appearance.
    """
    clips: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        clips.setdefault(clip_key(sample), []).append(sample)
    return [batch for clip in clips.values() for batch in batches_in_order(clip, size)]


def evaluation_batches(
    samples: Sequence[Sample], size: int, batch_by: Literal["any", "clip"]
) -> list[list[Sample]]:
    """Return ``samples`` in the batches in which an evaluation scores them.

    ``batch_by``: "any" keeps their order; "clip" batches the questions on one clip. The samples
    that are alone on their clip come last, in order.
    """
    if batch_by == "any":
        return batches_in_order(samples, size)
    batches = batches_by_clip(samples, size)
    shared = [batch for batch in batches if len(batch) > 1]
    single = [batch[0] for batch in batches if len(batch) == 1]
    return shared + batches_in_order(single, size)


@dataclass(frozen=True)
class Batch:
    """Several prepared samples as one forward.

    Attributes:
        prepared: the samples, in the order of the rows.
        inputs: model inputs on the host's device, padded on the left.
        options: (sample, option) first token ids, padded with :data:`NO_OPTION`.
        answers: (sample,) index of the right option; :data:`NO_OPTION` if it is not known.
    """

    prepared: list[PreparedSample]
    inputs: dict[str, Tensor]
    options: Tensor
    answers: Tensor

    def option_logits(self, output: Any) -> Tensor:
        """Return (sample, option) fp32 logits of a model ``output``; −inf for padding."""
        last = output.logits[:, -1].float()
        logits: Tensor = last.gather(1, self.options.clamp_min(0))
        return logits.masked_fill(self.options == NO_OPTION, float("-inf"))


def padding_id(tokenizer: Any) -> int:
    """Return the id that pads prompts."""
    # Some tokenizers have no padding token. Any id does: the attention mask hides it.
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


class Batcher:
    """Joins prepared samples into batches for ``host``, on ``device``.

    ``content_keys``: is told which samples' patches a batch holds, so that caches of the host's
    computation need not hash them again.
    """

    def __init__(
        self, host: Host, processor: Any, device: torch.device, content_keys: ContentKeys
    ) -> None:
        self._host = host
        self._processor = processor
        self._device = device
        self._content_keys = content_keys

    @property
    def pad_id(self) -> int:
        """Id that pads prompts on the left."""
        return padding_id(self._processor.tokenizer)

    def collate(self, prepared: Sequence[PreparedSample], with_inputs: bool = True) -> Batch:
        """Return ``prepared`` as one batch.

        ``with_inputs``: False leaves the model inputs out, for a forward that makes its own
        (:mod:`modulate.inference.shared_prefix`).
        """
        rows = [sample.inputs for sample in prepared]
        inputs = self._pad_inputs(rows) if with_inputs else {}
        self._content_keys.recognize(inputs, rows)
        known = [sample.sample.answer for sample in prepared]
        answers = torch.tensor([NO_OPTION if answer is None else answer for answer in known])
        options = _pad_options([sample.options for sample in prepared])
        return Batch(list(prepared), inputs, options.to(self._device), answers.to(self._device))

    def _pad_inputs(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        joined = self._host.collate(rows, self.pad_id)
        return {name: value.to(self._device) for name, value in joined.items()}


def _pad_options(rows: Sequence[Tensor]) -> Tensor:
    width = max(map(len, rows))
    padded = [nn.functional.pad(ids, (0, width - len(ids)), value=NO_OPTION) for ids in rows]
    return torch.stack(padded)
