"""Random sequences of API calls on one host, each compared with a slow, independent reference.

The host under test has a twin: a plain copy that never carries an attachment. What the user does to
the host (adapters, hooks, casts) is done to the twin too. Residuals and LoRA are added to the twin
by :mod:`reference`, for one call at a time. ``MODULATE_STATEFUL_STEPS``: number of steps of the
slow test.
"""

import contextlib
import copy
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import peft
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch.utils.checkpoint import CheckpointError

from modulate import ClipInput
from modulate.errors import ConditioningError
from modulate_hosts.contract import reference
from modulate_hosts.contract.families import FAMILIES
from modulate_hosts.contract.suite import Case, close, host_of, strong
from tests.modulation.test_recompute import by_layer, direct
from tests.tiny import cached, our_hooks

SLOW_STEPS = int(os.environ.get("MODULATE_STATEFUL_STEPS", "3000"))
STEPS = 40  # of one example of the slow test
BY_NAME = {family.name: family for family in FAMILIES}

VID = "video"
IMG = "image"
BATCHES = [
    ([VID, (7, 8, 9)],),
    ([VID, (7, 8, 9)], [VID, (10, 11)]),
    ([(12,), VID, (7,)], [(10, 11, 12, 13), VID]),
    ([IMG, (7, 8)], [VID, (9,)]),
    ([VID, (20,), IMG, (21, 22)],),
    ([VID, (7, 8, 9)], [(10, 11)]),
    ([(7, 8), VID], [VID, (9,), VID], [IMG, (10,)]),
]
SINGLE_ROWS = [batch for batch in BATCHES if len(batch) == 1]
LAYERS = {"both": (1, 2), "plain": (0, 2), "last": (1, 3)}
GENERATE: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 2},
    "returned": {"do_sample": True, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 5},
    "static": {"cache_implementation": "static"},
    "scores": {"output_scores": True, "return_dict_in_generate": True},
}
CHECKPOINTING = ["plain", "layers", "whole", "nested", "transformers"]
ONE_ROW = ("lookup", "chunks")  # ways of generating that transformers allows for one row only

batches = st.tuples(st.sampled_from(BATCHES), st.sampled_from(["left", "right"]), st.integers(0, 3))
names = st.sampled_from(sorted(LAYERS))
# For each attachment: whether it is conditioned, and with which rows.
conditionings = st.fixed_dictionaries(
    {name: st.sampled_from(["", "signals", "first row", "no signal", "no rows"]) for name in LAYERS}
)
places = st.sampled_from(["norm", "layers.0", "layers.1", "layers.2.mlp", "layers.3.self_attn"])


@dataclass
class Turn:
    """A prompt in a cache of the host and in one of its twin."""

    host_cache: dict[str, Any]
    twin_cache: dict[str, Any]
    mask: torch.Tensor


@dataclass
class PendingLoss:
    """A loss before its backward, with the gradients that it must give.

    ``parameters``: of all attachments, and those of the host that the user trains. ``exact``:
    nothing was attached or detached since; otherwise an error is right too.
    """

    loss: torch.Tensor
    parameters: list[torch.Tensor]
    expected: list[torch.Tensor | None]
    exact: bool = True


