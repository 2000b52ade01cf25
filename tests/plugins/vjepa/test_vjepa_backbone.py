import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from modulate import plugins
from modulate.errors import CheckpointError, MissingFileError, RecipeError, VideoError
from modulate.interfaces.components import FrameFeatures
from modulate_vjepa.backbone import VJepa21
from modulate_vjepa.encoder import VJepaConfig, VJepaEncoder
from tests.paths import FIXTURES

GOLDEN = FIXTURES / "vjepa2_1_tiny.safetensors"
DIMS: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 2}
RANDOM: dict[str, Any] = {"weights": "random", "dims": DIMS, "image_size": 32}


def build(**params: Any) -> VJepa21:
    return VJepa21(VJepa21.Params.model_validate(params))


def noise(frames: int, height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (frames, height, width, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )


def encode(frames: torch.Tensor, times: list[float], **params: Any) -> FrameFeatures:
    return build(**(RANDOM | params))(frames, times)


def test_the_backbone_is_registered_under_its_name() -> None:
    assert plugins.get("backbone", "vjepa2_1") is VJepa21


def test_an_even_number_of_frames_gives_the_mean_time_of_each_pair() -> None:
    out = encode(noise(4), [0.0, 1.0, 5.0, 8.0])
    assert out.values.shape == (2, 2, 2, 24) and out.times == (0.5, 6.5)


def test_a_last_frame_without_partner_keeps_its_own_time() -> None:
    out = encode(noise(3), [0.0, 1.0, 5.0])
    assert out.values.shape[0] == 2 and out.times == (0.5, 5.0)


def test_a_last_frame_without_partner_is_repeated_once_and_no_more() -> None:
    frames = noise(3)
    repeated = encode(torch.cat([frames, frames[-1:]]), [0.0, 1.0, 5.0, 6.0])
    assert torch.equal(encode(frames, [0.0, 1.0, 5.0]).values, repeated.values)


def test_one_frame_goes_through_the_image_embedding_at_its_own_time() -> None:
    backbone = build(**RANDOM)
    frame = noise(1)
    out = backbone(frame, [2.5])
    assert out.values.shape == (1, 2, 2, 24) and out.times == (2.5,)
    torch.nn.init.constant_(backbone.encoder.video_mod_embed, 5.0)
    assert torch.equal(backbone(frame, [2.5]).values, out.values)
    torch.nn.init.normal_(backbone.encoder.img_mod_embed)
    assert not torch.allclose(backbone(frame, [2.5]).values, out.values)


def test_rows_and_columns_are_where_they_are_in_the_frame() -> None:
    backbone = build(**RANDOM)
    seen: list[torch.Tensor] = []
    backbone.encoder.patch_embed.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    frames = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    frames[:, :32, 48:] = 255
    frames[1, :, :, 1:] = 0
    backbone(frames, [0.0, 1.0])
    (clip,) = seen
    assert clip.shape == (1, 3, 2, 32, 32)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    black = -0.485 / 0.229
    assert torch.allclose(clip[0, :, 0, 4, 28], white, atol=1e-5)
    assert clip[0, 0, 0, 28, 4] == pytest.approx(black, abs=1e-5) == clip[0, 0, 1, 4, 4].item()
    assert clip[0, 1, 1, 4, 28] == pytest.approx(-0.456 / 0.224, abs=1e-5)


def test_features_are_the_tokens_in_the_order_time_row_column() -> None:
    backbone = build(**RANDOM)
    frames = noise(4, 32, 32)
    clip = (
        frames.permute(3, 0, 1, 2).float() / 255
        - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
    ) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    tokens = backbone.encoder(clip[None])[0]
    assert torch.allclose(
        backbone(frames, [0.0, 1.0, 2.0, 3.0]).values[1, 0, 1], tokens[4 + 1], atol=1e-5
    )


def test_the_backbone_is_frozen_and_keeps_no_graph() -> None:
    backbone = build(**RANDOM)
    assert (
        not any(parameter.requires_grad for parameter in backbone.parameters())
        and not backbone(noise(2), [0.0, 1.0]).values.requires_grad
    )


def test_dimensions_are_read_from_the_metadata_of_the_weights() -> None:
    backbone = build(weights=str(GOLDEN), image_size=64)
    assert (
        backbone.encoder.config == VJepaConfig(dim=48, depth=12, heads=3)
        and backbone.d_features == 48
    )


def test_dimensions_are_read_from_the_configuration_beside_the_weights(tmp_path: Path) -> None:
    encoder = VJepaEncoder(VJepaConfig(**DIMS))
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"config\.json"):
        build(weights=str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(DIMS | {"extra": 1}))
    backbone = build(weights=str(tmp_path / "model.safetensors"), image_size=32)
    assert torch.equal(backbone.encoder.blocks[1].mlp.fc1.weight, encoder.blocks[1].mlp.fc1.weight)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="does not say depth, dim, heads"):
        build(weights=str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("key", ["ema_encoder", "target_encoder"])
def test_published_checkpoints_load_from_the_right_encoder(key: str, tmp_path: Path) -> None:
    own = VJepaEncoder(VJepaConfig(**DIMS))
    other = VJepaEncoder(VJepaConfig(**DIMS))
    content = {
        name: {f"module.backbone.{name}": tensor for name, tensor in e.state_dict().items()}
        for name, e in (("encoder", other), (key, own))
    }
    torch.save(content | {"epoch": 3}, tmp_path / "model.pt")
    backbone = build(weights=str(tmp_path / "model.pt"), dims=DIMS, image_size=32)
    assert torch.equal(backbone.encoder.patch_embed.proj.weight, own.patch_embed.proj.weight)


def test_a_checkpoint_without_a_known_encoder_is_refused(tmp_path: Path) -> None:
    torch.save({"encoder": {}}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds neither of ema_encoder, target_encoder"):
        build(weights=str(tmp_path / "model.pt"), dims=DIMS)


def test_a_checkpoint_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"ema_encoder": Path("x")}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="plain tensors"):
        build(weights=str(tmp_path / "model.pt"), dims=DIMS)


