"""Rehearsals on meta tensors count bytes and operations."""

import pytest
import torch

from modulate.checks.meta_tensors import META, Rehearsal


def test_bytes_alive_and_their_peak_match_the_tensors():
    x = torch.empty(100, 10, device=META)
    with Rehearsal() as rehearsal:
        rehearsal.see([x, x.T])
        assert rehearsal.alive == 4000
        # + 20,000 bytes; the other factor, 2,000 bytes, is gone by the next line
        y = x @ torch.empty(10, 50, device=META)
        # a view costs nothing; + 20,000 bytes
        z = y.view(50, 100) + 1
        del y
        assert rehearsal.alive == 4000 + 20_000
        assert rehearsal.peak == 4000 + 20_000 + 20_000
        assert rehearsal.flops == 2 * 100 * 10 * 50
    assert z.shape == (50, 100)


def test_real_tensors_serve_where_code_depends_on_values():
    table = torch.empty(10, 4, device=META)
    with Rehearsal():
        ids = torch.tensor([1, 2, 3, 3])
        chosen = table[ids[ids == 3]]
    assert chosen.shape == (2, 4) and chosen.device == META


def test_attention_stores_what_fused_kernels_store():
    q, k, v = (torch.empty(1, 4, 1000, 16, device=META, requires_grad=True) for _ in range(3))
    with Rehearsal("cpu") as rehearsal:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert out.shape == q.shape and rehearsal.flops == 2 * 2 * 4 * 1000 * 1000 * 16
    assert rehearsal.peak < 4 * 1000 * 1000  # never all attention weights, 16 MB


@pytest.mark.parametrize("heads", [4, 2], ids=["as many heads", "fewer heads of keys"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_attention_is_counted_in_every_kernel(device, dtype, masked, heads):
    """Two products forward; five backward, where a fused kernel computes the scores again."""
    q = torch.empty(1, 4, 100, 16, device=META, dtype=dtype, requires_grad=True)
    k, v = (
        torch.empty(1, heads, 50, 16, device=META, dtype=dtype, requires_grad=True)
        for _ in range(2)
    )
    mask = torch.ones(1, 1, 100, 50, dtype=torch.bool) if masked else None
    one = 2 * 4 * 100 * 50 * 16
    for learns in (False, True):
        with Rehearsal(device) as rehearsal, torch.set_grad_enabled(learns):
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, enable_gqa=heads != 4
            )
            assert rehearsal.flops == 2 * one
            if learns:
                out.sum().backward()
                assert rehearsal.flops == 7 * one
        assert not rehearsal.uncounted


def test_experts_chosen_for_each_token_are_counted():
    tokens = torch.empty(10, 32, device=META, dtype=torch.bfloat16)
    weights = torch.empty(4, 32, 64, device=META, dtype=torch.bfloat16)
    with Rehearsal() as rehearsal:
        torch._grouped_mm(tokens, weights, offs=torch.empty(4, dtype=torch.int32, device=META))
    assert rehearsal.flops == 2 * 10 * 32 * 64


def test_an_operation_without_a_known_formula_is_reported():
    library = torch.library.Library("modulate_tests", "FRAGMENT")
    library.define("new_attention(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("new_attention", lambda q, k, v: torch.empty_like(q), "Meta")
    q = torch.empty(1, 4, 10, 16, device=META)
    with Rehearsal() as rehearsal:
        torch.ops.modulate_tests.new_attention(q, q, q)
    assert (rehearsal.flops, rehearsal.uncounted) == (0, {"new_attention"})
