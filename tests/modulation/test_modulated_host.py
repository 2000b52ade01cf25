"""A modulation and its host as one module: it conditions, and holds no parameter of the host."""

import torch

from modulate.modulation.modulated_host import ModulatedHost
from tests.tiny import CLIP, inputs


def test_it_is_the_host_conditioned_and_its_parameters_are_the_modulations_alone(host, modulation):
    batch = inputs()
    bare = host(**batch).logits
    whole = ModulatedHost(modulation, host)
    found = whole([[CLIP], [CLIP]], **batch).logits
    assert whole.attachment.report().forwards == 1 and not torch.equal(found, bare)
    with whole.attachment.condition([[CLIP], [CLIP]]):
        assert torch.equal(host(**batch).logits, found)
    assert {id(p) for p in whole.parameters()} == {id(p) for p in modulation.parameters()}
    assert list(whole.state_dict()) == [f"modulation.{name}" for name in modulation.state_dict()]
    whole.attachment.detach()