def test_weights_of_other_dimensions_are_refused() -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        build(weights=str(GOLDEN), dims={"dim": 48, "depth": 11, "heads": 3}, image_size=64)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        build(weights=str(tmp_path / "model.safetensors"), dims=DIMS)


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.safetensors"):
        build(weights="nowhere.safetensors")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "base"}, "not both"),
        ({"dims": None}, "need a preset"),
        ({"image_size": 40}, "multiple of the patch"),
        ({"layer": 7}, "have a norm"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        build(**(RANDOM | wrong))


@pytest.mark.parametrize("wrong", [{"dims": DIMS | {"width": 3}}, {"sise": 3}, {"preset": "huge"}])
def test_unknown_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        build(**(RANDOM | wrong))


def test_parameters_survive_being_saved_as_json() -> None:
    params = build(**RANDOM).params
    assert VJepa21.Params.model_validate_json(params.model_dump_json()) == params


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [1.0, 0.0], [0.0, float("nan")]])
def test_times_that_are_missing_or_not_increasing_are_refused(times: list[float]) -> None:
    with pytest.raises(VideoError, match="increasing"):
        encode(noise(2), times)


def test_frames_that_are_not_uint8_rgb_are_refused() -> None:
    for frames in (noise(2).float(), noise(2)[..., :2], noise(0)):
        with pytest.raises(VideoError, match="uint8 RGB"):
            encode(frames, [0.0, 1.0][: len(frames)])


def test_random_weights_depend_on_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    same = build(**RANDOM)
    again = build(**RANDOM)
    other = build(**RANDOM, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert same.fingerprint() == again.fingerprint() != other.fingerprint()


def test_the_fingerprint_changes_with_everything_that_changes_the_features() -> None:
    changes = [
        {},
        {"image_size": 48},
        {"layer": 0},
        {"dims": DIMS | {"heads": 1}},
        {"dims": DIMS | {"rope_grid": 8}},
        {"dims": DIMS | {"eps": 1e-5}},
    ]
    prints = [build(**(RANDOM | change)).fingerprint() for change in changes]
    prints.append(build(**RANDOM).to(torch.bfloat16).fingerprint())
    assert len(set(prints)) == len(prints)
    assert build(**RANDOM, layer=1).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"dim": "wide", "depth": 2, "heads": 3}',
            r"dim: Input should be a valid integer.*got 'wide'",
        ),
        ('{"dim": 48, "embed_dim": 96, "depth": 2, "heads": 3}', "says dim of the encoder twice"),
        ('{"dim": 48, "depth": 1000000000, "heads": 3}', "at most 65536"),
        ('{"dim": 48, "depth": 2, "heads": 3, "levels": [null]}', "levels"),
        ('{"dim": 48, "dim": 48, "depth": 2, "heads": 3}', "appears twice"),
        ("[" * 5000, "not valid JSON|nested deeper"),
        ("[]", "does not say depth, dim, heads"),
    ],
)
def test_dimensions_that_make_no_sense_are_refused(text: str, message: str, tmp_path: Path) -> None:
    encoder = VJepaEncoder(VJepaConfig(**DIMS))
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((CheckpointError, RecipeError), match=message):
        build(weights=str(tmp_path / "model.safetensors"))


def test_what_is_no_encoder_s_tensors_is_refused(tmp_path: Path) -> None:
    state = VJepaEncoder(VJepaConfig(**DIMS)).state_dict()
    name = "norms_block.0.weight"
    for content, message in (
        ([1], "the encoder is a list"),
        (state | {3: state[name]}, "holds Tensor under 3"),
        (state | {name: [1.0]}, "holds list under 'norms_block.0.weight'"),
        (state | {name: torch.zeros(1).expand(2**20, 2**20)}, "each held by the file"),
        (state | {name: torch.zeros(48, dtype=torch.int64)}, "torch.int64"),
        (state | {f"module.{name}": state[name]}, "of the encoder twice"),
    ):
        torch.save({"ema_encoder": content}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=message):
            build(weights=str(tmp_path / "model.pt"), dims=DIMS)


def test_on_meta_the_published_size_has_its_shape_and_takes_no_memory() -> None:
    with torch.device("meta"):
        backbone = build(weights="random", preset="base", image_size=384)
    out = backbone(
        torch.empty(16, 480, 640, 3, dtype=torch.uint8, device="meta"),
        [float(index) for index in range(16)],
    )
    assert out.values.shape == (8, 24, 24, 768) and out.values.is_meta
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 86_833_152
