"""Hosts split over devices, quantized, or with adapters: PEFT's and the modulation's own."""

import torch

from modulate_hosts.contract import reference
from modulate_hosts.contract.suite import close, fresh, our_hooks, row


def agrees(case, host, steps=3):
    """Assert that logits and generated ids are those of the plain host with reference residuals."""
    batch, clips = case.two_prompts()
    modulation = case.strong(host)
    values = case.dense(batch, clips, modulation)
    forward = lambda: host(**batch.inputs).logits
    generate = lambda: host.generate(**batch.inputs, max_new_tokens=steps, do_sample=False)
    with reference.written(host, modulation, values):
        expected = forward()
        expected_ids = generate()
    with modulation.attached(host) as attachment, attachment.condition(clips):
        got = forward()
        ids = generate()
    close(got, expected)
    assert torch.equal(ids, expected_ids) and not torch.allclose(got, forward(), atol=1e-2)
    return got


@row("accelerate: weights offloaded to the CPU between layers, one forward")
def test_cpu_offload(case):
    offloaded(case, lambda host, batch: host(**batch.inputs).logits)


# Before 5.23, transformers warns that the ids are on another device.
@row(
    "accelerate: weights offloaded to the CPU between layers, generating",
    ignoring="You are calling .generate.. with the `input_ids` being on a device type",
)
def test_generating_under_cpu_offload(case):
    offloaded(
        case,
        lambda host, batch: host.generate(
            **batch.inputs, max_new_tokens=3, output_scores=True, return_dict_in_generate=True
        ).scores[-1],
    )


def offloaded(case, call):
    from accelerate import cpu_offload

    host = case.family.build()
    batch, clips = case.two_prompts()
    cpu_offload(host, execution_device=torch.device("cpu"))
    bare = case.bare(lambda: call(host, batch))
    with case.modulation.attached(host) as attachment, attachment.condition(clips):
        got = call(host, batch)
    close(got, case.expected(batch, clips, lambda: call(case.host, batch)))
    assert not torch.allclose(got, bare, atol=1e-2)


def dispatched(case, device, **more):
    from accelerate import dispatch_model

    host = case.family.build()
    host.tie_weights()
    device_map = device_map_of(host, device)
    host = dispatch_model(host, device_map, main_device="cpu", force_hooks=True, **more)
    close(agrees(case, host), agrees(case, case.family.build()))


def device_map_of(host, device):
    """Return a device map with decoder layer 2 on ``device`` and all else on the CPU."""
    decoder = host.get_decoder()
    keys = [name for name, _ in host.named_children() if name != "model"]
    for name, child in host.model.named_children():
        if child is not decoder:
            keys.append(f"model.{name}")
            continue
        keys += [f"model.{name}.{part}" for part, _ in decoder.named_children() if part != "layers"]
        keys += [f"model.{name}.layers.{index}" for index in range(len(decoder.layers))]
    keys += [f"model.{name}" for name, _ in host.model.named_parameters(recurse=False)]
    return {key: device if key.endswith(".layers.2") else "cpu" for key in keys}


DEVICE_MAP = "The following device_map keys do not match"
"""Warning of accelerate's: a parameter beside the modules has a key too."""


@row("accelerate: a device map", ignoring=DEVICE_MAP)
def test_device_map(case):
    dispatched(case, "cpu")


@row("accelerate: a layer offloaded to disk", quick=(), ignoring=DEVICE_MAP)
def test_disk_offload(case, tmp_path):
    dispatched(case, "disk", offload_dir=tmp_path)


@row("a host quantized to int8", quick=())
def test_quantized(case):
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        case.not_applicable("needs torchao, which is not installed where this table was made")
    host = case.family.build()
    linear = torch.nn.Linear
    quantize_(
        host.get_decoder(),
        Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, linear) and "proj" in name,
    )
    agrees(case, host)


@row("a host wrapped by PEFT, with an adapter of its own")
def test_peft(case):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = r".*(language_model|text_model)\..*\.(q_proj|v_proj)"
    host = get_peft_model(
        case.family.build(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    ).eval()
    agrees(case, host)
    assert not our_hooks(host) and list(host.peft_config) == ["default"]


@row(
    "the modulation's own LoRA: the logits are those of the merged weights, and the bare host's"
    " when it is fresh"
)
def test_lora(case):
    batch, clips = case.two_prompts()
    host = case.host
    call = lambda: host(**batch.inputs).logits
    bare = call()
    with fresh(host, lora=True).attached(host) as attachment, attachment.condition(clips):
        assert torch.equal(call(), bare)
    modulation = case.strong(host)
    with reference.merged(host, modulation):
        adapted = call()
    assert not torch.allclose(adapted, bare, atol=1e-2)
    with modulation.attached(host) as attachment:
        close(call(), adapted)
        with attachment.condition(clips):
            got = call()
        with attachment.bare():
            assert torch.equal(call(), bare)
        close(call(), adapted)
    with reference.written(host, modulation, case.dense(batch, clips, modulation)):
        close(got, call())
    assert torch.equal(call(), bare)
