"""A user's adapters and the modulation's own LoRA on one host: neither changes the other."""

import copy
import warnings
from contextlib import contextmanager

import peft
import torch

from modulate_hosts.contract import reference
from modulate_hosts.contract.suite import close, our_hooks, row, strong

FEW = ("qwen2_5_vl", "smolvlm")
"""Families on which the slow rows run in the quick suite."""

TARGETS = r".*(language_model|text_model)\..*\.(q_proj|v_proj)"

KINDS = {
    "LoRA": lambda: peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False),
    "DoRA": lambda: peft.LoraConfig(
        r=2, target_modules=TARGETS, init_lora_weights=False, use_dora=True
    ),
    "rsLoRA with a bias": lambda: peft.LoraConfig(
        r=2, target_modules=TARGETS, init_lora_weights=False, use_rslora=True, bias="lora_only"
    ),
    "LoRA of one layer": lambda: peft.LoraConfig(
        r=2,
        target_modules=r".*(language_model|text_model)\.layers\.1\..*\.q_proj",
        init_lora_weights=False,
    ),
    "IA3": lambda: peft.IA3Config(
        target_modules=TARGETS, feedforward_modules=[], init_ia3_weights=False
    ),
    "IA3 on inputs": lambda: peft.IA3Config(
        target_modules=TARGETS, feedforward_modules=TARGETS, init_ia3_weights=False
    ),
    "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=TARGETS, init_weights=False),
    "LoKr": lambda: peft.LoKrConfig(r=2, target_modules=TARGETS, init_weights=False),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, init_weights=False),
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=TARGETS, init_weights=False),
    "VeRA": lambda: peft.VeraConfig(
        r=2, target_modules=r".*(language_model|text_model)\..*\.q_proj", init_weights=False
    ),
    "FourierFT": lambda: peft.FourierFTConfig(
        n_frequency=8, target_modules=TARGETS, init_weights=False
    ),
}
"""Kinds of adapters that can be merged: merged weights are the reference for both together."""


def wrapped(host, config, seed=0):
    """Return a host with a user's adapter whose weights have an effect."""
    torch.manual_seed(seed)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # PEFT's, about its own options
        model = peft.get_peft_model(host, config).eval()
    for name, value in model.named_parameters():
        if value.requires_grad:
            value.data.add_(
                0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
            )
    return model


def flags(model):
    return {name: value.requires_grad for name, value in model.named_parameters()}


def adapters(model):
    """Return everything that PEFT records of its adapters on a model."""
    parts = {
        name: (module.active_adapters, module.disable_adapters, module.merged_adapters)
        for name, module in model.named_modules()
        if hasattr(module, "merged_adapters")
    }
    return parts, dict(getattr(model, "peft_config", {})), flags(model), list(model.state_dict())


