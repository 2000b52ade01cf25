"""Residuals land on visual tokens only, exactly once, and leave nothing behind."""

import copy
import pickle  # noqa: TID251  (to see it refused)

import pytest
import torch
from tiny import CLIP, GRID, VIDEO, features, fresh, inputs, qwen, scanpath

from modulate import ClipInput, visual_grid
from modulate.errors import ConditioningError, HostError


def hidden_states(host, batch):
    return host(**batch, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_a_fresh_modulation_leaves_logits_bit_identical(dtype, lora):
    host, batch = qwen(dtype=dtype), inputs(dtype=dtype)
    before = host(**batch).logits
    with fresh(host, lora=lora).attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        during = host(**batch).logits
    assert torch.equal(before, during)
    assert torch.equal(before, host(**batch).logits)


def test_at_the_injected_layer_only_visual_tokens_differ_and_by_the_residual(host, modulation):
    batch = inputs()
    before = hidden_states(host, batch)
    with modulation.attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        after = hidden_states(host, batch)
    expected = modulation.residual(0, modulation.latents([CLIP]).layers[0])
    visual = batch["input_ids"] == VIDEO
    difference = after[2] - before[2]  # hidden_states[0] are the embeddings, [2] is the output of decoder layer 1
    assert torch.equal(after[1], before[1])
    assert torch.equal(difference[~visual], torch.zeros_like(difference[~visual]))
    for row in range(2):
        torch.testing.assert_close(difference[row, visual[row]], expected, atol=1e-5, rtol=0)


def test_each_row_and_clip_gets_its_own_residual(host, modulation):
    other = ClipInput(scanpath(0.9, 0.1), GRID, features(seed=5))
    batch = inputs(videos=2)
    before = hidden_states(host, batch)
    with modulation.attached(host) as attachment, attachment.condition([[CLIP, other], []]):
        after = hidden_states(host, batch)
    difference = (after[2] - before[2])[batch["input_ids"] == VIDEO].view(2, 2, GRID.tokens, -1)
    for k, clip in enumerate([CLIP, other]):
        torch.testing.assert_close(difference[0, k], modulation.residual(0, modulation.latents([clip]).layers[0]), atol=1e-5, rtol=0)
    assert not difference[1].any()


def test_a_clip_without_a_signal_inside_a_conditioned_row_is_left_alone(host, modulation):
    batch = inputs(texts=((7, 8),), videos=2)
    before = hidden_states(host, batch)
    with modulation.attached(host) as attachment, attachment.condition([[ClipInput(None, GRID), CLIP]]):
        after = hidden_states(host, batch)
    difference = (after[2] - before[2])[batch["input_ids"] == VIDEO].view(2, GRID.tokens, -1)
    assert not difference[0].any() and difference[1].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_each_row_alone_gives(host, modulation, side):
    clips = [CLIP, ClipInput(scanpath(0.6, 0.3), GRID, features(seed=2))]
    batch = inputs(side=side)
    with modulation.attached(host) as attachment:
        with attachment.condition([[c] for c in clips]):
            together = host(**batch).logits
        for row, clip in enumerate(clips):
            keep = batch["attention_mask"][row].bool()
            alone = {k: v[row : row + 1][:, keep] if v.ndim == 2 and v.shape[0] == 2 and k != "video_grid_thw" else v for k, v in batch.items()}
            half = batch["pixel_values_videos"].chunk(2)[row]
            alone |= {"pixel_values_videos": half, "video_grid_thw": batch["video_grid_thw"][row : row + 1], "second_per_grid_ts": torch.ones(1)}
            with attachment.condition([[clip]]):
                torch.testing.assert_close(host(**alone).logits[0], together[row, keep], atol=1e-4, rtol=1e-4)


def generate(host, batch, **settings):
    return host.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False, **settings)


def test_generation_with_cache_equals_without(host, modulation):
    batch = inputs()
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP], [CLIP]]):
            cached = generate(host, batch)
        with attachment.condition([[CLIP], [CLIP]]):
            uncached = generate(host, batch, use_cache=False)
    bare = generate(host, batch)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, bare)


