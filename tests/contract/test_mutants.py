"""The contract can fail: each injector broken on purpose is caught by the rows listed for it."""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch

from modulate.errors import ModulateError
from modulate.hosts.kv_cache import cache_length, find_cache
from modulate.modulation import attachment as inject
from modulate.modulation import conditioning, write_plan
from modulate.modulation import recompute as passes
from modulate.modulation import token_positions as localize
from modulate.modulation import visual_token_tracker as tracker
from modulate_hosts.contract import cache_branches as test_cache_branches
from modulate_hosts.contract import coexistence as test_coexistence
from modulate_hosts.contract import embeddings as test_embeddings
from modulate_hosts.contract import forward as test_forward
from modulate_hosts.contract import generation as test_generation
from modulate_hosts.contract import training as test_training
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import Case, NotApplicable
from modulate_hosts.llava_onevision import LlavaOnevision
from tests.modulation import test_recompute as test_passes

BY_NAME = {family.name: family for family in FAMILIES}


def after_plan(monkeypatch, change):
    """Change every plan before the layers follow it: ``change(conditioning, given, plan)``."""
    plan = conditioning.Conditioning.plan
    monkeypatch.setattr(
        conditioning.Conditioning,
        "plan",
        lambda self, given: change(self, given, plan(self, given)),
    )


def off_by_one_token(monkeypatch):
    after_plan(monkeypatch, lambda self, given, plan: plan and replace(plan, index=plan.index + 1))


def applied_at_decode_steps(monkeypatch):
    def change(self, given, plan):
        ids = given["input_ids"]
        if plan is not None or ids.shape[1] > 1:
            return plan
        everything = torch.arange(len(ids))
        return write_plan.WritePlan(
            self.latents, everything, torch.zeros_like(everything), tuple(ids.shape)
        )

    after_plan(monkeypatch, change)


def applied_twice(monkeypatch):
    after_plan(
        monkeypatch,
        lambda self, given, plan: (
            plan and replace(plan, index=plan.index.repeat(2), token=plan.token.repeat(2))
        ),
    )


def first_row_for_every_row(monkeypatch):
    initialize = conditioning.Conditioning.__init__

    def first(self, *args):
        initialize(self, *args)
        self.maps = [self.maps[0]] * len(self.maps)

    monkeypatch.setattr(conditioning.Conditioning, "__init__", first)


def beam_expansion_ignored(monkeypatch):
    monkeypatch.setattr(
        tracker.VisualTokenTracker,
        "rows_of",
        lambda self, batch: [index % len(self.expected) for index in range(batch)],
    )


def chunk_boundary_ignored(monkeypatch):
    """Every forward counts its visual tokens from 0, and nobody checks the count."""
    monkeypatch.setattr(tracker.VisualTokenTracker, "_continued_history", lambda self, tokens: None)
    monkeypatch.setattr(tracker.VisualTokenTracker, "finish", lambda self: None)


def first_forward_only(monkeypatch):
    """Call order decides: the first forward is the prompt, all later ones are decoding."""
    after_plan(monkeypatch, lambda self, given, plan: plan if self.tracker.forwards == 1 else None)


def last_clip_first(monkeypatch):
    after_plan(
        monkeypatch, lambda self, given, plan: plan and replace(plan, token=plan.token.flip(0))
    )


def next_layer(monkeypatch):
    install = inject.Attachment._install

    def shifted(self):
        layers = self.host.layers
        self.host.layers = torch.nn.ModuleList([*layers[1:], layers[0]])
        install(self)
        self.host.layers = layers

    monkeypatch.setattr(inject.Attachment, "_install", shifted)


def after_other_hooks(monkeypatch):
    register = torch.nn.Module.register_forward_hook
    monkeypatch.setattr(
        torch.nn.Module,
        "register_forward_hook",
        lambda self, hook, **more: register(
            self, hook, **more | ({"prepend": False} if isinstance(hook, inject.Hook) else {})
        ),
    )


def recompute_by_the_last_plan(monkeypatch):
    """Every recomputation counts as one of the last forward."""
    latest = []
    original = passes.RecomputeTracker.begin
    monkeypatch.setattr(
        passes.RecomputeTracker,
        "begin",
        lambda self, passed: (latest.append(passed), original(self, passed)),
    )
    monkeypatch.setattr(passes.RecomputeTracker, "begin_recomputation", lambda self: None)
    monkeypatch.setattr(passes.RecomputeTracker, "_recomputed", lambda self, backward: latest[-1])


