"""Branching caches in one block: copied, repeated, shortened or filled before it; guidance."""

import copy

import torch
from transformers import DynamicCache

from modulate.errors import ConditioningError
from modulate_hosts.contract import reference
from modulate_hosts.contract.generation import generate, one_prompt, rope_positions
from modulate_hosts.contract.suite import cached, close, raises, row

FIRST_TURN = ["video", (7, 8)]


def continuation(case, full, start, vision=()):
    """Arguments, without the cache, of a forward that continues at ``start`` of a ``full`` prompt.

    ``vision``: inputs of the clips from there on.
    """
    types = case.family.types
    inputs = {
        "input_ids": full.inputs["input_ids"][:, start:],
        "attention_mask": full.inputs["attention_mask"],
        **dict(vision),
    }
    if types:
        inputs[types] = full.inputs[types]
    positions = rope_positions(case.host, full)
    if positions is not None:
        inputs["position_ids"] = positions[..., start:]
    return inputs


def vision_of(case, batch):
    return {name: value for name, value in batch.inputs.items() if name not in text_inputs(case)}


def text_inputs(case):
    return ("input_ids", "attention_mask", case.family.types)


def require_bare_agreement(case, call, full_prompts, start):
    """The row applies only if the bare host's cached forwards equal those of full prompts."""
    for got, full in zip(case.bare(call), full_prompts, strict=True):
        whole = case.host(**full.inputs).logits[:, start:]
        if not torch.allclose(got, whole, atol=1e-3):
            case.not_applicable(
                "the bare host's own cached forward differs from one long prompt by"
                f" {float((got - whole).abs().max()):.2g}"
            )


def assert_right(case, got, full_prompts, clips, start):
    """Each branch has the logits of its full prompt with the reference's residuals."""
    for logits, full in zip(got, full_prompts, strict=True):
        call = lambda full=full: case.host(**full.inputs).logits[:, start:]
        close(logits, case.expected(full, clips, call), atol=1e-3)
        assert not torch.allclose(logits, call(), atol=1e-2)


@row("copies of a cache each go on, in one block")
@torch.no_grad()
def test_copies_of_a_cache(case):
    batch = case.write(FIRST_TURN)
    full_prompts = [case.write([*FIRST_TURN, text]) for text in ((20, 21, 22), (23, 24))]
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    turns = [continuation(case, full, start) for full in full_prompts]

    def call():
        cache = cached(case.host(**batch.inputs, use_cache=True))
        return [case.host(**turn, **copy.deepcopy(cache)).logits for turn in turns]

    require_bare_agreement(case, call, full_prompts, start)
    with case.conditioned(clips) as attachment:
        got = call()
    assert_right(case, got, full_prompts, clips, start)
    assert attachment.report().tokens == int(batch.mask.sum())


@row("a cache repeated for several questions, in one block")
@torch.no_grad()
def test_a_repeated_cache(case):
    batch = case.write(FIRST_TURN)
    full_prompts = [case.write([*FIRST_TURN, text]) for text in ((20, 21, 22), (23, 24, 25))]
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    turns = [continuation(case, full, start) for full in full_prompts]
    # M-RoPE positions are (axis, row, position).
    row_axis = lambda name: 1 if name == "position_ids" and turns[0][name].ndim == 3 else 0
    batched = {name: torch.cat([turn[name] for turn in turns], row_axis(name)) for name in turns[0]}

    def call():
        cache = cached(case.host(**batch.inputs, use_cache=True))
        for kv_cache in cache.values():
            kv_cache.batch_repeat_interleave(len(turns))
        return case.host(**batched, **cache).logits.split(1)

    require_bare_agreement(case, call, full_prompts, start)
    with case.conditioned(clips):
        got = call()
    assert_right(case, got, full_prompts, clips, start)


