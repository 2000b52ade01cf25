"""A modulation and its host as one module: it conditions, and holds no parameter of the host."""

import torch

from modulate.modulation.modulated_host import ModulatedHost
from tests.tiny import CLIP, inputs


def test_it_conditions_the_host_and_its_parameters_are_the_modulations_alone(host, modulation):
    batch = inputs()
    bare = host(**batch).logits
    wrapped = ModulatedHost(modulation, host)
    logits = wrapped([[CLIP], [CLIP]], **batch).logits
    assert wrapped.attachment.report().forwards == 1
    assert not torch.equal(logits, bare)
    with wrapped.attachment.condition([[CLIP], [CLIP]]):
        assert torch.equal(host(**batch).logits, logits)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in modulation.parameters()}
    assert list(wrapped.state_dict()) == [f"modulation.{name}" for name in modulation.state_dict()]
    wrapped.attachment.detach()
