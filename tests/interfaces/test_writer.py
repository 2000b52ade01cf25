"""Writers: from latents to residuals."""

import torch

from modulate.interfaces.writer import Memory, Mixture, Projection


def mixture():
    generator = torch.Generator().manual_seed(0)
    return Mixture(
        torch.randn(3, 4, 2, generator=generator), torch.randn(3, 2, 5, generator=generator)
    )


def test_a_mixture_is_each_token_s_weighted_sum_of_its_step_s_vectors():
    mixed = mixture()
    dense = mixed.dense()
    assert dense.shape == (3, 4, 5) and mixed.device == torch.device("cpu")
    for step in range(3):
        for token in range(4):
            pairs = zip(mixed.weights[step, token], mixed.vectors[step], strict=True)
            expected = sum(weight * vector for weight, vector in pairs)
            assert torch.allclose(dense[step, token], expected)


def test_a_mixture_of_several_clips_is_split_by_their_steps():
    mixed = mixture()
    first, second = mixed.split(iter([1, 2]))
    assert torch.equal(torch.cat([first.dense(), second.dense()]), mixed.dense())
    assert len(first.weights) == 1
    assert len(second.vectors) == 2


def test_a_new_projection_writes_zero_and_projects_a_mixture_like_its_tokens():
    projection = Projection(5, 7)
    mixed = mixture()
    memory = Memory(torch.zeros(1, 5), torch.zeros(12, 2, dtype=torch.int64))
    tokens = mixed.dense().flatten(0, 1)
    assert projection.weight.shape == (7, 5)
    assert not projection(tokens, torch.ones(12, 7), memory).any()
    torch.nn.init.normal_(projection.weight)
    one_by_one = 0.5 * projection(tokens, torch.ones(12, 7), memory)
    assert torch.allclose(projection.write_mixture(mixed, torch.tensor(0.5)), one_by_one, atol=1e-6)
    half = Mixture(mixed.weights.bfloat16(), mixed.vectors.bfloat16())
    assert projection.write_mixture(half, torch.tensor(0.5)).dtype == torch.float32
