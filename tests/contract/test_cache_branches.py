"""Residuals in branching caches and batches that shrink, for every selection of tokens.

The rows for all hosts are in modulate_hosts.contract.cache_branches.
"""

import pytest
import torch

from modulate.errors import ConditioningError
from modulate_hosts.contract.cache_branches import FIRST_TURN
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.generation import generate, one_prompt
from modulate_hosts.contract.suite import Case
from tests.tiny import cached, selecting


@pytest.fixture
def llava():
    return Case(next(family for family in FAMILIES if family.name == "llava_onevision"))


def hints(kind, batch):
    name = {"last": "prompt", "mask": "mask"}.get(kind)
    return {name: batch.inputs["attention_mask"]} if name else {}


def states(host, call):
    """Return the output of the first injected layer in each forward of ``call``."""
    outputs = []
    handle = (
        host.get_decoder()
        .layers[1]
        .register_forward_hook(
            lambda module, args, out: outputs.append(
                (out[0] if isinstance(out, tuple) else out).clone()
            )
        )
    )
    call()
    handle.remove()
    return outputs


@pytest.mark.parametrize("kind", ["visual", "text", "last", "mask"])
@pytest.mark.parametrize(
    "more",
    [{}, {"negative_prompt_ids": torch.tensor([[1, 30, 31]])}, {"use_cache": False}],
    ids=["", "negative", "no cache"],
)
@torch.no_grad()
def test_guidance_writes_in_the_branch_with_the_clip_alone(llava, kind, more):
    batch, clips = one_prompt(llava)
    modulation = selecting(llava.host, kind)
    call = lambda: generate(llava.host, batch, guidance_scale=1.5, **more)
    bare = states(llava.host, call)
    with (
        modulation.attached(llava.host) as attachment,
        attachment.condition(clips, **hints(kind, batch)),
    ):
        got = states(llava.host, call)
    assert len(bare) == len(got) == 8
    assert got[0].shape == bare[0].shape and not torch.allclose(bare[0], got[0], atol=1e-3)
    # The first forward of the branch without the clip. Later ones get tokens that differ by then.
    assert torch.equal(bare[1], got[1])


@pytest.mark.parametrize("kind", ["visual", "text", "last", "mask"])
@torch.no_grad()
def test_rows_with_residuals_of_their_own_may_not_leave_the_batch(llava, kind):
    batch = llava.write(FIRST_TURN, FIRST_TURN)
    clips = llava.clips(batch)
    modulation = selecting(llava.host, kind)

    def leave():
        with (
            modulation.attached(llava.host) as attachment,
            attachment.condition(clips, **hints(kind, batch)),
        ):
            cache = cached(llava.host(**batch.inputs, use_cache=True))
            for kv_cache in cache.values():
                kv_cache.batch_select_indices(torch.tensor([1]))
            llava.host(input_ids=torch.tensor([[9]]), **cache)

    if kind == "visual":
        leave()
    else:
        with pytest.raises(
            ConditioningError,
            match=(
                r"had 2 rows and has 1 now; which rows are left cannot be known, so residuals"
                r" cannot be told apart"
            ),
        ):
            leave()


@torch.no_grad()
def test_a_row_that_leaves_before_its_visual_tokens_is_refused(llava):
    two = llava.write(FIRST_TURN, FIRST_TURN)
    with (
        pytest.raises(
            ConditioningError, match=r"has 1 now; .*, and not all visual tokens had come"
        ),
        llava.conditioned([[*clips, *clips] for clips in llava.clips(two)]),
    ):
        cache = cached(llava.host(**two.inputs, use_cache=True))
        for kv_cache in cache.values():
            kv_cache.batch_select_indices(torch.tensor([1]))
        llava.host(input_ids=torch.tensor([[9]]), **cache)
