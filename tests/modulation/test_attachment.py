"""Attachments beyond what every host must do (tests/contract): adapters, reports, misuse."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from modulate import AttachmentReport, ClipInput, ModulatedHost, visual_grid
from modulate.errors import ConditioningError, HostError
from modulate.interfaces.writer import Projection
from modulate_hosts.qwen2_5_vl import Qwen25VL
from tests.tiny import CLIP, GRID, cached, features, fresh, inputs, qwen, scanpath


def copies(batch, number):
    """The batch of one row, copied as `generate` does for beams."""
    return {name: value.repeat(number, *[1] * (value.ndim - 1)) for name, value in batch.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_a_fresh_modulation_leaves_logits_bit_identical(dtype, lora):
    host = qwen(dtype=dtype)
    batch = inputs(dtype=dtype)
    before = host(**batch).logits
    with (
        fresh(host, lora=lora).attached(host) as attachment,
        attachment.condition([[CLIP], [CLIP]]),
    ):
        during = host(**batch).logits
    assert torch.equal(before, during)
    assert torch.equal(before, host(**batch).logits)


def test_detach_restores_modules_keys_flags_and_foreign_hooks(host):
    modules = {id(module) for module in host.modules()}
    keys = list(host.state_dict())
    calls = []
    third_party_hook = host.model.language_model.layers[1].register_forward_hook(
        lambda *args: calls.append(1)
    )
    attachment = fresh(host, lora=True).attach(host)
    assert {id(module) for module in host.modules()} == modules and list(
        host.state_dict()
    ) == keys  # also while it is on
    attachment.detach()
    attachment.detach()
    assert {id(module) for module in host.modules()} == modules and list(host.state_dict()) == keys
    assert not any(parameter.requires_grad for parameter in host.parameters()) and not any(
        module.training for module in host.modules()
    )
    assert not hasattr(host, "peft_config")
    host(**inputs())
    assert calls == [1]
    third_party_hook.remove()


def trainable_names(host):
    return [name for name, parameter in host.named_parameters() if parameter.requires_grad]


def test_a_users_own_adapter_survives():
    from peft import LoraConfig, get_peft_model

    host = get_peft_model(
        qwen(), LoraConfig(r=2, target_modules=["q_proj", "k_proj"], exclude_modules=r".*visual.*")
    )
    for name, parameter in host.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch = inputs()
    before = host(**batch).logits
    trainable = trainable_names(host)
    modulation = fresh(host, lora=True)
    with modulation.attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        assert torch.equal(host(**batch).logits, before)
    assert torch.equal(host(**batch).logits, before)
    assert trainable_names(host) == trainable
    assert list(host.peft_config) == ["default"]


def test_report_counts_tokens_steps_and_strength(host, modulation):
    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP], []]):
            host(**inputs())
        report = attachment.report()
    assert (report.forwards, report.tokens) == (1, GRID.tokens)
    assert (report.steps, report.active_steps) == ((2,), (2,))
    assert set(report.ratio) == {1, 2}
    assert all(ratio > 0 for ratio in report.ratio.values())


def test_active_steps_are_summed_over_the_clips_of_a_row():
    report = AttachmentReport((0,), active_steps=(2, 1, 3, 0))
    bare = ClipInput(None, GRID)
    rows = [[CLIP, bare, CLIP], [], [bare], [CLIP, CLIP]]
    assert report.active_by_row(rows) == [3, 0, 0, 3]


def test_whole_clips_are_written_as_mixtures_and_anything_else_token_by_token(
    host, modulation, monkeypatch
):
    calls = []
    logits = []
    for name in ("forward", "write_mixture"):
        original = getattr(Projection, name)
        monkeypatch.setattr(
            Projection,
            name,
            lambda self, *args, name=name, original=original: (
                calls.append(name) or original(self, *args)
            ),
        )
    batch = copies(inputs(texts=((7, 8, 9),)), 2)
    with modulation.attached(host) as attachment:
        # The second: one row for both of the batch, as for beams, so its tokens are written twice.
        for rows in ([[CLIP], [CLIP]], [[CLIP]]):
            with attachment.condition(rows):
                logits.append(host(**batch).logits)
    assert calls == ["write_mixture"] * 4 + ["forward"] * 2  # layers and clips; layers
    torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(logits[0], host(**batch).logits, atol=1e-3)


@pytest.mark.parametrize("use_cache", [True, False])
def test_one_row_serves_beams_and_returned_sequences_but_no_batch_of_other_prompts(
    host, modulation, use_cache
):
    batch = inputs(texts=((7, 8, 9),))
    other_pixels = inputs(texts=((7, 8, 9),) * 3)
    other_text = copies(batch, 3)
    other_text["input_ids"][1, -1] = 11
    options = dict(max_new_tokens=3, use_cache=use_cache)
    with modulation.attached(host) as attachment:
        for more in (dict(num_beams=3), dict(num_return_sequences=2, do_sample=True)):
            with attachment.condition([[CLIP]]):
                host.generate(**batch, **options, **more)
        with attachment.condition([[CLIP]] * 2):
            host.generate(**inputs(), num_beams=3, **options)
        for wrong, what in ((other_pixels, "pixels"), (other_text, "token ids")):
            for call in (host, lambda **batch: host.generate(**batch, **options)):
                message = f"has 1 row, the forward a batch of 3 that differ in their {what}"
                with (
                    pytest.raises(ConditioningError, match=message),
                    attachment.condition([[CLIP]]),
                ):
                    call(**wrong)
        message = "has 2 rows, the forward a batch of 4 that differ in their pixels"
        with pytest.raises(ConditioningError, match=message), attachment.condition([[CLIP], []]):
            host(**inputs(texts=((7, 8, 9),) * 4))
        # No clips, so no rows to mistake.
        with attachment.condition([[]]):
            host(**other_pixels)


def test_misuse_is_an_error_with_both_sizes(host, modulation):
    wrong = visual_grid([0.0, 1.0, 2.0, 3.0], 2, 2, 2)
    with modulation.attached(host) as attachment:
        with (
            pytest.raises(
                ConditioningError,
                match="Row 0: the inputs hold 12 visual tokens, the conditioning 8",
            ),
            attachment.condition([[ClipInput(scanpath(), wrong, features(wrong))]] * 2),
        ):
            host(**inputs())
        with (
            pytest.raises(
                ConditioningError,
                match="Row 0: the inputs hold 12 visual tokens, the conditioning 24",
            ),
            attachment.condition([[CLIP, CLIP]] * 2),
        ):
            host(**inputs())
        with (
            pytest.raises(ConditioningError, match="has 3 rows, the forward a batch of 2"),
            attachment.condition([[CLIP]] * 3),
        ):
            host(**inputs())
        with (
            pytest.raises(ConditioningError, match="does not nest"),
            attachment.condition([[CLIP]] * 2),
            attachment.condition([[CLIP]] * 2),
        ):
            pass
        with (
            pytest.raises(ConditioningError, match="No forward reached the host"),
            attachment.condition([[CLIP]]),
        ):
            pass
        with (
            pytest.raises(HostError, match="inputs_embeds without input_ids"),
            attachment.condition([[CLIP]]),
        ):
            host(inputs_embeds=torch.zeros(1, 4, 32))
        with (
            pytest.raises(
                HostError, match=r"needs features of shape \(2, 6, 12\), got \(2, 6, 5\)"
            ),
            attachment.condition([[ClipInput(scanpath(), GRID, torch.zeros(2, 6, 5))]]),
        ):
            pass


def test_a_prompt_that_the_cache_held_before_is_not_counted(host, modulation):
    batch = inputs(texts=((7,),))
    cache = cached(host(**batch, use_cache=True))
    message = (
        "Row 0: the inputs hold 0 visual tokens, the conditioning 12.* The cache held 16 positions"
        " before this conditioning began"
    )
    with (
        modulation.attached(host) as attachment,
        pytest.raises(ConditioningError, match=message),
        attachment.condition([[CLIP]]),
    ):
        host(input_ids=torch.tensor([[9]]), **cache)


def test_two_modulations_stack_and_detach_in_any_order(host):
    torch.manual_seed(0)
    first = fresh(host, lora=True)
    second = fresh(host, layers=(0, 2), lora=True)
    for modulation in (first, second):
        torch.nn.init.normal_(modulation.out[0].weight)
    batch = inputs()
    bare = host(**batch).logits
    modules = {id(module) for module in host.modules()}
    attached_first = first.attach(host)
    attached_second = second.attach(host)
    with attached_first.condition([[CLIP]] * 2), attached_second.condition([[CLIP]] * 2):
        both = host(**batch).logits
    attached_first.detach()
    with attached_second.condition([[CLIP]] * 2):
        alone = host(**batch).logits
    attached_second.detach()
    assert not torch.allclose(both, alone) and not torch.allclose(alone, bare)
    assert (
        torch.equal(host(**batch).logits, bare)
        and {id(module) for module in host.modules()} == modules
    )


def test_layers_out_of_range_and_foreign_hosts_are_refused(host):
    with pytest.raises(
        HostError,
        match="asks for decoder layer 9, but Qwen2_5_VLForConditionalGeneration has layers 0 to 3",
    ):
        fresh(host, layers=(1, 9))
    with pytest.raises(
        HostError, match="made for a qwen2_5_vl of 4 layers of width 32; this qwen2_5_vl has 3"
    ):
        fresh(host).attach(qwen(layers=3))
    with pytest.raises(HostError, match=r"has no `config\.model_type`"):
        fresh(host).attach(torch.nn.Linear(2, 2))


def test_a_host_class_that_names_no_placeholder_is_refused():
    class Blind(Qwen25VL):
        """Its family's placeholders are forgotten."""

        @staticmethod
        def find_visual_ids(config):
            return {}

    with pytest.raises(HostError, match="Blind names no visual placeholder"):
        Blind(qwen())


