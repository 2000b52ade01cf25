"""Log-probabilities of answers' tokens after a prompt.

:func:`plain_scores` runs prompt and answer in one forward, one row for each answer.
:func:`continued_scores` runs the part of the prompts that holds clips and pictures once, and lets
the rest of each prompt with each of its answers continue from the key-value cache. Attention to
text is causal, so both give the same numbers up to rounding, and the same gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from modulate.errors import HostError
from modulate.hosts.host import Host, base_model
from modulate.hosts.kv_cache import output_cache
from modulate.hosts.text_positions import align_text_positions

Inputs = Mapping[str, Tensor]
"""Model inputs of one prompt, batch 1."""

Normalization = Literal["sum", "mean", "first"]
"""How the log-probabilities of an option's tokens make its score, see the recipe's key."""


@dataclass(frozen=True)
class TokenScores:
    """What a host thinks of each token of some answers, given the prompt and the tokens before it.

    Attributes:
        log_probs: (sample, answer, token) fp32; 0 for padding.
        uniform: (sample, answer, token) fp32, mean log-probability over the vocabulary.
        is_top: (sample, answer, token) bool, whether the token is the most probable one.
        mask: (sample, answer, token) bool, False for padding.
    """

    log_probs: Tensor
    uniform: Tensor
    is_top: Tensor
    mask: Tensor

    def option_scores(self, normalization: Normalization) -> Tensor:
        """Return (sample, answer) scores; −inf where a sample has fewer answers than others."""
        if normalization == "first":
            scores = self.log_probs[:, :, 0]
        else:
            scores = self.log_probs.sum(2)
            if normalization == "mean":
                scores = scores / self.mask.sum(2).clamp_min(1)
        return scores.masked_fill(~self.mask.any(2), float("-inf"))

    def keep(self, rows: Tensor) -> "TokenScores":
        """Return the scores with all answers of the other rows masked; ``rows``: (sample,) bool."""
        kept = rows[:, None, None]
        return TokenScores(
            self.log_probs * kept, self.uniform * kept, self.is_top & kept, self.mask & kept
        )

    @classmethod
    def join(cls, parts: Sequence["TokenScores"], axis: int) -> "TokenScores":
        """Return all samples (axis 0), or all answers to the same samples (axis 1), as one."""
        width = max(part.mask.shape[1] if axis == 0 else 0 for part in parts)
        length = max(part.mask.shape[2] for part in parts)

        def joined(name: str) -> Tensor:
            values = [getattr(part, name) for part in parts]
            return torch.cat(
                [
                    nn.functional.pad(v, (0, length - v.shape[2], 0, max(0, width - v.shape[1])))
                    for v in values
                ],
                axis,
            )

        return cls(*map(joined, cls.__dataclass_fields__))


@torch.inference_mode()
def require_causal(host: Host) -> None:
    """Raise :class:`HostError` for a host whose text attends to the text behind it.

    Such a host (PaliGemma) would see an answer's next tokens while it predicts them. It is tried
    on a few tokens of text.
    """
    visual = set(host.visual_ids.values())
    *ids, last, other = [number for number in range(16) if number not in visual][:5]
    device = next(host.model.parameters()).device
    first = [
        host.model(input_ids=torch.tensor([[*ids, end]], device=device), use_cache=False)
        for end in (last, other)
    ]
    before, after = (output.logits[0, 0].float() for output in first)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3):
        raise HostError(
            f"{type(base_model(host.model)).__name__} lets the tokens of a prompt attend to those"
            " behind them, so that answers of several tokens cannot be scored after it; use"
            " `answer: letter`, `answer: word` or `likelihood: first`."
        )


def visual_end(inputs: Inputs, visual_ids: Sequence[int]) -> int:
    """Return the number of positions up to a prompt's last visual token, at least 1."""
    is_visual = torch.isin(inputs["input_ids"][0].cpu(), torch.tensor(list(visual_ids)))
    places = is_visual.nonzero()[:, 0]
    return int(places[-1]) + 1 if len(places) else 1