@contextmanager
def merged_beside(case, model, modulation):
    """Yield a copy of a host with the user's adapters and ours merged, without adapters or hooks.

    PEFT merges the user's, the reference ours.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = copy.deepcopy(model).merge_and_unload()
    with reference.merged(twin, modulation):
        yield twin


@row(
    "a user's adapters of every PEFT kind, before, during and after: the sum of both, then theirs"
    " alone",
    quick=FEW,
)
def test_users_adapters(case):
    batch, clips = case.two_prompts()
    for kind, config in KINDS.items():
        host = case.family.build()
        try:
            model = wrapped(host, config())
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{kind}: {error}") from error
        call = lambda model=model: model(**batch.inputs).logits
        theirs = call()
        recorded = adapters(model)
        modulation = strong(model, lora=True)
        with merged_beside(case, model, modulation) as twin:
            adapted = call(twin)
            with reference.written(twin, strong(twin), case.dense(batch, clips, modulation)):
                both = call(twin)
        with modulation.attached(model) as attachment:
            close(call(), adapted)
            with attachment.condition(clips):
                close(call(), both)
            with attachment.bare():
                assert torch.equal(call(), theirs), kind
            assert adapters(model) == recorded, kind
        assert torch.equal(call(), theirs), kind
        assert adapters(model) == recorded, kind
        assert not our_hooks(model), kind


@row("adapters put on, switched, merged and taken off while attached", quick=FEW)
def test_adapters_come_and_go(case):
    batch, _ = case.two_prompts()
    host = case.family.build()
    call = lambda: host(**batch.inputs).logits
    bare = call()
    modulation = strong(host, lora=True)
    attachment = modulation.attach(host)
    ours = call()

    def sums(model):
        """Return the logits under both, from a copy with merged weights."""
        with merged_beside(case, model, modulation) as twin:
            return twin(**batch.inputs).logits

    model = wrapped(host, KINDS["LoRA"]())
    close(call(), sums(model))
    with torch.enable_grad():
        model.add_adapter("second", KINDS["LoRA"]())
    model.set_adapter("second")
    close(call(), sums(model))
    with model.disable_adapter():
        close(call(), ours)
    both = call()
    model.merge_adapter()
    close(call(), both)
    model.unmerge_adapter()
    close(call(), both)
    model.set_adapter("default")
    model.delete_adapter("second")
    close(call(), sums(model))
    expected = sums(model)
    model.merge_and_unload()
    close(call(), expected)
    attachment.detach()
    # Theirs is merged for good, ours is gone.
    assert not torch.allclose(call(), bare, atol=1e-2)
    with modulation.attached(host):
        close(call(), expected)
    assert not our_hooks(host)


@row("an adapter put on while attached stays when the modulation is detached")
def test_an_adapter_outlives_the_attachment(case):
    batch, _ = case.two_prompts()
    host = case.family.build()
    attachment = strong(host, lora=True).attach(host)
    model = wrapped(host, KINDS["LoRA"]())
    call = lambda: model(**batch.inputs).logits
    with attachment.bare():
        theirs = call()
    both = call()
    attachment.detach()
    assert torch.equal(call(), theirs) and not torch.allclose(both, theirs, atol=1e-2)
    twin = wrapped(case.family.build(), KINDS["LoRA"]())
    assert torch.equal(twin(**batch.inputs).logits, theirs) and not our_hooks(model)


@row("modules_to_save and trained tokens of a user's stay switched on")
def test_modules_to_save(case):
    batch, _ = case.two_prompts()
    for more in (dict(modules_to_save=["lm_head"]), dict(trainable_token_indices=[7, 8])):
        model = wrapped(
            case.family.build(),
            peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **more),
        )
        call = lambda model=model: model(**batch.inputs).logits
        theirs = call()
        recorded = adapters(model)
        with strong(model, lora=True).attached(model) as attachment:
            moved = call()
            with attachment.bare():
                assert torch.equal(call(), theirs)
        assert torch.equal(call(), theirs) and adapters(model) == recorded
        assert not torch.allclose(moved, theirs, atol=1e-2)


@row(
    "what is done to the host's parameters is not done to the modulation's LoRA: freezing, casting,"
    " k-bit preparation"
)
def test_the_hosts_parameters_are_the_hosts(case):
    host = case.family.build()
    modulation = strong(host, lora=True).train()
    before = {name: value.clone() for name, value in modulation.named_parameters()}
    with modulation.attached(host):
        ours = {id(parameter) for parameter in modulation.parameters()}
        assert not ours & {id(parameter) for parameter in host.parameters()}
        host.requires_grad_(False)
        with torch.enable_grad():
            peft.prepare_model_for_kbit_training(host, use_gradient_checkpointing=False)
        host.to(torch.bfloat16)
        host.train()
    for name, parameter in modulation.named_parameters():
        assert parameter.requires_grad and parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


# PEFT 0.18 looks on disk for the configuration of a host that was never saved.
@row(
    "a host saved while attached loads as the bare host; so does a user's adapter folder",
    quick=FEW,
    ignoring="Could not find a config file in",
)
def test_saved_while_attached(case, tmp_path):
    batch, _ = case.two_prompts()
    host = case.family.build()
    bare = host(**batch.inputs).logits
    with strong(host, lora=True).attached(host):
        host.save_pretrained(tmp_path / "host")
    back, info = type(host).from_pretrained(tmp_path / "host", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(back.eval()(**batch.inputs).logits, bare)

    model = wrapped(case.family.build(), KINDS["LoRA"]())
    theirs = model(**batch.inputs).logits
    with strong(model, lora=True).attached(model):
        model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(case.family.build(), tmp_path / "adapter").eval()
    assert torch.equal(again(**batch.inputs).logits, theirs)


@row(
    "layers wrapped one by one (torch.compile, activation checkpointing): a modulation is saved and"
    " loaded under plain names",
    quick=FEW,
)
def test_wrapped_layers(case, tmp_path):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    from modulate import Modulation

    batch, clips = case.two_prompts()
    plain = case.family.build()
    modulation = strong(plain, lora=True)
    modulation.save_pretrained(tmp_path / "plain")
    with modulation.attached(plain) as attachment, attachment.condition(clips):
        expected = plain(**batch.inputs).logits
    for name, wrap in (
        ("compiled", lambda layer: torch.compile(layer, backend="eager")),
        ("checkpointed", checkpoint_wrapper),
    ):
        host = case.family.build()
        layers = host.get_decoder().layers
        for index in range(len(layers)):
            layers[index] = wrap(layers[index])
        if name == "checkpointed":
            # A wrapper inside a wrapper. The first layer may have linear attention.
            layer = layers[-1]._checkpoint_wrapped_module
            layer.self_attn.q_proj = checkpoint_wrapper(layer.self_attn.q_proj)
        strong(host, lora=True).save_pretrained(tmp_path / name)
        config = (tmp_path / name / "config.json").read_text(encoding="utf-8")
        assert "_orig_mod" not in config and "_wrapped" not in config
        for folder, target in ((tmp_path / "plain", host), (tmp_path / name, plain)):
            loaded = Modulation.from_pretrained(folder)
            with loaded.attached(target) as attachment, attachment.condition(clips):
                close(target(**batch.inputs).logits, expected)
        torch._dynamo.reset()
