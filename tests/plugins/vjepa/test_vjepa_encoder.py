import pytest
import torch
from safetensors.torch import load_file

from modulate.errors import ConditioningError, RecipeError
from modulate_vjepa.encoder import PRESETS, VJepaConfig, VJepaEncoder
from modulate_vjepa.weights import load_encoder
from tests.paths import FIXTURES

GOLDEN = FIXTURES / "vjepa2_1_tiny.safetensors"
TINY = VJepaConfig(dim=24, depth=3, heads=2)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_reference_outputs_are_reproduced(kind: str) -> None:
    tensors = load_file(GOLDEN)
    with torch.no_grad():
        out = load_encoder(GOLDEN, None)(tensors[kind])
    assert out.shape == tensors[f"{kind}.out"].shape
    assert (out - tensors[f"{kind}.out"]).abs().max() < 1e-4


def test_one_frame_and_the_same_frame_twice_take_different_embeddings() -> None:
    torch.manual_seed(0)
    encoder = VJepaEncoder(TINY)
    frame = torch.randn(1, 3, 1, 32, 32)
    with torch.no_grad():
        assert (encoder(frame) - encoder(frame.expand(-1, -1, 2, -1, -1))).abs().max() > 1e-2


def test_the_channels_left_over_by_the_three_parts_are_not_rotated() -> None:
    cos, sin = VJepaEncoder(VJepaConfig(dim=32, depth=1, heads=2)).rotation(
        (2, 3, 4), like=torch.zeros(())
    )
    assert cos.shape == sin.shape == (24, 16)
    assert (cos[:, 12:] == 1).all() and (sin[:, 12:] == 0).all()
    assert (sin[1:, :12] != 0).any(dim=1).all()


def test_rows_and_columns_span_the_pretraining_grid_and_times_do_not() -> None:
    _, sin = VJepaEncoder(VJepaConfig(dim=12, depth=1, heads=2)).rotation(
        (3, 5, 7), like=torch.zeros(())
    )
    last = sin[-1].double()  # parts of two channels: one frequency, 1
    expected = torch.tensor([2.0, 2.0, 15.0, 15.0, 15.0, 15.0]).double().sin()
    assert torch.allclose(last, expected, atol=1e-6)


def test_a_single_row_or_column_of_patches_has_finite_angles() -> None:
    encoder = VJepaEncoder(TINY)
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 2, 16, 16)).isfinite().all()


def test_an_odd_number_of_channels_per_head_is_rotated_like_the_even_part_of_it() -> None:
    encoder = VJepaEncoder(VJepaConfig(dim=14, depth=1, heads=2))
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 2, 32, 32)).isfinite().all()


def test_the_presets_have_the_published_levels_and_hidden_widths() -> None:
    assert {name: config.levels for name, config in PRESETS.items()} == {
        "base": (2, 5, 8, 11),
        "large": (5, 11, 17, 23),
        "giant": (9, 19, 29, 39),
        "gigantic": (11, 23, 37, 47),
    }
    assert [config.hidden for config in PRESETS.values()] == [3072, 4096, 6144, 8192]


def test_a_level_is_the_output_of_its_block_under_its_own_norm() -> None:
    torch.manual_seed(0)
    encoder = VJepaEncoder(TINY).eval()
    clip = torch.randn(1, 3, 2, 32, 32)
    seen: list[torch.Tensor] = []
    encoder.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.nn.init.constant_(encoder.norms_block[1].bias, 3.0)
    with torch.no_grad():
        early = encoder(clip, layer=1)
        _ = encoder(clip)
    assert torch.equal(early, encoder.norms_block[1](seen[0])) and early.mean() > 2
    assert len(encoder.norms_block) == 3


def test_the_encoder_can_be_trained() -> None:
    encoder = VJepaEncoder(TINY)
    encoder(torch.randn(1, 3, 2, 32, 32)).square().sum().backward()
    still = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert still == {
        name
        for name, _ in encoder.named_parameters()
        if name.startswith(("patch_embed_img", "img_mod", "norms_block.0", "norms_block.1"))
    }


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 3, 32, 32), (1, 3, 2, 30, 32), (1, 3, 0, 32, 32), (3, 2, 32, 32), (1, 1, 2, 32, 32)],
)
def test_a_clip_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConditioningError, match="got"):
        VJepaEncoder(TINY)(torch.zeros(shape))


def test_a_layer_without_a_norm_is_refused() -> None:
    with pytest.raises(ConditioningError, match="have a norm"):
        VJepaEncoder(VJepaConfig(dim=24, depth=3, heads=2, levels=(2,)))(
            torch.zeros(1, 3, 2, 32, 32), layer=1
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 5},
        {"depth": 0},
        {"heads": 8},
        {"levels": (0, 1)},
        {"levels": (2, 1)},
        {"levels": (-1, 2)},
        {"mlp_ratio": 0},
    ],
)
def test_contradicting_dimensions_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        VJepaConfig(**({"dim": 24, "depth": 3, "heads": 2} | wrong))  # type: ignore[arg-type]


def test_the_state_dict_has_exactly_the_names_of_the_reference() -> None:
    names = {k.removeprefix("encoder.") for k in load_file(GOLDEN) if k.startswith("encoder.")}
    assert set(VJepaEncoder(VJepaConfig(dim=48, depth=12, heads=3)).state_dict()) == names
