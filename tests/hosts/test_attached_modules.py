"""One modulation acts once on a host, however the host is wrapped and the modulation was loaded."""

import copy
import gc

import pytest
import torch

from modulate import ModulatedHost, Modulation
from modulate.errors import AttachmentWarning, ConditioningError, HostError
from modulate.hosts.attached_modules import noted, refuse_second
from modulate.hosts.host import understand
from tests.tiny import CLIP, fresh, inputs, our_hooks, qwen

TWICE = r"attached to this host already, and would act twice\. Call `detach\(\)`"


def test_a_cell_that_is_run_again_is_refused_until_the_first_attachment_is_gone(host):
    modulation = fresh(host, lora=True)
    attachment = modulation.attach(host)
    hooks = len(our_hooks(host))
    for again in (
        modulation.attach,
        modulation.attached(host).__enter__,
        lambda host: ModulatedHost(modulation, host),
    ):
        with pytest.raises(HostError, match=f"This modulation is {TWICE}"):
            again(host) if again.__name__ != "__enter__" else again()
    assert len(our_hooks(host)) == hooks
    attachment.detach()
    modulation.attach(host).detach()
    with modulation.attached(host), pytest.raises(HostError, match=TWICE):
        ModulatedHost(modulation, host)
    with modulation.attached(host):
        pass


def test_a_folder_that_is_loaded_again_is_refused_and_another_version_of_it_is_warned_of(
    host, tmp_path
):
    fresh(host, lora=True).save_pretrained(tmp_path)
    first = Modulation.from_pretrained(tmp_path)
    with first.attached(host):
        with pytest.raises(HostError, match=f"this configuration and weights is {TWICE}"):
            Modulation.from_pretrained(tmp_path).attach(host)
        torch.nn.init.constant_(first.amplitude, 2.0)
        with pytest.warns(AttachmentWarning, match="An earlier version of the modulation in"):
            Modulation.from_pretrained(tmp_path).attach(host).detach()
        # Another folder, another modulation.
        first.save_pretrained(tmp_path / "other")
        changed = Modulation.from_pretrained(tmp_path / "other")
        torch.nn.init.zeros_(changed.amplitude)
        changed.attach(host).detach()


def test_a_host_is_the_same_under_every_wrapper(host):
    from peft import LoraConfig, get_peft_model

    host = qwen()
    modulation = fresh(host)
    with modulation.attached(host):
        adapted = get_peft_model(host, LoraConfig(r=2, target_modules=["q_proj"]))
        for view in (adapted, torch.compile(host), torch.compile(adapted)):
            with pytest.raises(HostError, match=TWICE):
                modulation.attach(view)
    # The other way round, and on the host's own entry.
    with modulation.attached(torch.compile(adapted)):
        for view in (adapted, host, host.model):
            with pytest.raises(HostError, match=TWICE):
                modulation.attach(view)


def test_other_hosts_and_other_modulations_are_not_concerned(host):
    modulation = fresh(host)
    with modulation.attached(host):
        copied = copy.deepcopy(host)
        with modulation.attached(copied), modulation.attached(qwen()):
            pass
        with (
            fresh(host, layers=(0, 2)).attached(host) as attachment,
            attachment.condition([[CLIP]] * 2),
        ):
            host(**inputs())


def test_a_failed_attachment_and_a_deleted_host_leave_no_note(host):
    modulation = fresh(host, layers=(1, 2))
    with pytest.raises(RuntimeError, match="stop"), noted(modulation, understand(host)):
        raise RuntimeError("stop")
    refuse_second(modulation, understand(host))
    other = qwen()
    modulation.attach(other)
    del other
    gc.collect()
    modulation.attach(host).detach()


def test_a_host_of_another_family_and_the_same_shape_is_warned_of():
    host = qwen()
    modulation = fresh(host)
    config = modulation.config
    other = config.host.model_copy(update={"model_type": "qwen2_vl"})
    moved = Modulation(config.model_copy(update={"host": other}))
    with pytest.warns(AttachmentWarning, match="made for a qwen2_vl, and this qwen2_5_vl has"):
        moved.attach(host).detach()


def test_an_attachment_that_was_detached_is_not_used_again(host, modulation):
    attachment = modulation.attach(host)
    attachment.detach()
    for use in (attachment.condition([[CLIP]]), attachment.bare(), attachment.maybe_condition([])):
        with pytest.raises(ConditioningError, match="was detached; attach the modulation again"):
            use.__enter__()
    assert attachment.report().forwards == 0
