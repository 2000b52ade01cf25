"""One forward: residuals land on the grids' tokens and nowhere else."""

import torch

from modulate import ClipInput
from modulate_hosts.contract import reference
from modulate_hosts.contract.suite import close, fresh, row


@row("a fresh modulation leaves the logits bit for bit as they are")
def test_zero_effect_when_fresh(case):
    batch, clips = case.two_prompts()
    before = case.host(**batch.inputs).logits
    with fresh(case.host, lora=True).attached(case.host) as attachment, attachment.condition(clips):
        during = case.host(**batch.inputs).logits
    assert torch.equal(before, during) and torch.equal(before, case.host(**batch.inputs).logits)


@row("at each injected layer only the grids' tokens differ, by exactly their residual")
def test_only_visual_tokens_differ_and_by_the_residual(case):
    batch, clips = case.two_prompts()
    call = lambda: case.host(**batch.inputs)
    first = case.modulation.config.injection.layers[0]
    before = case.adapted(lambda: reference.states_after(case.host, first, call))
    with case.conditioned(clips) as attachment:
        after = reference.states_after(case.host, first, call)
        logits = call().logits
    difference = after - before
    expected = case.dense(batch, clips)[0]
    assert not difference[~batch.mask].any()
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=0)
    close(logits, case.expected(batch, clips, call).logits)
    assert attachment.report().tokens == 2 * int(batch.mask.sum())


def assert_padding_changes_nothing(case, side):
    rows = [["video", (7, 8, 9, 12, 13)], [(14, 15), "video", (10,)], ["image", (16, 17)]]
    batch = case.write(*rows, side=side)
    clips = case.clips(batch)
    bare = case.host(**batch.inputs).logits
    with case.conditioned(clips):
        batched = case.host(**batch.inputs).logits
    close(batched, case.expected(batch, clips, lambda: case.host(**batch.inputs)).logits)
    assert not torch.allclose(batched, bare, atol=1e-2)
    for index, kinds in enumerate(batch.kinds):
        single = case.write(rows[index], first=sum(map(len, batch.kinds[:index])))
        assert len(single.kinds[0]) == len(kinds)
        with case.conditioned([clips[index]]):
            single_logits = case.host(**single.inputs).logits
        close(single_logits[0], batched[index, batch.inputs["attention_mask"][index].bool()])


@row("a batch padded on the left gives what each row alone gives")
def test_rows_of_different_length_padded_left(case):
    assert_padding_changes_nothing(case, "left")


@row("a batch padded on the right gives what each row alone gives")
def test_rows_of_different_length_padded_right(case):
    assert_padding_changes_nothing(case, "right")


def state_difference(case, *rows, blank=()):
    """Return what a conditioning changes after the first injected layer, and the batch.

    It must be the reference's residual. ``blank``: (row, clip) of clips without a signal.
    """
    batch = case.write(*rows)
    clips = case.clips(batch)
    for number, index in blank:
        clips[number][index] = ClipInput(None, clips[number][index].grid)
    call = lambda: case.host(**batch.inputs)
    layer = case.modulation.config.injection.layers[0]
    before = case.adapted(lambda: reference.states_after(case.host, layer, call))
    with case.conditioned(clips):
        after = reference.states_after(case.host, layer, call)
    torch.testing.assert_close(after - before, case.dense(batch, clips)[0], atol=1e-5, rtol=0)
    return after - before, batch


@row("several videos in a row")
def test_several_videos(case):
    state_difference(case, ["video", (7,), "video", (8, 9)], ["video", "video", "video", (10,)])


@row("several images in a row")
def test_several_images(case):
    state_difference(case, ["image", (7,), "image", (8, 9)], ["image", "image", "image", (10,)])


@row("image and video in one row")
def test_image_and_video(case):
    state_difference(case, ["image", (7,), "video", "image", (8, 9)], ["video", "image", (10,)])


