"""Forwards of embeddings instead of token ids, and of vision encoded beforehand."""

import inspect

import torch

from modulate.errors import ConditioningError, HostError
from modulate_hosts.contract.suite import close, raises, row

STEPS = 4


def decoder_inputs(host, batch):
    """Return the embeddings with vision merged in, and positions if any, of the bare host."""
    seen = []
    handle = host.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    host(**batch.inputs)
    handle.remove()
    wanted = ("inputs_embeds", "position_ids")
    return {name: value for name, value in seen[0].items() if name in wanted and value is not None}


def embedded(case, batch):
    """Return the arguments of a forward of merged embeddings."""
    inputs = decoder_inputs(case.host, batch)
    inputs["attention_mask"] = batch.inputs["attention_mask"]
    # These families compute their attention masks from token types.
    if case.family.types == "token_type_ids":
        inputs["token_type_ids"] = batch.inputs["token_type_ids"]
    return inputs


def bare_agrees(case, batch, inputs):
    """Return whether the bare host gives the same from embeddings as from ids.

    Qwen3-VL does not: what its vision tower adds to further layers is not in the embeddings.
    """
    return torch.allclose(
        case.bare(lambda: case.host(**inputs)).logits, case.host(**batch.inputs).logits, atol=1e-4
    )


@row("inputs_embeds without ids: right with explicit positions, refused without them")
def test_inputs_embeds_with_positions(case):
    batch, clips = case.two_prompts()
    inputs = embedded(case, batch)
    call = lambda: case.host(**inputs).logits
    agrees = bare_agrees(case, batch, inputs)
    expected = case.expected(batch, clips, call)
    with case.modulation.attached(case.host) as attachment:
        with (
            raises(HostError, match="inputs_embeds without input_ids"),
            attachment.condition(clips),
        ):
            call()
        with attachment.condition(clips, positions=batch.mask):
            got = call()
        close(got, expected)
        with attachment.condition(clips):
            by_ids = case.host(**batch.inputs).logits
        with attachment.condition(clips, positions=batch.mask):
            # Given positions take precedence over ids.
            close(case.host(**batch.inputs).logits, by_ids)
    if agrees:
        close(got, by_ids)
    assert not torch.allclose(got, call(), atol=1e-2)


@row("generating from inputs_embeds with explicit positions, with beams")
def test_generating_from_inputs_embeds(case):
    batch, clips = case.two_prompts()
    inputs = embedded(case, batch)
    inputs.pop("position_ids", None)
    call = lambda: case.host.generate(
        **inputs,
        max_new_tokens=STEPS,
        num_beams=2,
        return_dict_in_generate=True,
        output_scores=True,
    )
    bare = case.bare(call)
    expected = case.expected(batch, clips, call)
    with case.conditioned(clips, positions=batch.mask):
        got = call()
    assert torch.equal(got.sequences, expected.sequences)
    assert not torch.allclose(got.sequences_scores, bare.sequences_scores, atol=1e-3)
    close(got.sequences_scores, expected.sequences_scores)


@row("vision that was encoded before")
def test_pre_encoded_vision(case):
    batch, clips = case.two_prompts()
    host = case.host
    if "mm_encoder_outputs" not in inspect.signature(host.forward).parameters:
        case.not_applicable("this transformers takes no mm_encoder_outputs")
    kind = "video" if "pixel_values_videos" in batch.inputs else "image"
    encode = getattr(host.base_model, f"get_{kind}_features")
    parameters = inspect.signature(encode).parameters
    vision = {name: value for name, value in batch.inputs.items() if name in parameters}
    # The host also reads the grid itself, for positions.
    others = {
        name: value
        for name, value in batch.inputs.items()
        if name not in vision or name.endswith("grid_thw")
    }
    encoded = lambda: {kind: encode(**vision, return_dict=True)}
    call = lambda: host(**others, mm_encoder_outputs=encoded()).logits
    case.bare(call)
    with case.conditioned(clips):
        got = call()
    close(got, case.expected(batch, clips, lambda: host(**batch.inputs).logits))


@row("a conditioning that does not fit the inputs is an error that names the row and both sizes")
def test_a_conditioning_that_does_not_fit(case):
    batch, clips = case.two_prompts()
    wrong = case.clip("image", 5)
    tokens = case.family.grids["video"].tokens
    call = lambda: case.host(**batch.inputs)
    with case.modulation.attached(case.host) as attachment:

        def refused(rows, match, **more):
            with raises(ConditioningError, match=match), attachment.condition(rows, **more):
                call()

        refused(
            [clips[0], [*clips[1], *clips[1]]],
            r"Row 1: the inputs hold \d+ visual tokens, the conditioning \d+",
        )
        refused(
            [clips[0], [wrong]], r"Row 1: the inputs hold \d+ visual tokens, the conditioning \d+"
        )
        refused([clips[0]] * 3, "has 3 rows, the forward a batch of 2")
        refused([clips[0]], "has 1 row, the forward a batch of 2 that differ in their token ids")
        refused(
            clips,
            f"Row 1: the positions name 0 visual tokens, the conditioning {tokens}",
            positions=batch.mask & torch.tensor([[True], [False]]),
        )
        refused(
            clips,
            r"`positions` must be \(row, position\) for 2 rows, got shape \(1,",
            positions=batch.mask[:1],
        )
        with (
            raises(HostError, match=r"needs features of shape"),
            attachment.condition([[type(wrong)(wrong.signal, wrong.grid, None)], clips[1]]),
        ):
            call()
        with (
            raises(ConditioningError, match="No forward reached the host"),
            attachment.condition(clips),
        ):
            pass
        with attachment.condition(clips):
            got = call().logits
    close(got, case.expected(batch, clips, call).logits)
