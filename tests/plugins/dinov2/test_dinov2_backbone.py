import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modulate import plugins
from modulate.errors import CheckpointError, MissingFileError, RecipeError, VideoError
from modulate_dinov2 import backbone as module
from modulate_dinov2.backbone import DinoV2, DinoV2Dims, build_vit

DIMS: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    vit = build_vit(DinoV2Dims(**DIMS), 28)
    for parameter in vit.parameters():  # LayerScale and tokens start near 0: make every part count
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(vit.state_dict(), path)
    return str(path)


def build(weights: str, **params: Any) -> DinoV2:
    return DinoV2(
        DinoV2.Params.model_validate({"weights": weights, "dims": DIMS, "image_size": 28} | params)
    )


def noise(frames: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (frames, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_the_backbone_is_registered_under_its_name() -> None:
    assert plugins.get("backbone", "dinov2") is DinoV2


def test_every_frame_has_features_at_its_own_time(weights: str) -> None:
    out = build(weights)(noise(3), [0.0, 1.0, 5.0])
    assert out.values.shape == (3, 2, 2, 24) and out.times == (0.0, 1.0, 5.0)


def test_frames_do_not_influence_each_other_and_batches_change_nothing(weights: str) -> None:
    together = build(weights)(noise(3), [0.0, 1.0, 2.0]).values
    assert torch.allclose(
        together, build(weights, batch=2)(noise(3), [0.0, 1.0, 2.0]).values, atol=1e-5
    )
    assert torch.allclose(together[1:2], build(weights)(noise(3)[1:2], [7.0]).values, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_features_are_the_patch_tokens_after_the_final_norm(registers: int, tmp_path: Path) -> None:
    vit = build_vit(DinoV2Dims(**DIMS, registers=registers), 28)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    backbone = build(str(tmp_path / "model.safetensors"), dims=DIMS | {"registers": registers})
    seen: list[torch.Tensor] = []
    backbone.vit.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    values = backbone(noise(1), [0.0]).values
    assert seen[0].shape == (1, 1 + registers + 4, 24)
    assert torch.equal(values[0, 1, 0], seen[0][0, 1 + registers + 2])


def test_frames_are_resized_whole_and_normalized(weights: str) -> None:
    backbone = build(weights)
    seen: list[torch.Tensor] = []
    backbone.vit.patch_embed.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    frames = torch.zeros(1, 56, 84, 3, dtype=torch.uint8)
    frames[:, :28, 42:] = 255
    backbone(frames, [0.0])
    assert seen[0].shape == (1, 3, 28, 28)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(seen[0][0, :, 3, 24], white, atol=1e-5) and seen[0][
        0, 0, 24, 3
    ] == pytest.approx(-0.485 / 0.229, abs=1e-5)


def test_positions_saved_for_another_image_size_are_interpolated(weights: str) -> None:
    assert build(weights, image_size=56)(noise(1), [0.0]).values.shape == (1, 4, 4, 24)


def test_the_default_is_the_pretrained_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def create(name: str, **options: Any) -> torch.nn.Module:
        asked.append((name, options))
        return build_vit(DinoV2Dims(**DIMS), 28)

    monkeypatch.setattr(module.timm, "create_model", create)
    DinoV2(DinoV2.Params())
    assert asked == [
        ("vit_base_patch14_dinov2.lvd142m", {"pretrained": True, "img_size": 518, "num_classes": 0})
    ]


def test_weights_that_cannot_be_fetched_are_an_error_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        MissingFileError,
        match=(
            r"weights of vit_small_patch14_dinov2 are not here and could not be fetched: .*Name a"
            r" safetensors file under weights\."
        ),
    ):
        DinoV2(DinoV2.Params(model="vit_small_patch14_dinov2", image_size=28))


def test_a_named_model_loads_from_a_local_file_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = functools.partial(
        module.timm.create_model, depth=1
    )  # the published depth would only take longer
    monkeypatch.setattr(module.timm, "create_model", create)
    vit = create("vit_small_patch14_dinov2", img_size=28, num_classes=0)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    backbone = build(
        str(tmp_path / "model.safetensors"), model="vit_small_patch14_dinov2", dims=None
    )
    assert backbone.d_features == 384 and torch.equal(backbone.vit.cls_token, vit.cls_token)


def test_the_backbone_is_frozen_and_keeps_no_graph(weights: str) -> None:
    backbone = build(weights)
    assert (
        not any(parameter.requires_grad for parameter in backbone.parameters())
        and not backbone(noise(1), [0.0]).values.requires_grad
    )


def test_the_fingerprint_changes_with_everything_that_changes_the_features(
    weights: str, tmp_path: Path
) -> None:
    save_file(build_vit(DinoV2Dims(**DIMS), 28).state_dict(), tmp_path / "other.safetensors")
    prints = [
        build(weights).fingerprint(),
        build(weights, image_size=56).fingerprint(),
        build(str(tmp_path / "other.safetensors")).fingerprint(),
    ]
    prints += [
        build(weights, dims=DIMS | {"heads": 1}).fingerprint(),
        build(weights).to(torch.bfloat16).fingerprint(),
    ]
    assert len(set(prints)) == 5
    assert build(weights, batch=1).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": "pretrained"}, "no pretrained weights"),
        ({"image_size": 30}, "multiple of the patch"),
        ({"dims": None, "model": "no_such_dinov2"}, "knows no model"),
        ({"dims": None, "model": "resnet18"}, "takes timm's DINOv2 models"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(
    wrong: dict[str, Any], message: str, weights: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        build(**({"weights": weights} | wrong))


def test_weights_that_do_not_fit_or_are_missing_are_refused(weights: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        build(weights, dims=DIMS | {"depth": 3})
    with pytest.raises(MissingFileError, match="nowhere"):
        build(str(tmp_path / "nowhere.safetensors"))


def test_wrong_frames_and_times_are_refused(weights: str) -> None:
    with pytest.raises(VideoError, match="increasing"):
        build(weights)(noise(2), [1.0, 1.0])
    with pytest.raises(VideoError, match="uint8 RGB"):
        build(weights)(noise(2).float(), [0.0, 1.0])


def test_random_weights_depend_on_their_seed_and_leave_the_global_generator_unchanged() -> None:
    before = torch.get_rng_state()
    one, same, other = (build("random", seed=seed).fingerprint() for seed in (1, 1, 2))
    assert one == same != other and torch.equal(before, torch.get_rng_state())


def test_on_meta_its_features_have_their_shape_and_take_no_memory() -> None:
    with torch.device("meta"):
        backbone = DinoV2(DinoV2.Params(weights="random"))
    out = backbone(torch.empty(2, 480, 640, 3, dtype=torch.uint8, device="meta"), [0.0, 1.0])
    assert out.values.shape == (2, 37, 37, 768) and out.values.is_meta
