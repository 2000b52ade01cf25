"""The addition of residuals to one layer's hidden states."""

import pytest
import torch

from modulate.errors import ConditioningError
from modulate.modulation.latents import Latents
from modulate.modulation.write_plan import WritePlan

LATENTS = Latents([[torch.tensor([[1.0], [10.0]])]], (1,), (1,), torch.tensor([[0, 2], [0, 2]]))


def plan(**more):
    return WritePlan(LATENTS, torch.tensor([1, 3]), torch.tensor([1, 0]), (2, 2), **more)


def add_latent(k, latents, memory, hidden):
    return latents.expand_as(hidden)


def test_residuals_go_to_the_named_positions_and_the_states_themselves_stay():
    hidden = torch.zeros(2, 2, 3)
    plan_ = plan()
    written = plan_.add_residual(0, 7, hidden, add_latent)
    assert written[..., 0].tolist() == [[0.0, 10.0], [0.0, 1.0]]
    assert not hidden.any()
    assert plan_.fired == {0}
    delta, states = plan_.norms[0]
    torch.testing.assert_close(delta, torch.tensor([10.0, 1.0]).repeat(3).norm())
    assert states == 0


def test_the_writer_is_given_the_memory_and_the_states_of_its_positions():
    def residual(k, latents, memory, hidden):
        assert torch.equal(latents, torch.tensor([[10.0], [1.0]]))
        assert torch.equal(memory.latents, LATENTS.layers[0])
        assert torch.equal(memory.span, torch.tensor([[0, 2], [0, 2]]))
        assert hidden[:, 0].tolist() == [1.0, 3.0]
        return torch.zeros_like(hidden)

    hidden = torch.arange(4.0).view(2, 2, 1).expand(2, 2, 3)
    assert torch.equal(plan().add_residual(0, 7, hidden, residual), hidden)


def test_states_of_another_shape_are_refused_with_both_shapes():
    with pytest.raises(
        ConditioningError,
        match=r"Decoder layer 7 returned states of shape \(2, 3, 4\) for inputs of \(2, 2\)",
    ):
        plan().add_residual(0, 7, torch.zeros(2, 3, 4), add_latent)


def test_layers_without_the_gradients_that_the_modulation_needs_are_refused():
    hidden = torch.zeros(2, 2, 3)
    with torch.no_grad():
        plan().add_residual(0, 7, hidden, add_latent)
        with pytest.raises(ConditioningError, match="use_reentrant=False"):
            plan(needs_grad=True).add_residual(0, 7, hidden, add_latent)
    plan(needs_grad=True).add_residual(0, 7, hidden, add_latent)