@row(
    "a prefix cached without a conditioning is continued under a conditioning, in as many copies as"
    " asked for"
)
@torch.no_grad()
def test_a_prefix_of_the_bare_host(case):
    prefix = (12, 13, 14)
    full_prompts = [case.write([prefix, "video", text]) for text in ((20, 21), (23, 24, 25))]
    clips = case.clips(full_prompts[0])
    start = 1 + len(prefix)
    turns = [continuation(case, full, start, vision_of(case, full)) for full in full_prompts]
    inputs = {
        name: value
        for name, value in case.write([prefix]).inputs.items()
        if name in text_inputs(case)
    }
    fill = lambda: cached(case.host(**inputs, use_cache=True))
    prefix_cache = fill()
    call = lambda: [case.host(**turn, **copy.deepcopy(prefix_cache)).logits for turn in turns]
    require_bare_agreement(case, call, full_prompts, start)
    # LoRA acts without a conditioning too: a prefix of the adapted host, not of the bare one.
    prefix_cache = case.adapted(fill)
    with case.conditioned(clips):
        got = call()
    assert_right(case, got, full_prompts, clips, start)
    with (
        raises(
            ConditioningError,
            match=rf"The cache held {start} positions before this conditioning began",
        ),
        case.conditioned([[*clips[0], *clips[0]]]),
    ):
        call()


@row("a row leaves the batch once it has its visual tokens")
@torch.no_grad()
def test_a_row_leaves_the_batch(case):
    batch = case.write(FIRST_TURN, FIRST_TURN)
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    full = case.write([*FIRST_TURN, (20, 21)], first=1)
    turn = continuation(case, full, start)

    def call():
        cache = cached(case.host(**batch.inputs, use_cache=True))
        for kv_cache in cache.values():
            kv_cache.batch_select_indices(torch.tensor([1]))
        return [case.host(**turn, **cache).logits]

    require_bare_agreement(case, call, [full], start)
    with case.conditioned(clips):
        got = call()
    assert_right(case, got, [full], [clips[1]], start)


@row("guidance: the branch without the clip gets no residual, with a negative prompt and without")
@torch.no_grad()
def test_guidance(case):
    batch, clips = one_prompt(case)
    width = batch.inputs["input_ids"].shape[1]
    residuals = case.dense(batch, clips)

    def adder(residual):
        def add(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            # Shorter forwards are those of the branch without the clip, or of one token.
            if hidden.shape[1] < width:
                return None
            hidden = hidden + torch.nn.functional.pad(residual, (0, 0, 0, hidden.shape[1] - width))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add

    layers = case.host.get_decoder().layers
    for more in ({}, {"negative_prompt_ids": torch.tensor([[1, 30, 31]])}, {"use_cache": False}):
        call = lambda more=more: generate(case.host, batch, guidance_scale=1.5, **more)
        bare = case.bare(call)
        handles = [
            layers[layer].register_forward_hook(adder(residual), prepend=True)
            for layer, residual in zip(
                case.modulation.config.injection.layers, residuals, strict=True
            )
        ]
        with reference.merged(case.host, case.modulation):
            expected = call()
        for handle in handles:
            handle.remove()
        with case.conditioned(clips):
            got = call()
        assert torch.equal(got.sequences, expected.sequences)
        for score, expected_score in zip(got.scores, expected.scores, strict=True):
            close(score, expected_score, atol=1e-3)
        assert not torch.allclose(bare.scores[0], got.scores[0], atol=1e-2)


def rebuilt(cache):
    """Return a new cache with the same keys and values."""
    (name, kv_cache), *_ = cache.items()
    if not all(isinstance(getattr(layer, "keys", None), torch.Tensor) for layer in kv_cache.layers):
        return cache  # linear attention keeps no keys
    copied = DynamicCache()
    for index, layer in enumerate(kv_cache.layers):
        copied.update(layer.keys.clone(), layer.values.clone(), index)
    return {name: copied}


@row("a second clip on a cache that has its clip, or a copy of it, is refused in the same block")
@torch.no_grad()
def test_a_second_clip_in_the_same_block(case):
    batch = case.write(FIRST_TURN)
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    full = case.write([*FIRST_TURN, (20,), "video", (21,)])
    turn = continuation(case, full, start, vision_of(case, case.write(["video"], first=1)))
    shallow = lambda cache: {name: copy.copy(kv_cache) for name, kv_cache in cache.items()}
    itself = lambda cache: cache
    for copied in (copy.deepcopy, shallow, rebuilt, itself):
        with (
            raises(
                ConditioningError,
                match=(
                    r"Row 0: the inputs hold \d+ visual tokens, .* a clip that comes later has a"
                    r" conditioning of its own"
                ),
            ),
            case.conditioned(clips),
        ):
            cache = cached(case.host(**batch.inputs, use_cache=True))
            case.host(**turn, **copied(cache))