def recomputed_is_bare(monkeypatch):
    """Every recomputation counts as one of an unknown forward."""
    monkeypatch.setattr(passes.RecomputeTracker, "_recomputed", lambda self, backward: None)


def run_again_is_new(monkeypatch):
    """The recomputation of a whole forward counts as a new forward of the current block."""
    monkeypatch.setattr(passes.RecomputeTracker, "is_recomputing", lambda self: False)


def first_of_the_checkpoint(monkeypatch):
    """The first of several forwards in one checkpoint stands for all of them."""
    monkeypatch.setattr(passes.CheckpointRegion, "next", lambda self, running: self.passes[0])


def recomputed(test, *more):
    """Return a test of recomputed layers in the form of a row."""
    return lambda case: test(test_passes.Scene(), *more)


def separators_are_places(monkeypatch):
    """The clip's last placeholder gets the residual of the last place."""
    monkeypatch.setattr(
        LlavaOnevision, "placeholders", lambda self, grid: [*range(grid.tokens), grid.tokens - 1]
    )


def positions_ignored(monkeypatch):
    locate = localize.TokenLocator.locate

    def shifted(self, arguments):
        if self.positions is not None:
            self = replace(self, positions=self.positions.roll(1, 1))
        return locate(self, arguments)

    monkeypatch.setattr(localize.TokenLocator, "locate", shifted)


def types_ignored(monkeypatch):
    """Generated placeholders count as visual."""
    monkeypatch.setattr(tracker.VisualTokenTracker, "_check_surplus", lambda *args: None)
    monkeypatch.setattr(localize, "_token_types", lambda *args: ("", None))
    after_plan(monkeypatch, lambda self, given, plan: plan or applied_to_placeholders(self, given))


def applied_to_placeholders(self, given):
    ids = given["input_ids"]
    index = torch.isin(ids.flatten(), torch.tensor(self.locator.visual_ids)).nonzero()[:, 0]
    return (
        write_plan.WritePlan(self.latents, index, torch.zeros_like(index), tuple(ids.shape))
        if len(index)
        else None
    )


def copies_keep_their_hooks(monkeypatch):
    monkeypatch.setattr(inject.Hook, "__deepcopy__", lambda self, memo: self)


def hooks_stay(monkeypatch):
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "remove", lambda self: None)


def turns_count_on(monkeypatch):
    """A second turn counts the tokens of the first as its own."""
    monkeypatch.setattr(tracker, "_numbers", itertools.repeat(1))


def copies_know_nothing(monkeypatch):
    """The contents of a cache are known only for the object itself, not for its copies."""
    held = weakref.WeakKeyDictionary()
    monkeypatch.setattr(
        tracker, "histories_on", lambda cache: held.get(cache, {}) if cache is not None else {}
    )
    monkeypatch.setattr(tracker.CacheSamples, "find", lambda self, cache, past: None)
    monkeypatch.setattr(
        tracker,
        "note_history",
        lambda cache, number, history, active: held.update({cache: {number: history}}),
    )


def later_clips_are_text(monkeypatch):
    """Everything after a complete prompt counts as generated."""
    monkeypatch.setattr(tracker.VisualTokenTracker, "_check_surplus", lambda *args: None)


def branches_are_prompts(monkeypatch):
    """Positions alone decide, even in a branch without clips."""
    after_plan(
        monkeypatch,
        lambda self, given, plan: plan or applied_where_the_prompt_has_them(self, given),
    )


def applied_where_the_prompt_has_them(self, given):
    ids = given["input_ids"]
    past = cache_length(find_cache(given))
    index = (torch.arange(past, past + ids.shape[1]) < 8).nonzero()[:, 0]
    return (
        write_plan.WritePlan(self.latents, index, torch.zeros_like(index), tuple(ids.shape))
        if len(index)
        else None
    )


