"""Every row of the contract on every family, as a test; the rows are in modulate_hosts.contract."""

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from modulate.errors import ConditioningError, HostError
from modulate.modulation.attachment import DYNAMO_TRACES_HOOKS
from modulate_hosts.contract.compiled import quietly
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import Case, NotApplicable, close, rows, strong
from modulate_hosts.contract.training import loss_of, trainable


def as_test(row):
    """A test of one row, parametrized by family."""

    @functools.wraps(row.check)
    def test(case):
        try:
            row.check(case)
        except NotApplicable as reason:
            pytest.skip(str(reason))

    slow = lambda family: [] if row.quick(family) else [pytest.mark.slow]
    cells = [pytest.param(family, id=family.name, marks=slow(family)) for family in FAMILIES]
    return pytest.mark.contract(pytest.mark.parametrize("case", cells, indirect=True)(test))


globals().update({name: as_test(row) for name, row in rows().items()})


def test_reentrant_checkpointing_of_whole_layers_is_refused():
    case = Case(FAMILIES[1])
    host, modulation = trainable(case)
    for layer in host.get_decoder().layers:
        call = type(layer).__call__
        run = lambda self, *args, call=call, **kwargs: checkpoint(
            lambda *inner: call(self, *inner, **kwargs), *args, use_reentrant=True
        )
        layer.__class__ = type(type(layer).__name__, (type(layer),), {"__call__": run})
    host.enable_input_require_grads()
    batch = case.write(["video", (7, 8, 9)])
    with (
        modulation.attached(host) as attachment,
        pytest.raises(ConditioningError, match="although the modulation needs them"),
        attachment.condition(case.clips(batch)),
    ):
        loss_of(host, batch)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_checkpoint_wrapped_module."])
def test_a_modulation_saved_with_wrappers_in_its_names_still_loads(wrapper):
    from modulate.config.injection import LoraParams
    from modulate.modulation.lora import LoraSpec, LoraTensors

    spec = LoraSpec(
        params=LoraParams(rank=2),
        shapes={f"{wrapper}self_attn.q_proj": (8, 8)},
        layers={f"{wrapper}self_attn.q_proj": (1,)},
        layers_path="model.layers",
    )
    assert list(spec.shapes) == ["self_attn.q_proj"] and list(spec.layers) == ["self_attn.q_proj"]
    tensors = LoraTensors(spec, 2)
    names = {
        f"base_model.model.model.layers.1.{wrapper}self_attn.q_proj.lora_{side}.weight": (
            torch.ones(2, 8) if side == "A" else torch.ones(8, 2)
        )
        for side in "AB"
    }
    tensors.load_peft(names)
    assert all(bool((value == 1).all()) for value in tensors.values())


@pytest.mark.parametrize(
    "strict",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                not DYNAMO_TRACES_HOOKS, reason="this torch does not trace hooks"
            ),
        ),
    ],
)
def test_an_export_is_the_bare_hosts_or_refused_under_a_conditioning(strict):
    case = Case(next(family for family in FAMILIES if family.name == "llava_onevision"))
    batch = case.write(["video", (7, 8, 9)])
    call = lambda: torch.export.export(
        case.host, (), batch.inputs | {"use_cache": False}, strict=strict
    )
    with torch.no_grad(), quietly(), case.modulation.attached(case.host) as attachment:
        with (
            pytest.raises(HostError, match="A conditioned forward cannot be exported"),
            attachment.condition(case.clips(batch)),
        ):
            call()
        exported = call().module()(**batch.inputs, use_cache=False).logits
    close(exported, case.host(**batch.inputs).logits)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
def test_a_whole_host_written_while_attached_is_read_as_the_bare_host(name, tmp_path):
    """Not a row of the contract, since the installed package reads no pickles."""
    case = Case(next(family for family in FAMILIES if family.name == name))
    host = case.family.build()
    batch = case.write(["video", (7, 8, 9)])
    bare = host(**batch.inputs).logits
    with strong(host, lora=True).attached(host):
        torch.save(host, tmp_path / "whole")
    assert torch.equal(
        torch.load(tmp_path / "whole", weights_only=False)(**batch.inputs).logits, bare
    )