def interrupted(host, kind=KeyboardInterrupt, **batch):
    """Call the host and interrupt it, as Ctrl-C does: torch then runs no hooks."""

    def stop(*args):
        raise kind

    handle = host.model.language_model.layers[1].mlp.register_forward_hook(stop)
    try:
        with pytest.raises(kind):
            host(**batch)
    finally:
        handle.remove()


def test_an_interrupted_forward_keeps_no_other_thread_out(host, modulation):
    batch = inputs()
    errors = []
    logits = []

    def work():
        try:
            with attachment.condition([[CLIP], [CLIP]]):
                logits.append(host(**batch).logits)
        except ConditioningError as error:
            errors.append(error)

    with modulation.attached(host) as attachment:
        interrupted(host, **batch)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert errors == []
        with attachment.condition([[CLIP], [CLIP]]):
            assert torch.equal(host(**batch).logits, logits[0])


def test_an_interrupted_forward_is_over(host):
    """Layers called by hand afterwards do not count as part of it."""
    modulation = fresh(host, lora=True)
    batch = inputs()
    for name, value in modulation.lora.items():
        if name.endswith("|B"):
            torch.nn.init.normal_(value, std=0.5)
    project = host.model.language_model.layers[1].self_attn.q_proj
    states = torch.ones(1, 1, 32)
    plain = project(states)
    with modulation.attached(host) as attachment:
        adapted = project(states)
        assert not torch.equal(adapted, plain)
        with attachment.bare():
            interrupted(host, **batch)
        assert torch.equal(project(states), adapted)
        interrupted(host, **batch)
        with attachment.bare():
            assert torch.equal(project(states), plain)
        interrupted(host, **batch)
        with (
            pytest.raises(ConditioningError, match="ran inside a conditioning without a forward"),
            attachment.condition([[CLIP], [CLIP]]),
        ):
            host.model.language_model(inputs_embeds=torch.ones(1, 4, 32))