def test_beams_and_return_sequences_use_their_own_rows(host, modulation):
    clips = [CLIP, ClipInput(scanpath(0.9, 0.1), GRID, features(seed=9))]
    batch = inputs()
    with modulation.attached(host) as attachment:
        with attachment.condition([[c] for c in clips]):
            together = generate(host, batch, num_beams=3, num_return_sequences=2)
        for row, clip in enumerate(clips):
            alone = {k: v[row : row + 1] for k, v in batch.items()} | {"pixel_values_videos": batch["pixel_values_videos"].chunk(2)[row]}
            with attachment.condition([[clip]]):
                assert torch.equal(generate(host, alone, num_beams=3, num_return_sequences=2), together[2 * row : 2 * row + 2])


def test_a_generated_placeholder_is_text(host, modulation):
    batch = inputs(texts=((7,),))

    def always_video(ids, scores):
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([VIDEO]), 0.0)

    # With use_cache=False transformers itself refuses such a sequence: one more placeholder than video features.
    with modulation.attached(host) as attachment, attachment.condition([[CLIP]]):
        out = generate(host, batch, logits_processor=[always_video])
    assert (out[0, -6:] == VIDEO).all()
    assert attachment.report().tokens == GRID.tokens


def test_chunked_prefill_gives_the_same_answer(host, modulation):
    batch = inputs(texts=((7, 8, 9),))
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP]]):
            whole = generate(host, batch)
        with attachment.condition([[CLIP]]):
            chunked = generate(host, batch, prefill_chunk_size=4)
    assert torch.equal(whole, chunked)


def test_detach_restores_modules_keys_flags_and_foreign_hooks(host):
    modules, keys = {id(m) for m in host.modules()}, list(host.state_dict())
    calls = []
    foreign = host.model.language_model.layers[1].register_forward_hook(lambda *a: calls.append(1))
    attachment = fresh(host, lora=True).attach(host)
    assert list(host.state_dict()) != keys  # PEFT renames while it is on
    attachment.detach()
    attachment.detach()
    assert {id(m) for m in host.modules()} == modules and list(host.state_dict()) == keys
    assert not any(p.requires_grad for p in host.parameters()) and not any(m.training for m in host.modules())
    assert not hasattr(host, "peft_config")
    host(**inputs())
    assert calls == [1]
    foreign.remove()


def test_a_users_own_adapter_survives():
    from peft import LoraConfig, get_peft_model

    host = get_peft_model(qwen(), LoraConfig(r=2, target_modules=["q_proj", "k_proj"], exclude_modules=r".*visual.*"))
    for name, p in host.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    batch = inputs()
    before, trainable = host(**batch).logits, [n for n, p in host.named_parameters() if p.requires_grad]
    modulation = fresh(host, lora=True)
    with modulation.attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        assert torch.equal(host(**batch).logits, before)
    assert torch.equal(host(**batch).logits, before)
    assert [n for n, p in host.named_parameters() if p.requires_grad] == trainable
    assert list(host.peft_config) == ["default"]


def test_gradients_reach_the_modulation_and_never_the_host(host, modulation):
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP], [CLIP]]):
            loss = host(**inputs()).logits[:, -1].square().sum()
        loss.backward()
    missing = [n for n, p in modulation.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert all(p.grad is None for p in host.parameters())


def test_report_counts_tokens_steps_and_strength(host, modulation):
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP], []]):
            host(**inputs())
        report = attachment.report()
    assert (report.forwards, report.tokens, report.steps, report.active_steps) == (1, GRID.tokens, (2,), (2,))
    assert set(report.ratio) == {1, 2} and all(r > 0 for r in report.ratio.values())


