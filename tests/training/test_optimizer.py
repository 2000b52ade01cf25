"""What an optimizer is given and what it does in one step, on a modulation of a small host."""

import pytest
import torch
from accelerate import Accelerator

from modulate.config.recipe import load_recipe
from modulate.config.sections import Stage, Training
from modulate.training.optimizer import (
    MOMENTUM,
    Optimizer,
    one_cycle,
    parameter_groups,
    schedule_for,
    select,
    warmup_cosine,
)
from modulate.training.trainer import train
from tests.tiny import fresh, qwen


@pytest.fixture(scope="module")
def adapted():
    """A modulation that has LoRA."""
    return fresh(qwen(), lora=True)


def stage(*train, **more):
    return Stage(name="one", train=train, epochs=1, **more)


def training(**more):
    return Training(stages=(stage("modulator"),), **more)


@pytest.mark.parametrize(
    ("train", "lora", "others"),
    [(("modulator",), False, True), (("lora",), True, False), (("modulator", "lora"), True, True)],
)
def test_a_stage_trains_what_it_names_and_nothing_else(adapted, train, lora, others):
    select(adapted, stage(*train))
    flags = {name: p.requires_grad for name, p in adapted.named_parameters()}
    assert {flag for name, flag in flags.items() if name.startswith("lora.")} == {lora}
    assert {flag for name, flag in flags.items() if not name.startswith("lora.")} == {others}


