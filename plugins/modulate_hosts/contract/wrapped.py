"""Hosts that are split over devices, quantized, or carry adapters: PEFT's and the modulation's own."""

import torch

from modulate_hosts.contract import reference
from modulate_hosts.contract.suite import close, fresh, our_hooks, row


def agrees(case, host, steps=3):
    """Logits and what is generated are those of the family's plain host under the reference's
    residuals.
    """
    batch, clips = case.two_prompts()
    modulation = case.strong(host)
    values = case.dense(batch, clips, modulation)
    forward = lambda h: h(**batch.inputs).logits
    generate = lambda h: h.generate(**batch.inputs, max_new_tokens=steps, do_sample=False)
    with reference.written(host, modulation, values):
        expected = forward(host)
        expected_ids = generate(host)
    with modulation.attached(host) as attachment, attachment.condition(clips):
        got = forward(host)
        ids = generate(host)
    close(got, expected)
    assert torch.equal(ids, expected_ids) and not torch.allclose(got, forward(host), atol=1e-2)
    return got


@row("accelerate: weights offloaded to the CPU between layers, one forward")
def test_cpu_offload(case):
    offloaded(case, lambda host, batch: host(**batch.inputs).logits)


# Before 5.23 transformers warns of where the ids are.
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
    children = [name for name, _ in host.model.named_children()]
    device_map = {f"model.{name}": "cpu" for name in children} | {
        name: "cpu" for name, _ in host.named_children() if name != "model"
    }
    language = next(name for name in children if host.get_decoder() is getattr(host.model, name))
    device_map.pop(f"model.{language}")
    device_map |= {
        f"model.{language}.{name}": "cpu"
        for name, _ in host.get_decoder().named_children()
        if name != "layers"
    }
    device_map |= {
        f"model.{language}.layers.{i}": device if i == 2 else "cpu"
        for i in range(len(host.get_decoder().layers))
    }
    device_map |= {f"model.{name}": "cpu" for name, _ in host.model.named_parameters(recurse=False)}
    host = dispatch_model(host, device_map, main_device="cpu", force_hooks=True, **more)
    close(agrees(case, host), agrees(case, case.family.build()))


DEVICE_MAP = "The following device_map keys do not match"
"""What accelerate warns of: a parameter beside the modules has a key too."""


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