def gradients_of(modulation, loss):
    """The gradients that ``loss`` gives a modulation's writers."""
    modulation.zero_grad()
    loss.backward()
    return [writer.weight.grad.clone() for writer in modulation.out]


@pytest.mark.parametrize("between", [None, "condition", "bare"])
def test_a_forward_that_is_recomputed_has_its_own_gradients_whatever_the_backward_ran_before(
    host, modulation, between
):
    modulation.train().requires_grad_(True)
    batch = inputs()
    other = ClipInput(scanpath(0.9, 0.1), GRID, features(seed=5))
    run = lambda: host(**batch, use_cache=False).logits.square().mean()

    def meanwhile(gradient):
        with (
            torch.no_grad(),
            attachment.bare() if between == "bare" else attachment.condition([[other], [other]]),
        ):
            run()

    with modulation.attached(host) as attachment:
        with attachment.condition([[CLIP], [CLIP]]):
            plain = run()
        with attachment.condition([[CLIP], [CLIP]]):
            recomputed = checkpoint(run, use_reentrant=False)
        expected = gradients_of(modulation, plain)
        if between:
            recomputed.register_hook(meanwhile)
        for actual, wanted in zip(gradients_of(modulation, recomputed), expected, strict=True):
            assert wanted.any()
            torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=1e-4)


def test_an_attachment_that_fails_halfway_leaves_no_hook(host):
    modulation = fresh(host, lora=True)
    host.model.language_model.layers[3].self_attn.q_proj = torch.nn.Linear(32, 8)
    with pytest.raises(
        HostError, match="of 32 to 32 features; in decoder layer 3 of this host it has 32 to 8"
    ):
        modulation.attach(host)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())


def test_a_modulated_host_conditions_its_host_and_its_parameters_are_the_modulations_alone(
    host, modulation
):
    batch = inputs()
    bare = host(**batch).logits
    wrapped = ModulatedHost(modulation, host)
    logits = wrapped([[CLIP], [CLIP]], **batch).logits
    assert wrapped.attachment.report().forwards == 1
    assert not torch.equal(logits, bare)
    with wrapped.attachment.condition([[CLIP], [CLIP]]):
        assert torch.equal(host(**batch).logits, logits)
    assert {id(parameter) for parameter in wrapped.parameters()} == {
        id(parameter) for parameter in modulation.parameters()
    }
    assert list(wrapped.state_dict()) == [f"modulation.{name}" for name in modulation.state_dict()]
    wrapped.attachment.detach()