def test_only_matrices_that_are_neither_lora_nor_norms_decay_and_lora_may_have_a_rate_of_its_own(
    adapted,
):
    select(adapted, stage("modulator", "lora"))
    names = {id(p): name for name, p in adapted.named_parameters()}
    for lora_lr, rate in ((None, 3e-4), (1e-2, 1e-2)):
        groups = parameter_groups(
            adapted, stage("modulator", "lora", lr=3e-4, lora_lr=lora_lr), 0.5
        )
        found = {
            names[id(p)]: (group["weight_decay"], group["lr"])
            for group in groups
            for p in group["params"]
        }
        assert found.keys() == set(names.values())
        for name, parameter in adapted.named_parameters():
            plain = parameter.ndim < 2 or name.endswith("bias") or "norm" in name
            assert found[name] == (
                (0.0, rate) if name.startswith("lora.") else (0.0 if plain else 0.5, 3e-4)
            )
    select(adapted, stage("lora"))
    assert {
        names[id(p)].partition(".")[0]
        for group in parameter_groups(adapted, stage("lora"), 0.5)
        for p in group["params"]
    } == {"lora"}


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    factor = warmup_cosine(4, 12)
    assert [factor(k) for k in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [factor(k) for k in (4, 8, 12, 13)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert warmup_cosine(0, 1)(0) == 1.0 and warmup_cosine(3, 3)(2) == 1.0


def test_a_warm_up_takes_at_most_half_of_a_stage_and_momentum_moves_in_one_cycle_alone():
    course = schedule_for(training(warmup_steps=20), 8)
    assert [course(k) for k in range(5)] == [
        (0.25, MOMENTUM),
        (0.5, MOMENTUM),
        (0.75, MOMENTUM),
        (1.0, MOMENTUM),
        (1.0, MOMENTUM),
    ] and MOMENTUM == 0.9
    assert schedule_for(training(warmup_steps=2), 8)(0) == (0.5, 0.9)
    assert [schedule_for(training(schedule="one_cycle"), 20)(k) for k in range(20)] == [
        one_cycle(20, 0.5)(k) for k in range(20)
    ]


@pytest.fixture
def optimizer(adapted):
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        parameter.grad = None
    return Optimizer.make(
        Accelerator(cpu=True),
        adapted,
        stage("modulator", lr=0.1),
        training(warmup_steps=2, weight_decay=0.0),
        10,
    )


def given(optimizer, value):
    trained = [p for p in optimizer.modulation.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, value)
    return trained, [p.detach().clone() for p in trained]


def test_a_step_moves_what_is_trained_by_the_schedule_s_rate_and_clears_the_gradients(optimizer):
    trained, before = given(optimizer, 2.0)
    assert (
        optimizer.step(0, 1.0, usable=True) == []
        and optimizer.rate == pytest.approx(0.05)
        and optimizer.scale == 1.0
    )
    for parameter, was in zip(trained, before, strict=True):
        assert (
            torch.allclose(parameter, was - 0.05, atol=1e-3) and parameter.grad is None
        )  # Adam's first step has the rate's own length
    assert optimizer.adamw.param_groups[0]["betas"] == (0.9, 0.999)


def test_gradients_are_clipped_to_their_common_norm(optimizer):
    given(optimizer, 2.0)
    optimizer.step(0, 0.5, usable=True)
    moments = optimizer.moments()
    norm = (
        sum(
            float(value.square().sum())
            for key, value in moments.items()
            if key.startswith("exp_avg/")
        )
        ** 0.5
    )
    assert norm == pytest.approx(0.5 * (1 - MOMENTUM), rel=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_step_is_taken_with_gradients_that_are_not_finite_and_they_are_named(optimizer, bad):
    trained, before = given(optimizer, 2.0)
    name, first = next(
        (name, p) for name, p in optimizer.modulation.named_parameters() if p.requires_grad
    )
    first.grad.view(-1)[0] = bad
    assert optimizer.step(0, 1.0, usable=True) == [name]
    assert (
        all(torch.equal(p, was) and p.grad is None for p, was in zip(trained, before, strict=True))
        and optimizer.moments() == {}
    )


def test_no_step_is_taken_with_a_loss_that_is_of_no_use(optimizer):
    trained, before = given(optimizer, 2.0)
    assert optimizer.step(0, 1.0, usable=False) == []
    assert all(
        torch.equal(p, was) and p.grad is None for p, was in zip(trained, before, strict=True)
    )


def test_moments_are_given_back_as_they_were(optimizer, adapted):
    given(optimizer, 2.0)
    optimizer.step(0, 1.0, usable=True)
    state = {key: value.clone() for key, value in optimizer.moments().items()}
    other = Optimizer.make(
        Accelerator(cpu=True), adapted, stage("modulator", lr=0.1), training(), 10
    )
    assert other.moments() == {}
    other.restore(state)
    assert other.moments().keys() == state.keys() and all(
        torch.equal(value, state[key]) for key, value in other.moments().items()
    )
    assert {key.partition("/")[0] for key in state} == {"step", "exp_avg", "exp_avg_sq"}


def as_torch(ours, steps, **more):
    """Rates and momenta are those of torch's own one cycle."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3.0e-4, total_steps=steps, **more
    )
    for step in range(steps):
        group = optimizer.param_groups[0]
        factor, momentum = ours(step)
        assert (3.0e-4 * factor, momentum) == pytest.approx(
            (group["lr"], group["betas"][0]), rel=1e-9
        )
        optimizer.step()
        if step < steps - 1:
            schedule.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 37, 200])
def test_one_cycle_is_torch_s(steps):
    as_torch(one_cycle(steps), steps)


def scheduled(steps, warmup):
    recipe = load_recipe(
        "gazeqwen_tiny", ["training.schedule=one_cycle", f"training.warmup_steps={warmup}"]
    )
    return schedule_for(recipe.training, steps)


@pytest.mark.parametrize("steps", [1, 3, 4, 10, 37, 200])
@pytest.mark.parametrize("warmup", [0, 20])
def test_one_cycle_is_torch_s_with_its_peak_where_the_released_code_puts_it(steps, warmup):
    rising = min(warmup / steps, 0.5)
    as_torch(scheduled(steps, warmup), steps, pct_start=rising)


@pytest.mark.parametrize(("steps", "warmup"), [(2, 20), (10, 1)])
def test_one_cycle_may_begin_with_its_peak(steps, warmup):
    """Where torch's own divides by 0."""
    assert scheduled(steps, warmup)(0) == (1.0, 0.85)


def test_the_optimizer_is_given_the_schedule_s_rate_and_momentum(begin, monkeypatch):
    run, pipeline = begin("training.schedule=one_cycle", "training.validate_every=null")
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *args: (
            seen.append([(g["lr"], g["betas"]) for g in self.param_groups]),
            step(self, *args),
        )[1],
    )
    train(run, pipeline)
    expected = [
        (stage.lr * one_cycle(n, 0.5)(k)[0], (one_cycle(n, 0.5)(k)[1], 0.999))
        for stage, n in zip(run.recipe.training.stages, (4, 2))
        for k in range(n)
    ]
    assert [groups[0] for groups in seen] == expected and all(
        len(set(groups)) == 1 for groups in seen
    )
