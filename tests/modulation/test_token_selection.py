"""Residuals on other tokens: text, the last token, a caller's mask, visual tokens of some steps."""

import pytest
import torch
from pydantic import ValidationError

from modulate import ClipInput, Modulation
from modulate.config.injection import Tokens
from modulate.errors import ConditioningError
from modulate.modulation.token_positions import ForwardTokens
from modulate.modulation.token_selection import TokenSelection
from tests.tiny import CLIP, GRID, VIDEO, features, inputs, scanpath, selecting

OTHER = ClipInput(scanpath(0.9, 0.1), GRID, features(seed=5))


def written(host, modulation, batch, rows, **hints):
    """Which positions changed after layer 1, by how much, and the report."""
    before = host(**batch, output_hidden_states=True).hidden_states[2]
    with modulation.attached(host) as attachment, attachment.condition(rows, **hints):
        after = host(**batch, output_hidden_states=True).hidden_states[2]
    return (after - before).abs().amax(-1) > 0, after - before, attachment.report()


def mean(modulation, clips):
    return modulation.residual(0, modulation.latents(clips).layers[0].mean(0, keepdim=True))[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_all_that_is_neither_visual_nor_padding(host, side):
    modulation = selecting(host, kind="text")
    batch = inputs(side=side)
    changed, delta, report = written(host, modulation, batch, [[CLIP], [OTHER]])
    assert torch.equal(changed, (batch["input_ids"] != VIDEO) & batch["attention_mask"].bool())
    assert report.tokens == int(changed.sum())
    for row, clip in enumerate([CLIP, OTHER]):
        torch.testing.assert_close(
            delta[row, changed[row]],
            mean(modulation, [clip]).expand(int(changed[row].sum()), -1),
            atol=1e-5,
            rtol=0,
        )


def test_the_mean_is_over_all_clips_of_the_row_and_rows_without_a_signal_stay(host):
    modulation = selecting(host, kind="text")
    batch = inputs(videos=2)
    changed, delta, _ = written(host, modulation, batch, [[CLIP, OTHER], []])
    assert not changed[1].any()
    torch.testing.assert_close(
        delta[0, changed[0]][0], mean(modulation, [CLIP, OTHER]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_is_the_last_token_that_is_not_padding(host, side):
    modulation = selecting(host, kind="last")
    batch = inputs(side=side)
    changed, _, _ = written(host, modulation, batch, [[CLIP], [OTHER]])
    last = batch["attention_mask"].cumsum(1).argmax(1)
    assert torch.equal(changed.nonzero(), torch.stack([torch.arange(2), last], 1))


def test_exactly_the_positions_of_a_mask_are_written(host):
    modulation = selecting(host, kind="mask")
    batch = inputs()
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    mask[0, 3], mask[1, -1] = True, True
    changed, _, _ = written(host, modulation, batch, [[CLIP], [OTHER]], mask=mask)
    assert torch.equal(changed, mask)


def test_positions_beyond_a_mask_are_not_chosen():
    chosen = TokenSelection(Tokens(kind="mask"), None, torch.tensor([[False, True]]))
    for past, expected in (
        (0, [False, True, False, False]),
        (1, [True, False, False, False]),
        (2, [False] * 4),
    ):
        tokens = ForwardTokens(
            visual=torch.zeros(1, 4, dtype=torch.bool),
            has_placeholders=False,
            past_length=past,
            trusted=False,
            ids=None,
        )
        assert chosen.choose(tokens).tolist() == [expected]


@pytest.mark.parametrize("steps", [(0,), (-1,), (0, 1)])
def test_steps_choose_among_the_visual_tokens(host, steps):
    modulation = selecting(host, steps=steps)
    batch = inputs()
    changed, delta, _ = written(host, modulation, batch, [[CLIP], [OTHER]])
    visual = (batch["input_ids"] == VIDEO).nonzero().view(2, GRID.steps, GRID.tokens_per_step, 2)
    chosen = torch.zeros_like(changed)
    chosen[visual[:, list(steps)][..., 0], visual[:, list(steps)][..., 1]] = True
    assert torch.equal(changed, chosen)
    expected = (
        modulation.residual(0, modulation.latents([CLIP]).layers[0])
        .view(GRID.steps, GRID.tokens_per_step, -1)[list(steps)]
        .flatten(0, 1)
    )
    torch.testing.assert_close(delta[0, changed[0]], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "hint"), [("text", None), ("last", "prompt"), ("mask", "mask")])
def test_generation_is_the_same_with_and_without_a_cache_and_each_beam_reads_its_row(
    host, kind, hint
):
    modulation = selecting(host, kind=kind)
    batch = inputs()
    text = batch["attention_mask"].bool() & (batch["input_ids"] != VIDEO)
    hints = {} if hint is None else {hint: text}
    settings = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP], [OTHER]], **hints):
            cached = host.generate(**batch, **settings)
        with attachment.condition([[CLIP], [OTHER]], **hints):
            uncached = host.generate(**batch, use_cache=False, **settings)
        with attachment.condition([[CLIP], [OTHER]], **hints):
            beams = host.generate(**batch, num_beams=2, **settings)
        for row, clip in enumerate([CLIP, OTHER]):
            alone = {name: value[row : row + 1] for name, value in batch.items()} | {
                "pixel_values_videos": batch["pixel_values_videos"].chunk(2)[row]
            }
            with attachment.condition(
                [[clip]], **{name: value[row : row + 1] for name, value in hints.items()}
            ):
                assert torch.equal(host.generate(**alone, num_beams=2, **settings)[0], beams[row])
    assert torch.equal(cached, uncached) and not torch.equal(
        cached, host.generate(**batch, **settings)
    )


