"""Lines of forwards: what is written where branches, rows and kinds of tokens differ.

Rows of all hosts are in modulate_hosts.contract.lines.
"""

import pytest
import torch

from modulate.errors import ConditioningError
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.generation import generate, one_prompt
from modulate_hosts.contract.lines import FIRST
from modulate_hosts.contract.suite import Case
from tests.tiny import cached, selecting


@pytest.fixture
def llava():
    return Case(next(family for family in FAMILIES if family.name == "llava_onevision"))


def hints(kind, batch):
    name = {"last": "prompt", "mask": "mask"}.get(kind)
    return {name: batch.inputs["attention_mask"]} if name else {}


def states(host, call):
    """What comes out of the first injected layer in every forward of ``call``."""
    found = []
    handle = (
        host.get_decoder()
        .layers[1]
        .register_forward_hook(
            lambda m, a, out: found.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    )
    call()
    handle.remove()
    return found


@pytest.mark.parametrize("kind", ["visual", "text", "last", "mask"])
@pytest.mark.parametrize(
    "more",
    [{}, {"negative_prompt_ids": torch.tensor([[1, 30, 31]])}, {"use_cache": False}],
    ids=["", "negative", "no cache"],
)
@torch.no_grad()
def test_guidance_writes_in_the_branch_with_the_clip_alone(llava, kind, more):
    batch, clips = one_prompt(llava)
    made = selecting(llava.host, kind)
    given = hints(kind, batch)
    call = lambda: generate(llava.host, batch, guidance_scale=1.5, **more)
    bare = states(llava.host, call)
    with made.attached(llava.host) as attachment, attachment.condition(clips, **given):
        got = states(llava.host, call)
    assert len(bare) == len(got) == 8
    assert got[0].shape == bare[0].shape and not torch.allclose(bare[0], got[0], atol=1e-3)
    assert torch.equal(
        bare[1], got[1]
    )  # the first pass without the clip; later ones are fed tokens that differ by then


@pytest.mark.parametrize("kind", ["visual", "text", "last", "mask"])
@torch.no_grad()
def test_rows_that_must_be_told_apart_may_not_leave(llava, kind):
    batch = llava.write(FIRST, FIRST)
    clips = llava.clips(batch)
    made = selecting(llava.host, kind)

    def leave():
        with (
            made.attached(llava.host) as attachment,
            attachment.condition(clips, **hints(kind, batch)),
        ):
            cache = cached(llava.host(**batch.inputs, use_cache=True))
            for held in cache.values():
                held.batch_select_indices(torch.tensor([1]))
            llava.host(input_ids=torch.tensor([[9]]), **cache)

    if kind == "visual":
        leave()
    else:
        with pytest.raises(
            ConditioningError,
            match=(
                r"was of 2 rows and is of 1 now; which rows are left cannot be known, so residuals"
                r" cannot be told apart"
            ),
        ):
            leave()


@torch.no_grad()
def test_a_row_that_leaves_before_its_tokens_came_is_refused(llava):
    two = llava.write(FIRST, FIRST)
    with (
        pytest.raises(
            ConditioningError, match=r"is of 1 now; .*, and not all visual tokens had come"
        ),
        llava.conditioned([[*c, *c] for c in llava.clips(two)]),
    ):
        cache = cached(llava.host(**two.inputs, use_cache=True))
        for held in cache.values():
            held.batch_select_indices(torch.tensor([1]))
        llava.host(input_ids=torch.tensor([[9]]), **cache)