def cut(inputs: Inputs, length: int) -> dict[str, Tensor]:
    """Return the inputs of the first ``length`` positions of a prompt, all of them attended to.

    Inputs with a value per position are cut; pixels and their grids are taken whole.
    """
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if value.shape[:2] == shape else value
        for name, value in inputs.items()
        if name != "attention_mask"
    }


def extend(inputs: Inputs, answer: Tensor) -> dict[str, Tensor]:
    """Return the inputs of a prompt with an answer's tokens, which are text, behind it.

    ``answer``: (token,) ids.
    """
    ids = inputs["input_ids"]
    more: dict[str, Tensor] = {
        "input_ids": answer.to(ids)[None],
        "attention_mask": torch.ones_like(answer)[None],
    }
    # Other inputs with a value per position are types of tokens, 0 for text.
    text = torch.zeros_like(answer)[None]
    return {
        name: torch.cat([value, more.get(name, text).to(value)], 1)
        if value.shape == ids.shape
        else value
        for name, value in inputs.items()
    }


def plain_scores(
    model: nn.Module, host: Host, prompts: Sequence[Inputs], answers: Sequence[Tensor], pad_id: int
) -> TokenScores:
    """Score one answer to each prompt, all in one forward.

    Args:
        model: the host, called inside of the caller's conditioning: one row for each prompt.
        host: the host's structure.
        prompts: the prompts.
        answers: (token,) ids of the answer to each.
        pad_id: id that pads prompts on the left.
    """
    device = next(model.parameters()).device
    rows = [extend(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    inputs = {name: value.to(device) for name, value in host.collate(rows, pad_id).items()}
    longest = max(map(len, answers))
    # The answers' tokens, and the position before the longest.
    logits = _last_logits(model(**inputs, logits_to_keep=longest + 1, use_cache=False), longest + 1)
    starts = torch.tensor([longest - len(answer) for answer in answers], device=device)
    return _scores(logits, starts, [[answer] for answer in answers])


def continued_scores(
    model: nn.Module,
    host: Host,
    prompts: Sequence[Inputs],
    answers: Sequence[Sequence[Tensor]],
    prefix: int,
    pad_id: int,
    is_shared: bool = False,
) -> TokenScores:
    """Score several answers to each prompt, which all continue from the prompt's prefix.

    Hosts whose cache cannot be repeated, such as those with linear attention, run one forward for
    each answer instead.

    Args:
        model: the host, called inside of the caller's conditioning: one row for each prompt, or a
            single row if they share the prefix.
        host: the host's structure.
        prompts: the prompts.
        answers: (token,) ids of the answers to each, each at least one token.
        prefix: positions of every prompt that run once. They hold all visual tokens, and leave
            every prompt one token at least.
        pad_id: id that pads prompts where they run in one piece.
        is_shared: whether these positions are the same in all prompts, clips included.
    """
    device = next(model.parameters()).device
    width = max(map(len, answers))
    owners = prompts[:1] if is_shared else prompts

    def begun(length: int) -> dict[str, Tensor]:
        # Without padding: all are of the same length.
        joined = host.collate([cut(prompt, length) for prompt in owners], pad_id)
        return {name: value.to(device) for name, value in joined.items()}

    cache = output_cache(model(**begun(prefix), use_cache=True, logits_to_keep=1))
    if not _can_repeat(cache):
        if not is_shared:
            return _one_by_one(model, host, prompts, answers, pad_id)
        # The single row that is conditioned cannot be several different ones at once.
        pairs = zip(prompts, answers, strict=True)
        single = [_one_by_one(model, host, [prompt], [own], pad_id) for prompt, own in pairs]
        return TokenScores.join(single, axis=0)
    align_text_positions(host, begun(prefix + 1), prefix)
    for filled in cache.values():
        filled.batch_repeat_interleave(width * len(prompts) // len(owners))
    rests = [prompt["input_ids"][0, prefix:].cpu() for prompt in prompts]
    rows = [
        # The last token of an answer predicts nothing. A sample with fewer answers repeats its
        # prompt, so that the cache has as many rows for all.
        torch.cat([rest, *(answer[:-1] for answer in own[i : i + 1])])
        for rest, own in zip(rests, answers, strict=True)
        for i in range(width)
    ]
    # Padded on the right, after everything that counts. Attention is causal, so no mask is needed,
    # and positions continue from the cache.
    ids = pad_sequence(rows, batch_first=True).to(device)
    first = min(map(len, rests)) - 1
    kept = ids.shape[1] - first
    output = model(input_ids=ids, **cache, use_cache=True, logits_to_keep=kept)
    starts = torch.tensor([len(rest) - 1 - first for rest in rests], device=device)
    return _scores(_last_logits(output, kept), starts.repeat_interleave(width), answers)


def mixed_scores(
    model: nn.Module,
    host: Host,
    prompts: Sequence[Inputs],
    answers: Sequence[Sequence[Tensor]],
    pad_id: int,
) -> TokenScores:
    """Score several answers to each of some prompts, of whatever lengths.

    They continue from the prompts' clips if these end at the same position, else each answer takes
    a forward. See :func:`continued_scores` for the arguments.
    """
    ends = {visual_end(prompt, list(host.visual_ids.values())) for prompt in prompts}
    if len(ends) > 1:
        return _one_by_one(model, host, prompts, answers, pad_id)
    return continued_scores(model, host, prompts, answers, ends.pop(), pad_id)


def _can_repeat(cache: Mapping[str, Any]) -> bool:
    """Return whether a forward's output has a cache whose rows can be repeated."""
    layers = [layer for filled in cache.values() for layer in getattr(filled, "layers", ())]
    return bool(cache) and all(hasattr(layer, "batch_repeat_interleave") for layer in layers)


def _one_by_one(
    model: nn.Module,
    host: Host,
    prompts: Sequence[Inputs],
    answers: Sequence[Sequence[Tensor]],
    pad_id: int,
) -> TokenScores:
    """Score the first answers to all prompts in one forward, then the second ones, and so on."""
    parts = []
    for i in range(max(map(len, answers))):
        # A sample with fewer answers repeats its last one, which is masked.
        own = [row[min(i, len(row) - 1)] for row in answers]
        part = plain_scores(model, host, prompts, own, pad_id)
        offered = torch.tensor([i < len(row) for row in answers], device=part.mask.device)
        parts.append(part.keep(offered))
    return TokenScores.join(parts, axis=1)


def _last_logits(output: Any, kept: int) -> Tensor:
    """Return (row, position, vocabulary): the last logits. Some hosts return those of all."""
    logits: Tensor = output.logits
    return logits[:, -kept:]


def _scores(logits: Tensor, starts: Tensor, answers: Sequence[Sequence[Tensor]]) -> TokenScores:
    """Return the scores of answers.

    Args:
        logits: (row, position, vocabulary).
        starts: (row,) position at which the first token of the row's answer is predicted.
        answers: of each sample; every sample has as many rows as the one with the most answers.
    """
    width = max(map(len, answers))
    none = torch.zeros(0, dtype=torch.int64)
    rows = [own[i] if i < len(own) else none for own in answers for i in range(width)]
    ids = pad_sequence(rows, batch_first=True).to(logits.device)
    lengths = torch.tensor(list(map(len, rows)), device=logits.device)
    steps = torch.arange(ids.shape[1], device=logits.device)
    mask = steps[None] < lengths[:, None]
    position = (starts[:, None] + steps).clamp_max(logits.shape[1] - 1)
    row = torch.arange(len(rows), device=logits.device)[:, None]
    predicted = logits[row, position].float().log_softmax(-1)
    log_probs = predicted.gather(2, ids[:, :, None])[:, :, 0].masked_fill(~mask, 0.0)
    uniform = predicted.mean(2).masked_fill(~mask, 0.0)
    is_top = (predicted.argmax(2) == ids) & mask

    def by_sample(values: Any) -> Tensor:
        shaped: Tensor = values.reshape(len(answers), width, -1)
        return shaped

    return TokenScores(*map(by_sample, (log_probs, uniform, is_top, mask)))