@dataclass
class UserHook:
    handles: list[Any] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """One host, up to three attachments, and a user who changes the host in between."""

    family = BY_NAME["qwen2_5_vl"]

    @initialize()
    def make_hosts(self):
        self.case = Case(self.family)
        self.host = copy.deepcopy(host_of(self.family))
        self.twin = copy.deepcopy(host_of(self.family))
        self.modulations = {
            name: strong(self.host, layers, seed, lora=name != "plain").train()
            for seed, (name, layers) in enumerate(LAYERS.items())
        }
        self.snapshots = {
            name: snapshot(modulation) for name, modulation in self.modulations.items()
        }
        self.attached: dict[str, Any] = {}
        self.pending: list[PendingLoss] = []
        self.turns: list[Turn] = []
        self.hooks: list[UserHook] = []
        self.adapters: list[str] = []
        self.merged = False
        self.embeddings = {}
        self.attach_or_detach("both")

    # --- attaching

    @precondition(lambda self: len(self.pending) < 3)
    @rule(name=names)
    def attach_or_detach(self, name):
        if name in self.attached:
            self.attached.pop(name).detach()
        else:
            self.attached[name] = self.modulations[name].attach(self.host)
        for loss in self.pending:
            loss.exact = False

    @precondition(lambda self: not self.pending)
    @rule(name=names, seed=st.integers(0, 9))
    def learn(self, name, seed):
        """Change a modulation in place, as an optimizer does."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in self.modulations[name].parameters():
                value.add_(0.01 * torch.randn(value.shape, generator=generator))
        self.snapshots[name] = snapshot(self.modulations[name])

    # --- forwards

    def rows(self, batch, how):
        """Return the rows of one conditioning."""
        clips = self.case.clips(batch)
        if how == "no rows":
            return [[] for _ in clips]
        if how == "first row":
            return [clips[0], *[[] for _ in clips[1:]]]
        if how == "no signal":
            for row in clips:
                row[::2] = [ClipInput(None, clip.grid, clip.features) for clip in row[::2]]
        return clips

    def stack(self, batch, how_conditioned, bare=()):
        """Return the rows of each conditioned attachment by name, and the reference's parts."""
        rows = {
            name: self.rows(batch, how_conditioned[name])
            for name in self.attached
            if how_conditioned[name]
        }
        parts = []
        for name in self.attached:
            modulation = self.modulations[name]
            if name in rows:
                length = batch.inputs["input_ids"].shape[1]
                parts.append(
                    (modulation, reference.dense(modulation, rows[name], batch.positions, length))
                )
            elif name not in bare:
                parts.append((modulation, None))
        return rows, parts

    @contextlib.contextmanager
    def conditioned(self, rows_by_name, **more):
        """Condition the attachments with their rows for this block."""
        with contextlib.ExitStack() as stack:
            for name, rows in rows_by_name.items():
                stack.enter_context(self.attached[name].condition(rows, **more))
            yield

    @contextlib.contextmanager
    def reference_twin(self, parts):
        """Add all ``parts`` to the twin for this block, for calls of any kind."""
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for modulation, residuals in parts:
                if residuals is None:
                    stack.enter_context(reference.merged(self.twin, modulation))
                else:
                    stack.enter_context(reference.written(self.twin, modulation, residuals))
            yield

    def expected_logits(self, parts, batch):
        return reference.call_differentiably(
            self.twin, parts, lambda host: host(**batch.inputs).logits
        )

    @rule(spec=batches, how_conditioned=conditionings, grad=st.booleans())
    def forward(self, spec, how_conditioned, grad):
        batch = self.case.write(*spec[0], side=spec[1], first=spec[2])
        rows, parts = self.stack(batch, how_conditioned)
        expected = self.expected_logits(parts, batch)
        with torch.set_grad_enabled(grad), self.conditioned(rows):
            close(self.host(**batch.inputs).logits, expected, 1e-4)

    @rule(spec=batches, bare=st.sets(names))
    def bare(self, spec, bare):
        batch = self.case.write(*spec[0], side=spec[1])
        with contextlib.ExitStack() as blocks:
            for name in bare & self.attached.keys():
                blocks.enter_context(self.attached[name].bare())
            logits = self.host(**batch.inputs).logits
        _, parts = self.stack(batch, dict.fromkeys(LAYERS, ""), bare)
        expected = self.expected_logits(parts, batch)
        if self.attached.keys() <= bare:
            assert torch.equal(logits, expected)
        close(logits, expected)

    @rule(
        kind=st.sampled_from(sorted(GENERATE)),
        spec=batches,
        how_conditioned=conditionings,
        seed=st.integers(0, 99),
    )
    def generate(self, kind, spec, how_conditioned, seed):
        rows = SINGLE_ROWS[spec[2] % len(SINGLE_ROWS)] if kind in ONE_ROW else spec[0]
        batch = self.case.write(*rows, first=spec[2])

        def call(host):
            torch.manual_seed(seed)
            options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
            output = host.generate(**batch.inputs, **options | GENERATE[kind])
            if isinstance(output, torch.Tensor):
                return output
            return output.sequences, *output.scores

        rows, parts = self.stack(batch, how_conditioned)
        with self.reference_twin(parts):
            expected = call(self.twin)
        with torch.no_grad(), self.conditioned(rows):
            generated = call(self.host)
        close(generated, expected)

    @rule(
        spec=batches,
        how_conditioned=conditionings,
        place=places,
        kind=st.sampled_from([RuntimeError, KeyboardInterrupt]),
    )
    def fail(self, spec, how_conditioned, place, kind):
        """Let a third-party hook raise in the middle of a forward."""
        batch = self.case.write(*spec[0], side=spec[1])

        def broken(*args):
            raise kind("third party")

        handle = self.host.get_decoder().get_submodule(place).register_forward_hook(broken)
        try:
            with (
                pytest.raises(kind, match="third party"),
                self.conditioned(self.stack(batch, how_conditioned)[0]),
            ):
                self.host(**batch.inputs)
        finally:
            handle.remove()

    # --- caches

    @rule(
        spec=batches,
        how_conditioned=conditionings,
        more=st.sampled_from(["", "on", "copy", "repeat", "crop"]),
    )
    def first_turn(self, spec, how_conditioned, more):
        batch = self.case.write(*spec[0], first=spec[2])
        rows, parts = self.stack(batch, how_conditioned)
        mask = batch.inputs["attention_mask"]
        with self.reference_twin(parts):
            expected = self.twin(**batch.inputs, use_cache=True)
        with torch.no_grad(), self.conditioned(rows):
            output = self.host(**batch.inputs, use_cache=True)
            close(output.logits, expected.logits)
            turn = Turn(cached(output), cached(expected), mask)
            if more:
                # Continue in the same block.
                if more != "on":
                    turn = self.changed(turn, more)
                self.say(turn, (30, 31), [(modulation, None) for modulation, _ in parts])
        self.turns = [*self.turns[-2:], turn]

    def say(self, turn, ids, parts, blocks=contextlib.nullcontext):
        """Continue both caches with text."""
        self.continue_turn(turn, {"input_ids": torch.tensor([ids] * len(turn.mask))}, parts, blocks)

    def continue_turn(self, turn, inputs, parts, blocks):
        """Continue both caches.

        Positions are passed: without, a host continues those of its last prompt.
        """
        past = turn.mask.shape[1]
        length = inputs["input_ids"].shape[1]
        turn.mask = torch.cat([turn.mask, turn.mask.new_ones(len(turn.mask), length)], 1)
        positions = (turn.mask.cumsum(1) - 1).clamp(min=0)[:, past:]
        if hasattr(self.twin.model, "get_rope_index"):
            # M-RoPE: (axis, row, position).
            positions = positions.expand(3, -1, -1)
        inputs = inputs | dict(attention_mask=turn.mask, position_ids=positions, use_cache=True)
        with self.reference_twin(parts):
            expected = self.twin(**inputs, **turn.twin_cache)
        with torch.no_grad(), blocks():
            close(self.host(**inputs, **turn.host_cache).logits, expected.logits)

    @precondition(lambda self: self.turns)
    @rule(which=st.integers(0, 9), ids=st.sampled_from([(30,), (31, 32, 33)]), blocks=st.booleans())
    def next_turn(self, which, ids, blocks):
        turn = self.turns[which % len(self.turns)]
        rows = {name: [[]] * len(turn.mask) for name in self.attached if blocks}
        self.say(
            turn,
            ids,
            [(self.modulations[name], None) for name in self.attached],
            lambda: self.conditioned(rows),
        )

    @precondition(lambda self: self.turns)
    @rule(which=st.integers(0, 9), part=st.sampled_from([VID, IMG]), how_conditioned=conditionings)
    def next_clip(self, which, part, how_conditioned):
        """Continue with a turn that has a clip of its own in every row."""
        turn = self.turns[which % len(self.turns)]
        past = turn.mask.shape[1]
        if past > 150:
            return
        batch = self.case.write(*[[part, (30, 31)]] * len(turn.mask), first=5)
        rows, _ = self.stack(batch, how_conditioned)
        positions = [
            [[position + past for position in clip] for clip in row] for row in batch.positions
        ]
        length = past + batch.inputs["input_ids"].shape[1]
        parts = []
        for name in self.attached:
            modulation = self.modulations[name]
            residuals = None
            if name in rows:
                residuals = reference.dense(modulation, rows[name], positions, length)
            parts.append((modulation, residuals))
        self.continue_turn(turn, batch.inputs, parts, lambda: self.conditioned(rows))

    @precondition(lambda self: self.turns)
    @rule(
        which=st.integers(0, 9),
        how=st.sampled_from(["crop", "copy", "reorder", "repeat"]),
        n=st.integers(1, 3),
    )
    def change_cache(self, which, how, n):
        turn = self.changed(self.turns[which % len(self.turns)], how, n)
        if how == "copy":
            self.turns = [*self.turns[-2:], turn]

    def changed(self, turn, how, n=1):
        """Change both caches as users and decoding strategies do; a copy is another turn."""
        if how == "copy":
            return Turn(*map(copy.deepcopy, (turn.host_cache, turn.twin_cache, turn.mask)))
        if how == "repeat" and len(turn.mask) > 2:
            return turn
        for cache in [*turn.host_cache.values(), *turn.twin_cache.values()]:
            if how == "crop":
                cache.crop(-n)
            elif how == "reorder":
                cache.reorder_cache(torch.arange(len(turn.mask)).flip(0))
            elif how == "repeat":
                cache.batch_repeat_interleave(2)
        if how == "crop":
            turn.mask = turn.mask[:, :-n]
        elif how == "reorder":
            turn.mask = turn.mask.flip(0)
        elif how == "repeat":
            turn.mask = turn.mask.repeat_interleave(2, 0)
        return turn

    # --- gradients

    @rule(
        specs=st.lists(batches, min_size=2, max_size=2),
        how_conditioned=conditionings,
        kind=st.sampled_from(CHECKPOINTING),
        seen=st.sampled_from(["ids", "embeddings"]),
    )
    def losses(self, specs, how_conditioned, kind, seen):
        """Run two forwards whose graphs live at the same time.

        Equal prompts are run on the same embeddings.
        """
        for spec in specs:
            self.loss(spec, how_conditioned, kind, seen)
            how_conditioned = dict(
                zip(how_conditioned, reversed(how_conditioned.values()), strict=True)
            )

    @precondition(lambda self: len(self.pending) < 4)
    @rule(
        spec=batches,
        how_conditioned=conditionings,
        kind=st.sampled_from(CHECKPOINTING),
        seen=st.sampled_from(["ids", "embeddings"]),
    )
    def loss(self, spec, how_conditioned, kind, seen):
        batch = self.case.write(*spec[0], side=spec[1])
        rows, parts = self.stack(batch, how_conditioned)
        inputs = batch.inputs if seen == "ids" else self.embedded(batch)
        more = {"positions": batch.mask} if seen == "embeddings" else {}
        if more and any(how == "first row" for how in how_conditioned.values()):
            # Positions apply to all rows, so all must be conditioned.
            return
        run = lambda host: host(**inputs, use_cache=False).logits.square().mean()
        ours = [
            parameter for name in self.attached for parameter in self.modulations[name].parameters()
        ]
        users = trained_parameters(self.host)
        expected = reference.call_differentiably(self.twin, parts, run)
        gradients = ()
        if expected.requires_grad:
            gradients = torch.autograd.grad(
                expected, ours + trained_parameters(self.twin), allow_unused=True
            )
        with self.conditioned(rows, **more):
            loss = self.checkpointed(kind, run)
        close(loss, expected)
        if loss.requires_grad and ours + users:
            self.pending.append(PendingLoss(loss, ours + users, list(gradients)))

    def embedded(self, batch):
        """Return the inputs of the language model: the same tensors for equal batches."""
        pixels = [value for name, value in batch.inputs.items() if "pixel" in name]
        key = (
            batch.inputs["input_ids"].shape,
            str(batch.inputs["input_ids"].flatten().tolist()),
            pixels[0].sum().item() if pixels else 0,
        )
        if key not in self.embeddings:
            seen: list[dict[str, Any]] = []
            handle = self.twin.get_decoder().register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
            )
            with torch.no_grad():
                self.twin(**batch.inputs)
            handle.remove()
            self.embeddings[key] = dict(
                inputs_embeds=seen[0]["inputs_embeds"].clone(),
                position_ids=seen[0].get("position_ids"),
                attention_mask=batch.inputs["attention_mask"],
            )
        return self.embeddings[key]

    def checkpointed(self, kind, run):
        if kind == "transformers":
            enable = (
                getattr(self.host, "activation_checkpointing_enable", None)
                or self.host.gradient_checkpointing_enable
            )
            enable(dict(use_reentrant=False))
            self.host.train()
            try:
                return run(self.host)
            finally:
                self.host.eval()
                (
                    getattr(self.host, "activation_checkpointing_disable", None)
                    or self.host.gradient_checkpointing_disable
                )()
                # Left on, it would change the recomputations of other graphs.
                self.host.disable_input_require_grads()
        if kind == "whole":
            return direct(run, self.host)
        with by_layer(self.host, kind != "plain"):
            return direct(self.layered, run) if kind == "nested" else run(self.host)

    def layered(self, run):
        with by_layer(self.host):
            return run(self.host)

    @precondition(lambda self: self.pending)
    @rule(inside=st.sampled_from(["", "bare", "condition"]), late=st.booleans())
    def backwards(self, inside, late):
        """Run the backwards of all losses, one after the other."""
        while self.pending:
            self.backward([len(self.pending) - 1 if late else 0], inside, drop=False)

    @precondition(lambda self: self.pending)
    @rule(
        which=st.lists(st.integers(0, 9), min_size=1, max_size=2),
        inside=st.sampled_from(["", "bare", "condition"]),
        drop=st.booleans(),
    )
    def backward(self, which, inside, drop):
        chosen = {number % len(self.pending) for number in which}
        losses = [self.pending[index] for index in sorted(chosen)]
        self.pending = [loss for index, loss in enumerate(self.pending) if index not in chosen]
        if drop:
            return
        parameters = list(
            dict.fromkeys(parameter for loss in losses for parameter in loss.parameters)
        )
        with self.meanwhile(inside):
            try:
                gradients = torch.autograd.grad(
                    sum(loss.loss for loss in losses), parameters, allow_unused=True
                )
            except (ConditioningError, CheckpointError):
                assert not all(loss.exact for loss in losses)
                return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            expected = [
                value
                for loss in losses
                for other, value in zip(loss.parameters, loss.expected, strict=False)
                if other is parameter and value is not None
            ]
            zeros = torch.zeros_like(parameter)
            assert gradient is None or expected or not gradient.any()
            close(zeros if gradient is None else gradient, sum(expected, zeros))

    @contextlib.contextmanager
    def meanwhile(self, inside):
        """Enter another block of each attachment; it must not change what is recomputed."""
        batch = self.case.write(*BATCHES[1], first=2)
        with contextlib.ExitStack() as blocks:
            for attachment in self.attached.values():
                if inside == "bare":
                    blocks.enter_context(attachment.bare())
                elif inside:
                    blocks.enter_context(attachment.condition(self.case.clips(batch)))
            if inside == "condition" and self.attached:
                with torch.no_grad():
                    self.host(**batch.inputs)
            yield

    # --- the user

    @precondition(lambda self: not self.pending)
    @rule(place=places, prepend=st.booleans())
    def hook(self, place, prepend):
        """Add a hook that changes a module's output, or remove one if there are two."""
        if len(self.hooks) > 1:
            for handle in self.hooks.pop(0).handles:
                handle.remove()
            return

        def scale(module, args, output):
            if isinstance(output, tuple):
                return output[0] * 0.9, *output[1:]
            return output * 0.9

        modules = [host.get_decoder().get_submodule(place) for host in (self.host, self.twin)]
        if prepend and place.count(".") == 1:
            # On a layer, a hook before ours would change what the residual is added to.
            prepend = False
        self.hooks.append(
            UserHook([module.register_forward_hook(scale, prepend=prepend) for module in modules])
        )

    @precondition(lambda self: len(self.adapters) < 2 and not self.merged and not self.pending)
    @rule(one=st.booleans(), wrapped=st.booleans())
    def adapter(self, one, wrapped):
        name = f"user{len(self.adapters)}"
        self.adapters.append(name)
        targets = r".*(language_model|text_model)\.layers\.\d\..*\.(q_proj|v_proj|down_proj)"
        for host in (self.host, self.twin):
            torch.manual_seed(len(self.adapters))
            config = peft.LoraConfig(
                r=2,
                target_modules=targets.replace(r"\d", "1") if one else targets,
                init_lora_weights=False,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if wrapped:
                    # The wrapper that it returns is not needed: the host's layers are adapted.
                    peft.get_peft_model(host, config, adapter_name=name)
                else:
                    peft.inject_adapter_in_model(config, host, adapter_name=name)
        self.embeddings.clear()

    @precondition(lambda self: self.adapters and not self.pending)
    @rule(
        how=st.sampled_from(
            ["enable", "disable", "merge", "unmerge", "first", "last", "train", "freeze", "remove"]
        )
    )
    def change_adapters(self, how):
        if how in ("enable", "disable", "first", "last") and self.merged:
            return
        for host in (self.host, self.twin):
            layers = [
                (name, module)
                for name, module in host.named_modules()
                if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
            ]
            for name, layer in layers:
                change(host, name, layer, how, self.adapters)
        self.merged = {"merge": True, "unmerge": False, "remove": False}.get(how, self.merged)
        if how == "remove":
            self.adapters.clear()

    @rule(spec=batches)
    def copied(self, spec):
        batch = self.case.write(*spec[0], side=spec[1])
        assert torch.equal(
            copy.deepcopy(self.host)(**batch.inputs).logits, self.twin(**batch.inputs).logits
        )

    @precondition(lambda self: not self.pending)
    @rule(
        spec=batches,
        how_conditioned=conditionings,
        how=st.sampled_from(["double", "learns", "float"]),
    )
    def forward_of_a_changed_host(self, spec, how_conditioned, how):
        """Cast the host, or let it learn, for one forward."""
        batch = self.case.write(*spec[0], side=spec[1])
        rows, parts = self.stack(batch, how_conditioned)
        expected = self.expected_logits(parts, batch)
        flags = [parameter.requires_grad for parameter in self.host.parameters()]
        if how == "learns":
            self.host.requires_grad_(True)
        elif how == "double":
            self.host.double()
        inputs = {
            name: value.double() if how == "double" and value.is_floating_point() else value
            for name, value in batch.inputs.items()
        }
        try:
            with self.conditioned(rows):
                close(self.host(**inputs).logits.float(), expected)
        finally:
            self.host.float()
            for parameter, flag in zip(self.host.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)

    # --- what holds after every step

    @invariant()
    def the_host_is_the_users(self):
        ours = dict(self.host.named_parameters())
        twins = dict(self.twin.named_parameters())
        flags = lambda parameters: {
            name: parameter.requires_grad for name, parameter in parameters.items()
        }
        assert flags(ours) == flags(twins)
        assert list(self.host.state_dict()) == list(self.twin.state_dict())
        for name, value in ours.items():
            assert torch.equal(value, twins[name]) and value.grad is None, name
        assert list(map(type, self.host.modules())) == list(map(type, self.twin.modules()))

    @invariant()
    def the_modulations_are_what_they_were(self):
        for name, modulation in self.modulations.items():
            current = snapshot(modulation)
            for key, value in self.snapshots[name].items():
                assert torch.equal(value, current[key]), name
            assert all(parameter.requires_grad for parameter in modulation.parameters())

    @invariant()
    def nothing_is_left_after_detaching(self):
        if not self.attached:
            assert not our_hooks(self.host)

    def teardown(self):
        for attachment in getattr(self, "attached", {}).values():
            attachment.detach()
        if hasattr(self, "host"):
            self.attached = {}
            self.nothing_is_left_after_detaching()
            self.the_host_is_the_users()


def trained_parameters(host):
    return [parameter for parameter in host.parameters() if parameter.requires_grad]


def snapshot(modulation):
    return {name: value.detach().clone() for name, value in modulation.named_parameters()}


def change(host, name, layer, how, adapters):
    """Change one adapted layer as PEFT's own wrappers change all."""
    on_layer = [adapter for adapter in adapters if adapter in layer.lora_A]
    if how in ("enable", "disable"):
        layer.enable_adapters(how == "enable")
    elif how in ("first", "last"):
        layer.set_adapter(on_layer[0 if how == "first" else -1])
    elif how in ("train", "freeze"):
        layer.requires_grad_(False)
        for parameter_name, parameter in layer.named_parameters():
            if "lora_" in parameter_name:
                parameter.requires_grad_(how == "train")
    elif how == "merge" and not layer.merged and not layer.disable_adapters:
        layer.merge()
    elif how == "unmerge" and layer.merged:
        layer.unmerge()
    elif how == "remove":
        if layer.merged:
            layer.unmerge()
        parent = host.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], layer.base_layer)


def run(name, examples, steps, **more):
    machine = type(f"Machine_{name}", (Machine,), {"family": BY_NAME[name]})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            **more,
        ),
    )


HOSTS = ("qwen2_5_vl", "smolvlm")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", HOSTS)
def test_a_few_random_steps(name):
    run(name, 4, 16, derandomize=True, phases=[Phase.generate])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", HOSTS)
def test_many_random_steps(name):
    run(name, max(1, SLOW_STEPS // STEPS // len(HOSTS)), STEPS)