def test_a_prompt_in_chunks_gives_the_same_as_in_one_once_its_end_is_known(host):
    modulation = selecting(host, kind="last")
    batch = inputs(texts=((7, 8, 9),))
    prompt = batch["attention_mask"].bool()
    settings = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    try:
        host.generate(**batch, prefill_chunk_size=4, **settings)
    except RuntimeError as error:  # transformers 5.17
        pytest.skip(f"the bare host refuses: {error}")
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP]], prompt=prompt):
            whole = host.generate(**batch, **settings)
        with attachment.condition([[CLIP]], prompt=prompt):
            assert torch.equal(host.generate(**batch, prefill_chunk_size=4, **settings), whole)
        with (
            pytest.raises(
                ConditioningError, match=r"give `condition\(rows, prompt=attention_mask\)`"
            ),
            attachment.condition([[CLIP]]),
        ):
            host.generate(**batch, **settings)


def test_hints_that_are_missing_wrong_or_without_effect_are_refused(host):
    batch = inputs()
    mask = torch.ones(2, 4, dtype=torch.bool)
    for tokens, hints, message in (
        ({"kind": "mask"}, {}, "give `condition"),
        ({"kind": "mask"}, {"mask": mask[:1]}, r"`mask` must be \(row, position\) for 2 rows"),
        (
            {"kind": "text"},
            {"mask": mask},
            "`mask` has no effect here: this modulation writes on text tokens",
        ),
        (
            {},
            {"prompt": mask},
            "`prompt` has no effect here: this modulation writes on visual tokens",
        ),
        ({"steps": (2,)}, {}, "step 2 .* but a clip has 2 steps"),
    ):
        modulation = selecting(host, **tokens)
        with (
            pytest.raises(ConditioningError, match=message),
            modulation.attached(host) as attachment,
            attachment.condition([[CLIP], [CLIP]], **hints),
        ):
            host(**batch)
    with pytest.raises(ValidationError, match="has no effect with kind `text`"):
        Tokens(kind="text", steps=(0,))


def test_the_selection_is_saved_with_the_modulation(host, tmp_path):
    selecting(host, kind="last").save_pretrained(tmp_path)
    assert Modulation.from_pretrained(tmp_path).config.injection.tokens == Tokens(kind="last")


def test_hints_that_name_only_tokens_that_never_came_are_refused(host):
    batch = inputs(texts=((7, 8, 9),))
    length = batch["input_ids"].shape[1]
    longer = length + 3
    last = selecting(host, kind="last")
    mask = selecting(host, kind="mask")
    far = torch.arange(length + 9)[None] == length + 8
    cases = [
        (last, {"prompt": torch.ones(1, longer)}, f"`prompt` names position {longer - 1}, but the"),
        (last, {"prompt": torch.zeros(1, length)}, "Row 0: `prompt` names no token"),
        (mask, {"mask": far}, f"`mask` names position {length + 8}, but the forwards ended at"),
    ]
    for modulation, hints, message in cases:
        with (
            modulation.attached(host) as attachment,
            pytest.raises(ConditioningError, match=message),
            attachment.condition([[CLIP]], **hints),
        ):
            host.generate(**batch, max_new_tokens=2)


def test_hints_may_name_no_token_of_rows_that_read_nothing_and_more_than_is_generated(host):
    batch = inputs()
    length = batch["input_ids"].shape[1]
    with selecting(host, kind="last").attached(host) as attachment:
        prompt = batch["attention_mask"].clone()
        prompt[1] = 0
        with attachment.condition([[CLIP], []], prompt=prompt):
            host.generate(**batch, max_new_tokens=2)
        assert attachment.report().tokens == 2
    with selecting(host, kind="mask").attached(host) as attachment:
        for mask in (torch.zeros(2, length), torch.ones(2, length + 50)):
            with attachment.condition([[CLIP], [OTHER]], mask=mask):
                host.generate(**batch, max_new_tokens=2)