@row("rows and clips without a signal get no residual")
def test_rows_and_clips_without_a_signal(case):
    difference, batch = state_difference(
        case, ["video", (7,), "video"], ["video", (8, 9)], blank={(0, 0), (1, 0)}
    )
    assert not difference[1].any()
    assert not difference[0, batch.positions[0][0]].any()
    assert difference[0, batch.positions[0][1]].any()
    batch = case.write(["video", (7,)], ["video", "video", (8,)], [(9, 10)])
    clips = case.clips(batch)
    call = lambda: case.host(**batch.inputs)
    before = case.adapted(lambda: reference.states_after(case.host, 1, call))
    with case.conditioned([clips[0], [], []]):
        after = reference.states_after(case.host, 1, call)
    assert not (after - before)[1:].any() and (after - before)[0].any()


@row("hidden states and attentions that the host is asked for are those of the modulated forward")
def test_recorded_outputs(case):
    host = case.family.build()
    host.set_attn_implementation("eager")
    batch = case.write(["video", (7, 8)])
    clips = case.clips(batch)
    modulation = case.strong(host)
    values = case.dense(batch, clips, modulation)
    call = lambda: host(**batch.inputs, output_hidden_states=True, output_attentions=True)
    plain = call()
    with reference.written(host, modulation, values):
        expected = call()
    with modulation.attached(host) as attachment, attachment.condition(clips):
        got = call()
    # Layers with linear attention report None.
    recorded = lambda output: [
        *output.hidden_states,
        *(attention for attention in output.attentions if attention is not None),
    ]
    for value, expected_value in zip(recorded(got), recorded(expected), strict=True):
        close(value, expected_value, atol=1e-5)
    assert len(got.hidden_states) == len(plain.hidden_states)
    assert not torch.allclose(got.hidden_states[2], plain.hidden_states[2])


@row("attention by sdpa and eager")
def test_attention_implementations(case):
    for attention in ("sdpa", "eager"):
        host = case.family.build()
        case.bare(lambda host=host, attention=attention: host.set_attn_implementation(attention))
        compare(case, host)


def compare(case, host, atol=1e-4, tolerance=None):
    """Assert that the states of the first injected layer, and the logits, are the reference's."""
    batch = case.write(["video", (7, 8)], ["video", (9,)])
    for name, value in batch.inputs.items():
        pixels = value.is_floating_point() and name != "second_per_grid_ts"
        batch.inputs[name] = value.to(host.device, host.dtype if pixels else value.dtype)
    modulation = case.strong(host)
    clips = case.clips(batch)
    values = [value.to(host.device) for value in case.dense(batch, clips, modulation)]
    call = lambda: host(**batch.inputs)
    with reference.written(host, modulation, values):
        expected_states = reference.states_after(host, 1, call)
        expected = call().logits
    with modulation.attached(host) as attachment, attachment.condition(clips):
        states = reference.states_after(host, 1, call)
        logits = call().logits
    torch.testing.assert_close(states, expected_states, **(tolerance or dict(atol=1e-5, rtol=1e-5)))
    torch.testing.assert_close(logits, expected, **(tolerance or dict(atol=atol, rtol=1e-4)))


@row("a host in bfloat16")
def test_bfloat16(case):
    compare(case, case.family.build().to(torch.bfloat16), tolerance=dict(atol=2e-2, rtol=2e-2))


@row("a host in float16")
def test_float16(case):
    compare(case, case.family.build().to(torch.float16), tolerance=dict(atol=4e-3, rtol=4e-3))


@row("flash attention")
def test_flash_attention(case):
    if not torch.cuda.is_available():
        case.not_applicable("flash attention needs a CUDA device; this table was made without one")
    host = case.family.build().to("cuda", torch.bfloat16)
    case.bare(lambda: host.set_attn_implementation("flash_attention_2"))
    compare(case, host, tolerance=dict(atol=2e-2, rtol=2e-2))
