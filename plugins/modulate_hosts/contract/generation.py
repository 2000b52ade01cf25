"""Generation: position, not call order, decides which tokens get a residual."""

from contextlib import nullcontext

import torch
from transformers.generation.streamers import BaseStreamer

from modulate_hosts.contract import reference
from modulate_hosts.contract.prompts import IMAGE, VIDEO
from modulate_hosts.contract.suite import cached, close, row

STEPS = 4


def one_prompt(case):
    batch = case.write([(12,), "video", (7, 8, 9)])
    return batch, case.clips(batch)


def generate(host, batch, **more):
    settings = {
        "max_new_tokens": STEPS,
        "min_new_tokens": STEPS,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    return host.generate(**batch.inputs, **settings | more)


def new_tokens(out, batch):
    return out.sequences[:, batch.inputs["input_ids"].shape[1] :]


def same_as_expected(case, batch, clips, **more):
    """Assert that a conditioned generation is that of the plain host with reference residuals.

    It must also differ from the bare host's, or the comparison would prove nothing.
    """
    call = lambda: generate(case.host, batch, **more)
    bare = case.bare(call)
    expected = case.expected(batch, clips, call)
    with case.conditioned(clips) as attachment:
        got = call()
    assert torch.equal(got.sequences, expected.sequences)
    for a, b in zip(got.scores, expected.scores, strict=True):
        close(a, b)
    assert not torch.allclose(bare.scores[0], got.scores[0], atol=1e-2)
    return got, attachment.report()


@row("greedy, with the cache and without it, gives what whole forwards give")
def test_greedy_with_and_without_cache(case):
    batch, clips = case.two_prompts()
    with torch.no_grad():
        ids, scores = case.expected(
            batch,
            clips,
            lambda: reference.greedy(case.host, batch.inputs, STEPS, case.family.types),
        )
    for use_cache in (True, False):
        with case.conditioned(clips):
            got = generate(case.host, batch, use_cache=use_cache)
        assert torch.equal(new_tokens(got, batch), ids), use_cache
        for a, b in zip(got.scores, scores, strict=True):
            close(a, b, atol=1e-3)


@row("beams use the residuals of their own row")
def test_beams(case):
    batch, clips = case.two_prompts()
    # An even number of beams: with three, beam 0 of row 1 is input row 3, and an injector that
    # wrongly gives input row i the residuals of row i % 2 would get it right.
    call = lambda b=batch: generate(case.host, b, num_beams=4, num_return_sequences=2)
    bare = call()
    expected = case.expected(batch, clips, call)
    with case.conditioned(clips):
        got = call()
    assert torch.equal(got.sequences, expected.sequences)
    close(got.sequences_scores, expected.sequences_scores)
    with case.conditioned(clips[::-1]):
        assert not torch.allclose(call().sequences_scores, got.sequences_scores, atol=1e-3)
    for index, text in enumerate([(7, 8, 9), (10, 11)]):
        single = case.write(["video", text], first=index)
        if not torch.allclose(
            call(single).sequences_scores,
            bare.sequences_scores[2 * index : 2 * index + 2],
            atol=1e-4,
        ):
            # Padding changes the bare host's own output for this row: MiniCPM-V's linear attention
            # in transformers 5.17.
            continue
        with case.conditioned([clips[index]]):
            alone = call(single)
        assert torch.equal(
            alone.sequences[:, -STEPS:], got.sequences[2 * index : 2 * index + 2, -STEPS:]
        )


@row("sampling with a seed, several sequences for each row")
def test_sampling_and_several_sequences(case):
    batch, clips = case.two_prompts()

    def call():
        torch.manual_seed(5)
        return generate(case.host, batch, do_sample=True, num_return_sequences=3)

    expected = case.expected(batch, clips, call)
    with case.conditioned(clips):
        got = call()
        again = call()
    assert torch.equal(got.sequences, expected.sequences) and torch.equal(
        got.sequences, again.sequences
    )
    for a, b in zip(got.scores, expected.scores, strict=True):
        close(a, b)


@row("prefill in chunks")
def test_chunked_prefill(case):
    batch, clips = one_prompt(case)
    for size in (4, 5, 1):
        _, report = same_as_expected(case, batch, clips, prefill_chunk_size=size)
        assert report.tokens == int(batch.mask.sum())


class Collected(BaseStreamer):
    def __init__(self):
        self.ids = []

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ids.append("end")


@row("streamed output")
def test_streamed_output(case):
    batch, clips = one_prompt(case)
    streamer = Collected()
    with case.conditioned(clips):
        whole = generate(case.host, batch)
    with case.conditioned(clips):
        generate(case.host, batch, streamer=streamer)
    assert streamer.ids == [*whole.sequences[0].tolist(), "end"]


@row("assisted decoding (prompt lookup, and an assistant model)")
def test_assisted_decoding(case):
    batch, clips = one_prompt(case)
    with case.conditioned(clips):
        whole = generate(case.host, batch)
    for assistance in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": case.family.build()}):
        case.bare(lambda assistance=assistance: generate(case.host, batch, **assistance))
        with case.conditioned(clips) as attachment:
            assisted = generate(case.host, batch, **assistance)
        assert torch.equal(assisted.sequences, whole.sequences), assistance
        assert attachment.report().tokens == int(batch.mask.sum())


@row("a placeholder that the host generates is never visual")
def test_a_generated_placeholder_is_text(case):
    batch, clips = case.two_prompts()
    placeholder = VIDEO if VIDEO in batch.inputs["input_ids"] else IMAGE

    def always(ids, scores):
        return torch.full_like(scores, -1e4).index_fill(1, torch.tensor([placeholder]), 0.0)

    call = lambda: generate(case.host, batch, logits_processor=[always], output_logits=True)
    expected = case.expected(batch, clips, call)
    with case.conditioned(clips) as attachment:
        got = call()
    assert (new_tokens(got, batch) == placeholder).all()
    assert attachment.report().tokens == int(batch.mask.sum())
    for a, b in zip(got.logits, expected.logits, strict=True):
        close(a, b)


def chat(case, second_turn):
    """Return the clips of a first turn, and a function that runs a chat of two turns.

    The function takes a context manager for each turn. It returns the whole chat as one prompt, the
    logits of the second turn on the cache of the first, and the number of positions in that cache.
    """
    first_turn = ["video", (7, 8, 9)]
    batch = case.write(first_turn)
    host = case.host

    def dialogue(condition_first, condition_second):
        with condition_first():
            output = generate(host, batch)
        answer = tuple(new_tokens(output, batch)[0].tolist())
        whole = case.write([*first_turn, answer, *second_turn])
        cache = cached(output)
        past = next(iter(cache.values())).get_seq_length()
        inputs = second_turn_inputs(case, whole, second_turn, past)
        with condition_second():
            logits = host(**inputs, **cache).logits
        return whole, logits, past

    return case.clips(batch), dialogue


def second_turn_inputs(case, whole, second_turn, past):
    """Return the inputs, without the cache, of a second turn that begins at position ``past``."""
    types = case.family.types
    # Vision inputs of the second turn alone: those of the first are in the cache.
    alone = case.write([(), *second_turn], first=1)
    inputs = {}
    if alone.kinds[0]:
        text_inputs = ("input_ids", "attention_mask", types)
        inputs = {name: value for name, value in alone.inputs.items() if name not in text_inputs}
    inputs["input_ids"] = whole.inputs["input_ids"][:, past:]
    inputs["attention_mask"] = whole.inputs["attention_mask"]
    if types:
        inputs[types] = whole.inputs[types]
    positions = rope_positions(case.host, whole)
    if positions is not None:
        inputs["position_ids"] = positions[..., past:]
    return inputs


def rope_positions(host, batch):
    """Return the position ids that the host itself computes for a whole prompt.

    Several families cannot place a clip after a cache unless they are given its positions.
    """
    seen = []
    decoder = host.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    host(**batch.inputs)
    handle.remove()
    return seen[0]


def agrees_with_the_whole_chat(case, second_turn):
    clips, dialogue = chat(case, second_turn)
    prompt, bare, past = case.bare(lambda: dialogue(nullcontext, nullcontext))
    whole = case.host(**prompt.inputs).logits[:, past:]
    if not torch.allclose(bare, whole, atol=1e-3):
        case.not_applicable(
            "the bare host's own cached second turn differs from one long prompt by"
            f" {float((bare - whole).abs().max()):.2g}"
        )
    with case.modulation.attached(case.host) as attachment:
        kinds = [part for part in second_turn if isinstance(part, str)]
        later = [case.clip(kind, seed) for seed, kind in enumerate(kinds, start=1)]
        condition_later = (lambda: attachment.condition([later])) if later else nullcontext
        prompt, logits, past = dialogue(lambda: attachment.condition([clips[0]]), condition_later)
        call = lambda: case.host(**prompt.inputs).logits[:, past:]
        with attachment.condition([[*clips[0], *later]]):
            whole = call()
    close(logits, whole, atol=1e-3)
    close(logits, case.expected(prompt, [[*clips[0], *later]], call), atol=1e-3)
    assert not torch.allclose(logits, call(), atol=1e-2)


@row("a second chat turn of text on the cache of the first")
def test_a_second_turn_of_text(case):
    agrees_with_the_whole_chat(case, [(20, 21, 22)])


@row("a second chat turn with a clip of its own on the cache of the first")
def test_a_second_turn_with_a_clip(case):
    agrees_with_the_whole_chat(case, [(20,), "video", (21, 22)])


@row("position, not call order: conditioning again, forward twice, forward and then generate")
def test_position_not_call_order(case):
    batch, clips = one_prompt(case)
    others = case.clips(batch, first=3)
    other = case.write(["image", (9,), "video"], first=4)
    call = lambda: case.host(**batch.inputs).logits
    expected = case.expected(batch, clips, call)
    expected_others = case.expected(batch, others, call)
    moved = case.write([(12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22), "video", (7,)])
    expected_moved = case.expected(moved, clips, lambda: case.host(**moved.inputs).logits)
    with case.modulation.attached(case.host) as attachment:
        with attachment.condition(clips):
            close(call(), expected)
            close(call(), expected)
            after_forward = generate(case.host, batch)
            close(case.host(**moved.inputs).logits, expected_moved)
        with attachment.condition(case.clips(other)):
            case.host(**other.inputs)
        close(call(), case.bare(call))
        with attachment.condition(others):
            close(call(), expected_others)
        with attachment.condition(clips):
            alone = generate(case.host, batch)
    assert torch.equal(alone.sequences, after_forward.sequences)
