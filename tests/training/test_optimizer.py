"""What an optimizer is given and what it does in one step, on a modulation of a small host."""

import pytest
import torch
from accelerate import Accelerator

from modulate.config.recipe import load_recipe
from modulate.config.sections import Stage, Training
from modulate.errors import RecipeError
from modulate.training.optimizer import (
    MOMENTUM,
    Optimizer,
    accelerator_for,
    one_cycle,
    parameter_groups,
    schedule_for,
    select,
    smoothed_cross_entropy,
    warmup_cosine,
)
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
    moments = optimizer.state()
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
        and optimizer.state() == {}
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
    state = {key: value.clone() for key, value in optimizer.state().items()}
    other = Optimizer.make(
        Accelerator(cpu=True), adapted, stage("modulator", lr=0.1), training(), 10
    )
    assert other.state() == {}
    other.restore(state)
    assert other.state().keys() == state.keys() and all(
        torch.equal(value, state[key]) for key, value in other.state().items()
    )
    assert {key.partition("/")[0] for key in state} == {"step", "exp_avg", "exp_avg_sq"}


def test_smoothing_goes_over_the_options_that_are_offered():
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, 0.0, 1.0]])
    p = logits.softmax(1)
    nll = -torch.stack([p[0, 1].log(), p[1, 0].log()])
    uniform = -torch.stack([p[0, :2].log().mean(), p[1].log().mean()])
    for smoothing in (0.0, 0.1, 0.5):
        loss = smoothed_cross_entropy(logits, torch.tensor([1, 0]), smoothing)
        assert loss.item() == pytest.approx(
            ((1 - smoothing) * nll + smoothing * uniform).mean().item()
        )
    assert smoothed_cross_entropy(torch.tensor([[torch.nan, 1.0]]), torch.tensor([1]), 0.0).isnan()


def test_a_precision_that_the_cpu_lacks_is_refused(tmp_path):
    recipe = load_recipe("gazeqwen_tiny", ["training.precision=fp16"])
    with pytest.raises(
        RecipeError,
        match=r"training\.precision is fp16, which needs a GPU, and the host is on the CPU",
    ):
        accelerator_for(recipe, torch.device("cpu"), tmp_path)
    made = accelerator_for(load_recipe("gazeqwen_tiny"), torch.device("cpu"), tmp_path)
    assert (made.mixed_precision, made.device.type, made.log_with) == ("no", "cpu", [])


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


def test_processes_joined_for_another_kind_of_device_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    with pytest.raises(
        RecipeError, match="The processes of this run are joined for cuda, and the host is on cpu"
    ):
        accelerator_for(load_recipe("gazeqwen_tiny"), torch.device("cpu"), tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", 1)
    accelerator_for(load_recipe("gazeqwen_tiny"), torch.device("cpu"), tmp_path)
