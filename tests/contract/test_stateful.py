"""Random steps of the API on one host, each against a slow reference that knows nothing of how
modulate works.

The host under test has a twin: a plain copy that never carries an attachment. What the user does to
the host (adapters, hooks, casts) is done to the twin too. Residuals and LoRA are put into the twin
by :mod:`reference`, for one call at a time. ``MODULATE_STATEFUL_STEPS`` says how many steps the
long form takes.
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

LONG = int(os.environ.get("MODULATE_STATEFUL_STEPS", "3000"))
STEPS = 40  # of one example of the long form
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
SOLO = [batch for batch in BATCHES if len(batch) == 1]
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
KINDS = ["plain", "layers", "whole", "nested", "transformers"]  # of checkpointing
ALONE = ("lookup", "chunks")  # for one row

batches = st.tuples(st.sampled_from(BATCHES), st.sampled_from(["left", "right"]), st.integers(0, 3))
names = st.sampled_from(sorted(LAYERS))
# Of each attachment: whether it is conditioned, and with which rows.
heard = st.fixed_dictionaries(
    {name: st.sampled_from(["", "signals", "first row", "no signal", "no rows"]) for name in LAYERS}
)
places = st.sampled_from(["norm", "layers.0", "layers.1", "layers.2.mlp", "layers.3.self_attn"])


@dataclass
class Turn:
    """A prompt that both hosts hold in caches of their own."""

    ours: dict[str, Any]
    plain: dict[str, Any]
    mask: torch.Tensor


@dataclass
class Waiting:
    """A loss whose backward has not come yet, with the gradients that it must give.

    ``parameters``: of all attachments, and of the host where the user lets it learn. ``exact``:
    nothing was attached or detached since; otherwise an error will do as well.
    """

    loss: torch.Tensor
    parameters: list[torch.Tensor]
    expected: list[torch.Tensor | None]
    exact: bool = True


@dataclass
class UserHook:
    handles: list[Any] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """One host, up to three attachments, and a user who does other things as well."""

    family = BY_NAME["qwen2_5_vl"]

    @initialize()
    def begin(self):
        self.case = Case(self.family)
        self.host = copy.deepcopy(host_of(self.family))
        self.twin = copy.deepcopy(host_of(self.family))
        self.mods = {
            name: strong(self.host, layers, i, lora=name != "plain").train()
            for i, (name, layers) in enumerate(LAYERS.items())
        }
        self.values = {name: snapshot(modulation) for name, modulation in self.mods.items()}
        self.attached: dict[str, Any] = {}
        self.waiting: list[Waiting] = []
        self.turns: list[Turn] = []
        self.hooks: list[UserHook] = []
        self.adapters: list[str] = []
        self.merged = False
        self.grids = {}
        self.attach_or_detach("both")

    # --- attaching

    @precondition(lambda self: len(self.waiting) < 3)
    @rule(name=names)
    def attach_or_detach(self, name):
        if name in self.attached:
            self.attached.pop(name).detach()
        else:
            self.attached[name] = self.mods[name].attach(self.host)
        for loss in self.waiting:
            loss.exact = False

    @precondition(lambda self: not self.waiting)
    @rule(name=names, seed=st.integers(0, 9))
    def learn(self, name, seed):
        """Change a modulation in place, as an optimizer does."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in self.mods[name].parameters():
                value.add_(0.01 * torch.randn(value.shape, generator=generator))
        self.values[name] = snapshot(self.mods[name])

    # --- forwards

    def rows(self, batch, how):
        """The rows of one conditioning."""
        clips = self.case.clips(batch)
        if how == "no rows":
            return [[] for _ in clips]
        if how == "first row":
            return [clips[0], *[[] for _ in clips[1:]]]
        if how == "no signal":
            return [
                [
                    ClipInput(None, clip.grid, clip.features) if i % 2 == 0 else clip
                    for i, clip in enumerate(row)
                ]
                for row in clips
            ]
        return clips

    def stack(self, batch, heard, bare=()):
        """(conditionings by name, parts for the reference) of all attachments."""
        rows = {name: self.rows(batch, heard[name]) for name in self.attached if heard[name]}
        parts = []
        for name in self.attached:
            if name in rows:
                parts.append(
                    (
                        self.mods[name],
                        reference.dense(
                            self.mods[name],
                            rows[name],
                            batch.positions,
                            batch.inputs["input_ids"].shape[1],
                        ),
                    )
                )
            elif name not in bare:
                parts.append((self.mods[name], None))
        return rows, parts

    @contextlib.contextmanager
    def under(self, rows, **more):
        with contextlib.ExitStack() as stack:
            for name, some in rows.items():
                stack.enter_context(self.attached[name].condition(some, **more))
            yield

    @contextlib.contextmanager
    def plainly(self, parts):
        """The twin with all of ``parts`` written into it, for calls of any kind."""
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for modulation, values in parts:
                put = (
                    reference.merged(self.twin, modulation)
                    if values is None
                    else reference.written(self.twin, modulation, values)
                )
                stack.enter_context(put)
            yield

    @rule(spec=batches, heard=heard, grad=st.booleans())
    def forward(self, spec, heard, grad):
        batch = self.case.write(*spec[0], side=spec[1], first=spec[2])
        rows, parts = self.stack(batch, heard)
        expected = reference.call_differentiably(self.twin, parts, lambda host: host(**batch.inputs).logits)
        with torch.set_grad_enabled(grad), self.under(rows):
            close(self.host(**batch.inputs).logits, expected, 1e-4)

    @rule(spec=batches, bare=st.sets(names))
    def bare(self, spec, bare):
        batch = self.case.write(*spec[0], side=spec[1])
        with contextlib.ExitStack() as blocks:
            for name in bare & self.attached.keys():
                blocks.enter_context(self.attached[name].bare())
            found = self.host(**batch.inputs).logits
        _, parts = self.stack(batch, dict.fromkeys(LAYERS, ""), bare)
        expected = reference.call_differentiably(self.twin, parts, lambda host: host(**batch.inputs).logits)
        if self.attached.keys() <= bare:
            assert torch.equal(found, expected)
        close(found, expected)

    @rule(
        kind=st.sampled_from(sorted(GENERATE)), spec=batches, heard=heard, seed=st.integers(0, 99)
    )
    def generate(self, kind, spec, heard, seed):
        rows = SOLO[spec[2] % len(SOLO)] if kind in ALONE else spec[0]
        batch = self.case.write(*rows, first=spec[2])

        def call(host):
            torch.manual_seed(seed)
            made = host.generate(
                **batch.inputs,
                **dict(max_new_tokens=3, min_new_tokens=3, do_sample=False) | GENERATE[kind],
            )
            return made if isinstance(made, torch.Tensor) else (made.sequences, *made.scores)

        rows, parts = self.stack(batch, heard)
        with self.plainly(parts):
            expected = call(self.twin)
        with torch.no_grad(), self.under(rows):
            found = call(self.host)
        close(found, expected)

    @rule(
        spec=batches,
        heard=heard,
        place=places,
        kind=st.sampled_from([RuntimeError, KeyboardInterrupt]),
    )
    def fail(self, spec, heard, place, kind):
        """A foreign hook throws in the middle of a forward."""
        batch = self.case.write(*spec[0], side=spec[1])

        def broken(*args):
            raise kind("foreign")

        handle = self.host.get_decoder().get_submodule(place).register_forward_hook(broken)
        try:
            with pytest.raises(kind, match="foreign"), self.under(self.stack(batch, heard)[0]):
                self.host(**batch.inputs)
        finally:
            handle.remove()

    # --- caches

    @rule(spec=batches, heard=heard, more=st.sampled_from(["", "on", "copy", "repeat", "crop"]))
    def first_turn(self, spec, heard, more):
        batch = self.case.write(*spec[0], first=spec[2])
        rows, parts = self.stack(batch, heard)
        mask = batch.inputs["attention_mask"]
        with self.plainly(parts):
            plain = self.twin(**batch.inputs, use_cache=True)
        with torch.no_grad(), self.under(rows):
            ours = self.host(**batch.inputs, use_cache=True)
            close(ours.logits, plain.logits)
            turn = Turn(cached(ours), cached(plain), mask)
            if more:  # in the same block
                if more != "on":
                    turn = self.changed(turn, more)
                self.say(turn, (30, 31), [(m, None) for m, _ in parts])
        self.turns = [*self.turns[-2:], turn]

    def say(self, turn, ids, parts, blocks=contextlib.nullcontext):
        """Continue both caches with text."""
        self.go_on(turn, {"input_ids": torch.tensor([ids] * len(turn.mask))}, parts, blocks)

    def go_on(self, turn, inputs, parts, blocks):
        """Continue both caches; positions are given, since a host remembers those of its last
        prompt.
        """
        past = turn.mask.shape[1]
        length = inputs["input_ids"].shape[1]
        turn.mask = torch.cat([turn.mask, turn.mask.new_ones(len(turn.mask), length)], 1)
        places = (turn.mask.cumsum(1) - 1).clamp(min=0)[:, past:]
        places = places.expand(3, -1, -1) if hasattr(self.twin.model, "get_rope_index") else places
        inputs = inputs | dict(attention_mask=turn.mask, position_ids=places, use_cache=True)
        with self.plainly(parts):
            expected = self.twin(**inputs, **turn.plain)
        with torch.no_grad(), blocks():
            close(self.host(**inputs, **turn.ours).logits, expected.logits)

    @precondition(lambda self: self.turns)
    @rule(which=st.integers(0, 9), ids=st.sampled_from([(30,), (31, 32, 33)]), blocks=st.booleans())
    def next_turn(self, which, ids, blocks):
        turn = self.turns[which % len(self.turns)]
        rows = {name: [[]] * len(turn.mask) for name in self.attached if blocks}
        self.say(
            turn, ids, [(self.mods[name], None) for name in self.attached], lambda: self.under(rows)
        )

    @precondition(lambda self: self.turns)
    @rule(which=st.integers(0, 9), part=st.sampled_from([VID, IMG]), heard=heard)
    def next_clip(self, which, part, heard):
        """A later turn with a clip of its own in every row."""
        turn = self.turns[which % len(self.turns)]
        past = turn.mask.shape[1]
        if past > 150:
            return
        batch = self.case.write(*[[part, (30, 31)]] * len(turn.mask), first=5)
        rows, _ = self.stack(batch, heard)
        places = [[[p + past for p in clip] for clip in row] for row in batch.positions]
        length = past + batch.inputs["input_ids"].shape[1]
        parts = [
            (
                self.mods[name],
                (
                    reference.dense(self.mods[name], rows[name], places, length)
                    if name in rows
                    else None
                ),
            )
            for name in self.attached
        ]
        self.go_on(turn, batch.inputs, parts, lambda: self.under(rows))

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
            return Turn(*(copy.deepcopy(vars(turn)[name]) for name in ("ours", "plain", "mask")))
        if how == "repeat" and len(turn.mask) > 2:
            return turn
        for cache in [*turn.ours.values(), *turn.plain.values()]:
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
        some=st.lists(batches, min_size=2, max_size=2),
        heard=heard,
        kind=st.sampled_from(KINDS),
        seen=st.sampled_from(["ids", "embeddings"]),
    )
    def losses(self, some, heard, kind, seen):
        """Two forwards whose graphs live at the same time; on the same embeddings where the prompts
        are the same.
        """
        for spec in some:
            self.loss(spec, heard, kind, seen)
            heard = dict(zip(heard, reversed(heard.values()), strict=True))

    @precondition(lambda self: len(self.waiting) < 4)
    @rule(
        spec=batches,
        heard=heard,
        kind=st.sampled_from(KINDS),
        seen=st.sampled_from(["ids", "embeddings"]),
    )
    def loss(self, spec, heard, kind, seen):
        batch = self.case.write(*spec[0], side=spec[1])
        rows, parts = self.stack(batch, heard)
        inputs = batch.inputs if seen == "ids" else self.embedded(batch)
        more = {"positions": batch.mask} if seen == "embeddings" else {}
        if more and any(how == "first row" for how in heard.values()):
            return  # positions speak for all rows
        run = lambda host: host(**inputs, use_cache=False).logits.square().mean()
        ours = [p for name in self.attached for p in self.mods[name].parameters()]
        users, plain = (
            [p for p in host.parameters() if p.requires_grad] for host in (self.host, self.twin)
        )
        expected = reference.call_differentiably(self.twin, parts, run)
        wanted = (
            torch.autograd.grad(expected, ours + plain, allow_unused=True)
            if expected.requires_grad
            else []
        )
        with self.under(rows, **more):
            found = self.checkpointed(kind, run)
        close(found, expected)
        if found.requires_grad and ours + users:
            self.waiting.append(Waiting(found, ours + users, list(wanted)))

    def embedded(self, batch):
        """What the host gives its language model: always the same tensors for the same batch."""
        key = (
            batch.inputs["input_ids"].shape,
            batch.inputs["input_ids"].flatten().tolist().__str__(),
            next((v.sum().item() for k, v in batch.inputs.items() if "pixel" in k), 0),
        )
        if key not in self.grids:
            got: list[dict[str, Any]] = []
            handle = self.twin.get_decoder().register_forward_pre_hook(
                lambda m, a, kwargs: got.append(kwargs), with_kwargs=True
            )
            with torch.no_grad():
                self.twin(**batch.inputs)
            handle.remove()
            self.grids[key] = dict(
                inputs_embeds=got[0]["inputs_embeds"].clone(),
                position_ids=got[0].get("position_ids"),
                attention_mask=batch.inputs["attention_mask"],
            )
        return self.grids[key]

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
                # left on, it would change what is recomputed of other graphs
                self.host.disable_input_require_grads()
        if kind == "whole":
            return direct(run, self.host)
        with by_layer(self.host, kind != "plain"):
            return direct(self.layered, run) if kind == "nested" else run(self.host)

    def layered(self, run):
        with by_layer(self.host):
            return run(self.host)

    @precondition(lambda self: self.waiting)
    @rule(inside=st.sampled_from(["", "bare", "condition"]), late=st.booleans())
    def backwards(self, inside, late):
        """All losses, one after the other."""
        while self.waiting:
            self.backward([len(self.waiting) - 1 if late else 0], inside, drop=False)

    @precondition(lambda self: self.waiting)
    @rule(
        which=st.lists(st.integers(0, 9), min_size=1, max_size=2),
        inside=st.sampled_from(["", "bare", "condition"]),
        drop=st.booleans(),
    )
    def backward(self, which, inside, drop):
        chosen = {i % len(self.waiting) for i in which}
        losses = [self.waiting[i] for i in sorted(chosen)]
        self.waiting = [loss for i, loss in enumerate(self.waiting) if i not in chosen]
        if drop:
            return
        parameters = list(dict.fromkeys(p for loss in losses for p in loss.parameters))
        with self.meanwhile(inside):
            try:
                found = torch.autograd.grad(
                    sum(loss.loss for loss in losses), parameters, allow_unused=True
                )
            except (ConditioningError, CheckpointError):
                assert not all(loss.exact for loss in losses)
                return
        for parameter, value in zip(parameters, found):
            wanted = [
                e
                for loss in losses
                for p, e in zip(loss.parameters, loss.expected)
                if p is parameter and e is not None
            ]
            assert (value is None) or wanted or not value.any()
            close(
                torch.zeros_like(parameter) if value is None else value,
                sum(wanted, torch.zeros_like(parameter)),
            )

    @contextlib.contextmanager
    def meanwhile(self, inside):
        """Inside of another block of each attachment: what is recomputed is not changed by it."""
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

    @precondition(lambda self: not self.waiting)
    @rule(place=places, prepend=st.booleans())
    def hook(self, place, prepend):
        """A hook that changes what a module returns; by turns one is put on and taken off."""
        if len(self.hooks) > 1:
            for handle in self.hooks.pop(0).handles:
                handle.remove()
            return
        scale = lambda m, a, out: (out[0] * 0.9, *out[1:]) if isinstance(out, tuple) else out * 0.9
        modules = [host.get_decoder().get_submodule(place) for host in (self.host, self.twin)]
        if prepend and place.count(".") == 1:
            prepend = False  # before ours: it would change what the residual is added to
        self.hooks.append(
            UserHook([module.register_forward_hook(scale, prepend=prepend) for module in modules])
        )

    @precondition(lambda self: len(self.adapters) < 2 and not self.merged and not self.waiting)
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
                    peft.get_peft_model(
                        host, config, adapter_name=name
                    )  # what it returns is around the host
                else:
                    peft.inject_adapter_in_model(config, host, adapter_name=name)
        self.grids.clear()

    @precondition(lambda self: self.adapters and not self.waiting)
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

    @precondition(lambda self: not self.waiting)
    @rule(spec=batches, heard=heard, how=st.sampled_from(["double", "learns", "float"]))
    def undone(self, spec, heard, how):
        """Cast the host, or let it learn, for one forward."""
        batch = self.case.write(*spec[0], side=spec[1])
        rows, parts = self.stack(batch, heard)
        expected = reference.call_differentiably(self.twin, parts, lambda host: host(**batch.inputs).logits)
        flags = [p.requires_grad for p in self.host.parameters()]
        if how == "learns":
            self.host.requires_grad_(True)
        elif how == "double":
            self.host.double()
        inputs = {
            k: v.double() if how == "double" and v.is_floating_point() else v
            for k, v in batch.inputs.items()
        }
        try:
            with self.under(rows):
                close(self.host(**inputs).logits.float(), expected)
        finally:
            self.host.float()
            for parameter, flag in zip(self.host.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)

    # --- what holds after every step

    @invariant()
    def the_host_is_the_users(self):
        ours, plain = (dict(host.named_parameters()) for host in (self.host, self.twin))
        assert {name: value.requires_grad for name, value in ours.items()} == {
            name: value.requires_grad for name, value in plain.items()
        }
        assert list(self.host.state_dict()) == list(self.twin.state_dict())
        for name, value in ours.items():
            assert torch.equal(value, plain[name]) and value.grad is None, name
        assert [type(m) for m in self.host.modules()] == [type(m) for m in self.twin.modules()]

    @invariant()
    def the_modulations_are_what_they_were(self):
        for name, modulation in self.mods.items():
            now = snapshot(modulation)
            assert all(torch.equal(value, now[key]) for key, value in self.values[name].items()), (
                name
            )
            assert all(p.requires_grad for p in modulation.parameters())

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


def snapshot(modulation):
    return {name: value.detach().clone() for name, value in modulation.named_parameters()}


def change(host, name, layer, how, adapters):
    """Do one thing to one adapted layer, as PEFT's own wrappers do to all."""
    there = [adapter for adapter in adapters if adapter in layer.lora_A]
    if how in ("enable", "disable"):
        layer.enable_adapters(how == "enable")
    elif how in ("first", "last"):
        layer.set_adapter(there[0 if how == "first" else -1])
    elif how in ("train", "freeze"):
        layer.requires_grad_(False)
        for parameter in [p for n, p in layer.named_parameters() if "lora_" in n]:
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
    run(name, max(1, LONG // STEPS // len(HOSTS)), STEPS)