def test_misuse_is_an_error_with_both_sizes(host, modulation):
    wrong = visual_grid([0.0, 1.0, 2.0, 3.0], 2, 2, 2)
    with modulation.attached(host) as attachment:
        with (
            pytest.raises(ConditioningError, match="Row 0: the inputs hold 12 visual tokens, the conditioning 8"),
            attachment.condition([[ClipInput(scanpath(), wrong, features(wrong))]] * 2),
        ):
            host(**inputs())
        with pytest.raises(ConditioningError, match="Row 0: the inputs hold 12 visual tokens, the conditioning 24"), attachment.condition([[CLIP, CLIP]] * 2):
            host(**inputs())
        with pytest.raises(ConditioningError, match="has 3 rows, the forward a batch of 2"), attachment.condition([[CLIP]] * 3):
            host(**inputs())
        with pytest.raises(ConditioningError, match="does not nest"), attachment.condition([[CLIP]] * 2), attachment.condition([[CLIP]] * 2):
            pass
        with pytest.raises(ConditioningError, match="No forward reached the host"), attachment.condition([[CLIP]]):
            pass
        with pytest.raises(HostError, match="inputs_embeds without input_ids"), attachment.condition([[CLIP]]):
            host(inputs_embeds=torch.zeros(1, 4, 32))
        with (
            pytest.raises(HostError, match=r"needs features of shape \(2, 6, 12\), got \(2, 6, 5\)"),
            attachment.condition([[ClipInput(scanpath(), GRID, torch.zeros(2, 6, 5))]]),
        ):
            pass


def test_a_cache_filled_elsewhere_is_refused(host, modulation):
    batch = inputs(texts=((7,),))
    cache = host(**batch, use_cache=True).past_key_values
    with modulation.attached(host) as attachment, pytest.raises(ConditioningError, match="a cache filled elsewhere"), attachment.condition([[CLIP]]):
        host(input_ids=torch.tensor([[9]]), past_key_values=cache)


def test_an_exception_inside_the_forward_leaves_nothing_behind(host, modulation):
    batch = inputs()
    before = host(**batch).logits

    def broken(*args):
        raise RuntimeError("foreign")

    with modulation.attached(host) as attachment:
        foreign = host.lm_head.register_forward_hook(broken)
        with pytest.raises(RuntimeError, match="foreign"), attachment.condition([[CLIP], [CLIP]]):
            host(**batch)
        foreign.remove()
        assert torch.equal(host(**batch).logits, before)


def test_two_modulations_stack_and_detach_in_any_order(host):
    torch.manual_seed(0)
    first, second = fresh(host, lora=True), fresh(host, layers=(0, 2), lora=True)
    for m in (first, second):
        torch.nn.init.normal_(m.out[0].weight)
    batch = inputs()
    bare = host(**batch).logits
    modules = {id(m) for m in host.modules()}
    a, b = first.attach(host), second.attach(host)
    with a.condition([[CLIP]] * 2), b.condition([[CLIP]] * 2):
        both = host(**batch).logits
    a.detach()
    with b.condition([[CLIP]] * 2):
        alone = host(**batch).logits
    b.detach()
    assert not torch.allclose(both, alone) and not torch.allclose(alone, bare)
    assert torch.equal(host(**batch).logits, bare) and {id(m) for m in host.modules()} == modules


def test_a_deep_copy_is_a_bare_host_and_pickling_is_refused(host, modulation):
    with modulation.attached(host) as attachment:
        twin = copy.deepcopy(host)
        with pytest.raises(ConditioningError, match="cannot be pickled"):
            pickle.dumps(attachment)
        with attachment.condition([[CLIP]] * 2):
            host(**inputs())
            assert torch.equal(twin(**inputs()).logits, twin(**inputs()).logits)
    assert torch.equal(twin(**inputs()).logits, host(**inputs()).logits)


def test_layers_out_of_range_and_foreign_hosts_are_refused(host):
    with pytest.raises(HostError, match="asks for decoder layer 9, but Qwen2_5_VLForConditionalGeneration has layers 0 to 3"):
        fresh(host, layers=(1, 9))
    with pytest.raises(HostError, match="made for a qwen2_5_vl of 4 layers of width 32; this qwen2_5_vl has 3"):
        fresh(host).attach(qwen(layers=3))
    with pytest.raises(HostError, match=r"has no `config\.model_type`"):
        fresh(host).attach(torch.nn.Linear(2, 2))
