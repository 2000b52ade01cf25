"""The simple modulators: no effect when new, later that of their formula, by the same hooks."""

import json

import pytest
import torch
from safetensors.torch import save_file

from modulate import ClipInput, Injection, Memory, Modulation
from modulate.errors import CheckpointError, RecipeError
from modulate.interfaces.params import ComponentSpec
from tests.tiny import CLIP, D_FEATURES, GRID, VIDEO, inputs, qwen

MODULATORS = {
    "steering": {},
    "film": {"width": 8},
    "gated_cross_attention": {"width": 16, "heads": 2},
}


def modulation(host, name, params=None, layers=(1, 2), dim=4):
    torch.manual_seed(3)
    return Modulation.for_host(
        host,
        encoder=ComponentSpec(name="heatmap_dur", params={"dim": dim, "sigma": 0.3}),
        modulator=ComponentSpec(name=name, params=MODULATORS[name] if params is None else params),
        injection=Injection(layers=layers),
        d_features=D_FEATURES,
    )


def awake(module):
    """Give every parameter of the writers a value that does something."""
    torch.manual_seed(1)
    for parameter in module.out.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


@pytest.mark.parametrize("name", MODULATORS)
def test_fresh_it_changes_no_logit_and_every_part_gets_a_gradient_once_awake(host, name):
    batch = inputs()
    fresh = modulation(host, name)
    with fresh.attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        assert torch.equal(host(**batch).logits, attachment.model(**batch).logits)
        during = host(**batch).logits
    assert torch.equal(during, host(**batch).logits)
    with awake(fresh).attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        changed = host(**batch).logits
        changed.square().sum().backward()
    assert not torch.equal(during, changed)
    # the heat map's own projection and the modulator's parameters included
    silent = [
        name
        for name, parameter in fresh.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not silent


@pytest.mark.parametrize("name", ["steering", "film"])
def test_a_blank_signal_leaves_the_host_alone(host, name):
    batch = inputs()
    blank = ClipInput(CLIP.signal.blank(), GRID, CLIP.features)
    with (
        awake(modulation(host, name)).attached(host) as attachment,
        attachment.condition([[blank], [blank]]),
    ):
        during = host(**batch).logits
    assert torch.equal(during, host(**batch).logits)


def written(host, module):
    """States after layer 1, bare and modulated, at the visual tokens of the first row."""
    batch = inputs()
    visual = batch["input_ids"][0] == VIDEO
    before = host(**batch, output_hidden_states=True).hidden_states[2][0, visual]
    with module.attached(host) as attachment, attachment.condition([[CLIP], [CLIP]]):
        after = host(**batch, output_hidden_states=True).hidden_states[2][0, visual]
    return before, after


def test_film_scales_and_shifts_the_states_themselves(host):
    module = awake(modulation(host, "film"))
    before, after = written(host, module)
    signal = module.encoder([CLIP.signal], [GRID]).values
    z = torch.nn.functional.gelu(signal @ module.modulator.layers[0][0].weight.T).flatten(0, 1)
    expected = before + module.amplitude[0] * (
        (z @ module.out[0].scale.weight.T) * before + z @ module.out[0].shift.weight.T
    )
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)


def test_cross_attention_reads_the_memory_of_its_own_step_only(host):
    module = awake(modulation(host, "gated_cross_attention"))
    before, after = written(host, module)
    writer = module.out[0]
    memory = module.latents([CLIP]).layers[0].view(GRID.steps, GRID.tokens_per_step, -1)
    expected = []
    for step, states in enumerate(before.view(GRID.steps, GRID.tokens_per_step, -1)):
        query = writer.query(writer.norm(states))
        key = writer.key(memory[step])
        value = writer.value(memory[step])
        read = [
            torch.softmax(query[:, part] @ key[:, part].T / 8**0.5, -1) @ value[:, part]
            for part in (slice(0, 8), slice(8, 16))
        ]
        expected.append(
            states + module.amplitude[0] * torch.tanh(writer.gate) * writer.out(torch.cat(read, -1))
        )
    torch.testing.assert_close(after, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_cross_attention_over_spans_of_different_length_equals_one_by_one(host):
    writer = awake(modulation(host, "gated_cross_attention")).out[0]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(9, 16, generator=generator)
    hidden = torch.randn(4, 32, generator=generator)
    span = torch.tensor([[2, 5], [5, 9], [2, 5], [0, 2]])
    together = writer(latents[:4], hidden, Memory(latents, span))
    alone = [
        writer(
            latents[:1], hidden[index : index + 1], Memory(latents[a:b], torch.tensor([[0, b - a]]))
        )[0]
        for index, (a, b) in enumerate(span.tolist())
    ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-6, rtol=1e-5)


def test_a_given_direction_is_added_with_its_strength_on_every_visual_token(host, tmp_path):
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    save_file({"directions": directions}, tmp_path / "d.safetensors")
    params = {"by": "constant", "directions": str(tmp_path / "d.safetensors"), "strength": 0.5}
    before, after = written(host, modulation(host, "steering", params))
    torch.testing.assert_close(
        after - before, (0.5 * directions[0]).expand_as(before), atol=1e-6, rtol=0
    )


def test_a_saved_modulation_holds_its_directions_and_names_no_file(host, tmp_path):
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    save_file({"directions": directions}, tmp_path / "d.safetensors")
    steered = modulation(host, "steering", {"directions": str(tmp_path / "d.safetensors")})
    steered.save_pretrained(tmp_path / "saved")
    (tmp_path / "d.safetensors").unlink()
    again = Modulation.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.out[1].direction, directions[1]) and again.config.modulator.params == {
        "directions": "saved"
    }
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").read_text() == (
        tmp_path / "saved" / "config.json"
    ).read_text()


def test_a_strangers_configuration_that_names_a_file_is_refused(host, tmp_path):
    save_file({"directions": torch.ones(2, 32)}, tmp_path / "d.safetensors")
    modulation(host, "steering", {"directions": str(tmp_path / "d.safetensors")}).save_pretrained(
        tmp_path / "saved"
    )
    path = tmp_path / "saved" / "config.json"
    path.write_text(
        path.read_text().replace('"saved"', json.dumps(str(tmp_path / "d.safetensors")))
    )
    with pytest.raises(
        CheckpointError,
        match=(
            r"config\.json: directions of steering names the file '.*d\.safetensors'\. A saved"
            r" modulation holds what it needs"
        ),
    ):
        Modulation.from_pretrained(tmp_path / "saved")


def test_directions_that_do_not_fit_are_refused(tmp_path):
    host = qwen()
    with pytest.raises(RecipeError, match="`strength` is that of given directions"):
        modulation(host, "steering", {"strength": 1.0})
    with pytest.raises(
        RecipeError, match=r"starts with numbers in 'out\.0\.direction' that are not finite"
    ):
        modulation(host, "steering", {"directions": "saved"})
    save_file({"directions": torch.ones(1, 32)}, tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \(1, 32\); here \(2, 32\)"):
        modulation(host, "steering", {"directions": str(tmp_path / "d.safetensors")})
    (tmp_path / "no.safetensors").write_text("x")
    with pytest.raises(CheckpointError, match="no safetensors file with a tensor `directions`"):
        modulation(host, "steering", {"directions": str(tmp_path / "no.safetensors")})
