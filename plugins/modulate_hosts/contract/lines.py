"""Several lines of forwards in one block: copied, repeated and shortened caches, prefixes of the
bare host, guidance.
"""

import copy

import torch
from transformers import DynamicCache

from modulate.errors import ConditioningError
from modulate_hosts.contract import reference
from modulate_hosts.contract.generation import generate, one_prompt, rope_positions
from modulate_hosts.contract.suite import cached, close, raises, row

FIRST = ["video", (7, 8)]


def going_on(case, long, start, vision=()):
    """Arguments, but for the cache, of a forward that goes on with ``long`` from position
    ``start``; ``vision``: pictures that belong to it.
    """
    types = case.family.types
    inputs = {
        "input_ids": long.inputs["input_ids"][:, start:],
        "attention_mask": long.inputs["attention_mask"],
        **dict(vision),
    }
    if types:
        inputs[types] = long.inputs[types]
    positions = rope_positions(case.host, long)
    if positions is not None:
        inputs["position_ids"] = positions[..., start:]
    return inputs


def vision_of(case, batch):
    return {
        k: v
        for k, v in batch.inputs.items()
        if k not in ("input_ids", "attention_mask", case.family.types)
    }


def agrees(case, call, longs, start):
    """See that the bare host's own forwards, one after the other, give what whole ones give; else
    there is nothing to compare with.
    """
    for got, long in zip(case.bare(call), longs, strict=True):
        whole = case.host(**long.inputs).logits[:, start:]
        if not torch.allclose(got, whole, atol=1e-3):
            case.not_applicable(
                "the bare host's own cached forward differs from one long prompt by"
                f" {float((got - whole).abs().max()):.2g}"
            )


def right(case, got, longs, clips, start):
    for logits, long in zip(got, longs, strict=True):
        expected = case.expected(long, clips, lambda long=long: case.host(**long.inputs)).logits[
            :, start:
        ]
        close(logits, expected, atol=1e-3)
        assert not torch.allclose(logits, case.host(**long.inputs).logits[:, start:], atol=1e-2)


@row("copies of a cache each go on, in one block")
@torch.no_grad()
def test_copies_of_a_cache(case):
    batch = case.write(FIRST)
    longs = [case.write([*FIRST, text]) for text in ((20, 21, 22), (23, 24))]
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    turns = [going_on(case, long, start) for long in longs]

    def call():
        cache = cached(case.host(**batch.inputs, use_cache=True))
        return [case.host(**turn, **copy.deepcopy(cache)).logits for turn in turns]

    agrees(case, call, longs, start)
    with case.conditioned(clips) as attachment:
        got = call()
    right(case, got, longs, clips, start)
    assert attachment.report().tokens == int(batch.mask.sum())


@row("a cache repeated for several questions, in one block")
@torch.no_grad()
def test_a_repeated_cache(case):
    batch = case.write(FIRST)
    longs = [case.write([*FIRST, text]) for text in ((20, 21, 22), (23, 24, 25))]
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    turns = [going_on(case, long, start) for long in longs]
    together = {
        k: torch.cat(
            [turn[k] for turn in turns], 1 if k == "position_ids" and turns[0][k].ndim == 3 else 0
        )
        for k in turns[0]
    }

    def call():
        cache = cached(case.host(**batch.inputs, use_cache=True))
        for held in cache.values():
            held.batch_repeat_interleave(len(turns))
        return case.host(**together, **cache).logits.split(1)

    agrees(case, call, longs, start)
    with case.conditioned(clips):
        got = call()
    right(case, got, longs, clips, start)


@row(
    "a prefix cached without a conditioning is continued under a conditioning, in as many copies as"
    " asked for"
)
@torch.no_grad()
def test_a_prefix_of_the_bare_host(case):
    prefix = (12, 13, 14)
    longs = [case.write([prefix, "video", text]) for text in ((20, 21), (23, 24, 25))]
    clips = case.clips(longs[0])
    start = 1 + len(prefix)
    turns = [going_on(case, long, start, vision_of(case, long)) for long in longs]
    inputs = {
        k: v
        for k, v in case.write([prefix]).inputs.items()
        if k in ("input_ids", "attention_mask", case.family.types)
    }
    fill = lambda: cached(case.host(**inputs, use_cache=True))
    before = fill()
    call = lambda: [case.host(**turn, **copy.deepcopy(before)).logits for turn in turns]
    agrees(case, call, longs, start)
    before = case.adapted(fill)
    with case.conditioned(clips):
        got = call()
    right(case, got, longs, clips, start)
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
    batch = case.write(FIRST, FIRST)
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    long = case.write([*FIRST, (20, 21)], first=1)
    turn = going_on(case, long, start)

    def call():
        cache = cached(case.host(**batch.inputs, use_cache=True))
        for held in cache.values():
            held.batch_select_indices(torch.tensor([1]))
        return [case.host(**turn, **cache).logits]

    agrees(case, call, [long], start)
    with case.conditioned(clips):
        got = call()
    right(case, got, [long], [clips[1]], start)


@row("guidance: the branch without the clip gets no residual, with a negative prompt and without")
@torch.no_grad()
def test_guidance(case):
    batch, clips = one_prompt(case)
    width = batch.inputs["input_ids"].shape[1]
    values = case.dense(batch, clips)

    def adder(value):
        def add(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.shape[1] < width:
                return None
            hidden = hidden + torch.nn.functional.pad(value, (0, 0, 0, hidden.shape[1] - width))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add

    layers = case.host.get_decoder().layers
    for more in ({}, {"negative_prompt_ids": torch.tensor([[1, 30, 31]])}, {"use_cache": False}):
        call = lambda more=more: generate(case.host, batch, guidance_scale=1.5, **more)
        bare = case.bare(call)
        handles = [
            layers[i].register_forward_hook(adder(v), prepend=True)
            for i, v in zip(case.modulation.config.injection.layers, values, strict=True)
        ]
        with reference.merged(case.host, case.modulation):
            expected = call()
        for handle in handles:
            handle.remove()
        with case.conditioned(clips):
            got = call()
        assert torch.equal(got.sequences, expected.sequences)
        for a, b in zip(got.scores, expected.scores, strict=True):
            close(a, b, atol=1e-3)
        assert not torch.allclose(bare.scores[0], got.scores[0], atol=1e-2)


def rebuilt(cache):
    """A cache of the same keys and values, made by hand."""
    (name, held), *_ = cache.items()
    if not all(isinstance(getattr(layer, "keys", None), torch.Tensor) for layer in held.layers):
        return cache  # linear attention keeps no keys
    made = DynamicCache()
    for i, layer in enumerate(held.layers):
        made.update(layer.keys.clone(), layer.values.clone(), i)
    return {name: made}


@row("a second clip on a cache that has its clip, or a copy of it, is refused in the same block")
@torch.no_grad()
def test_a_second_clip_in_the_same_block(case):
    batch = case.write(FIRST)
    clips = case.clips(batch)
    start = batch.inputs["input_ids"].shape[1]
    long = case.write([*FIRST, (20,), "video", (21,)])
    turn = going_on(case, long, start, vision_of(case, case.write(["video"], first=1)))
    for again in (
        copy.deepcopy,
        lambda cache: {k: copy.copy(v) for k, v in cache.items()},
        rebuilt,
        lambda cache: cache,
    ):
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
            case.host(**turn, **again(cache))


# --- other tokens than the visual ones