CAUGHT_BY = {
    off_by_one_token: [
        test_forward.test_only_visual_tokens_differ_and_by_the_residual,
        test_forward.test_several_videos,
        test_generation.test_greedy_with_and_without_cache,
    ],
    applied_at_decode_steps: [
        test_generation.test_greedy_with_and_without_cache,
        test_generation.test_sampling_and_several_sequences,
    ],
    applied_twice: [
        test_forward.test_only_visual_tokens_differ_and_by_the_residual,
        test_forward.test_bfloat16,
        test_coexistence.test_third_party_hooks,
    ],
    first_row_for_every_row: [
        test_forward.test_rows_of_different_length_padded_left,
        test_forward.test_rows_of_different_length_padded_right,
        test_generation.test_beams,
    ],
    beam_expansion_ignored: [
        test_generation.test_beams,
        test_generation.test_sampling_and_several_sequences,
        test_embeddings.test_generating_from_inputs_embeds,
    ],
    chunk_boundary_ignored: [test_generation.test_chunked_prefill],
    first_forward_only: [
        test_generation.test_chunked_prefill,
        test_generation.test_position_not_call_order,
        test_generation.test_greedy_with_and_without_cache,
    ],
    last_clip_first: [
        test_forward.test_several_videos,
        test_forward.test_several_images,
        test_forward.test_image_and_video,
    ],
    next_layer: [
        test_forward.test_only_visual_tokens_differ_and_by_the_residual,
        test_forward.test_recorded_outputs,
    ],
    after_other_hooks: [
        test_forward.test_recorded_outputs,
        test_coexistence.test_third_party_hooks,
    ],
    recompute_by_the_last_plan: [
        test_training.test_two_forwards_then_two_backwards,
        recomputed(test_passes.test_two_forwards_on_one_tensor_of_embeddings, test_passes.whole, 1),
        recomputed(test_passes.test_bare_forwards_have_gradients_of_their_own, test_passes.layers),
    ],
    recomputed_is_bare: [
        test_training.test_two_forwards_then_two_backwards,
        recomputed(
            test_passes.test_two_forwards_on_one_tensor_of_embeddings, test_passes.layers, 1
        ),
        recomputed(test_passes.test_backward_inside_another_conditioning, test_passes.states),
    ],
    run_again_is_new: [
        recomputed(test_passes.test_two_forwards_on_one_tensor_of_embeddings, test_passes.whole, 1),
        recomputed(test_passes.test_backward_inside_another_conditioning, test_passes.whole),
    ],
    first_of_the_checkpoint: [
        recomputed(test_passes.test_several_forwards_inside_one_checkpoint, 1)
    ],
    separators_are_places: [
        (test_forward.test_only_visual_tokens_differ_and_by_the_residual, "llava_onevision")
    ],
    positions_ignored: [
        test_embeddings.test_inputs_embeds_with_positions,
        test_embeddings.test_generating_from_inputs_embeds,
    ],
    types_ignored: [test_generation.test_a_generated_placeholder_is_text],
    copies_keep_their_hooks: [test_coexistence.test_copies],
    turns_count_on: [test_generation.test_a_second_turn_with_a_clip],
    copies_know_nothing: [test_cache_branches.test_a_second_clip_in_the_same_block],
    later_clips_are_text: [test_cache_branches.test_a_second_clip_in_the_same_block],
    branches_are_prompts: [test_cache_branches.test_guidance],
}


@pytest.mark.parametrize("mutant", CAUGHT_BY, ids=lambda mutant: mutant.__name__)
def test_a_broken_injector_is_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    for row in CAUGHT_BY[mutant]:
        row, name = row if isinstance(row, tuple) else (row, "qwen2_5_vl")
        try:
            with pytest.raises(
                (AssertionError, ModulateError, RuntimeError, IndexError, pytest.fail.Exception)
            ):
                # A separate host: a row that fails may leave its own hooks behind.
                row(Case(replace(BY_NAME[name]), lora=True))
        except NotApplicable as reason:
            # The row does not apply with this transformers, so it proves nothing about the mutant.
            pytest.skip(str(reason))


def test_hooks_left_behind_are_seen(monkeypatch):
    host = BY_NAME["qwen2_5_vl"].build()
    case = Case(replace(BY_NAME["qwen2_5_vl"], build=lambda: host))
    hooks_stay(monkeypatch)
    with pytest.raises(AssertionError):
        test_coexistence.test_detached(case)
