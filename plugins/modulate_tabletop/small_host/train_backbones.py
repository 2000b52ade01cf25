"""Train the two small frozen backbones that ship with the package.

They predict the object at each place of an unmarked table from the features of that place.
``python -m modulate_tabletop.small_host.train_backbones vjepa|dinov2 --out FOLDER`` trains V-JEPA
2.1's architecture on clips of four steps, or DINOv2's vision transformer (from timm) on single
frames. Training is supervised, not self-distilled: the backbones replace pretrained weights in size
and kind of output only.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modulate.utils.atomic_files import write_atomically
from modulate_dinov2.backbone import DinoV2Dims, build_vit
from modulate_tabletop.render import GRID
from modulate_tabletop.small_host.lessons import SHAPES, TINTS, Lesson, random_lesson
from modulate_vjepa.encoder import VJepaConfig, VJepaEncoder

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
VJEPA = VJepaConfig(dim=96, depth=4, heads=3)
VJEPA_SIZE = 128
DINOV2 = DinoV2Dims(dim=96, depth=4, heads=3, patch=14)
DINOV2_SIZE = 112
STEPS = 4


class PlaceClassifier(nn.Module):
    """A backbone with two linear heads: class and color of every place, or none."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.backbone: Any = (
            VJepaEncoder(VJEPA) if kind == "vjepa" else build_vit(DINOV2, DINOV2_SIZE)
        )
        self.shape = nn.Linear(96, SHAPES + 1)
        self.tint = nn.Linear(96, TINTS + 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (clip, step, place, value) of class and color.

        ``frames`` are (clip, 2 * step, 3, height, width), normalized.
        """
        clips = len(frames)
        if self.kind == "vjepa":
            tokens = self.backbone(frames.transpose(1, 2))
        else:
            tokens = self.backbone.forward_features(frames[:, 1::2].flatten(0, 1))[
                :, self.backbone.num_prefix_tokens :
            ]
        cells = tokens.reshape(clips, STEPS, GRID, 2, GRID, 2, -1).mean((3, 5)).flatten(2, 3)
        return self.shape(cells), self.tint(cells)


def clips(rng: np.random.Generator, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random unmarked clips: frames, and class and color of each place (0: empty)."""
    items: list[Lesson] = [random_lesson(rng, STEPS, False) for _ in range(count)]
    images = (
        torch.from_numpy(np.stack([item.frames for item in items])).permute(0, 1, 4, 2, 3).float()
        / 255
    )
    small = nn.functional.interpolate(
        images.flatten(0, 1),
        size=(size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    kinds = torch.from_numpy(np.stack([item.kinds for item in items])) + 1
    colors = (
        torch.from_numpy(np.stack([np.where(item.kinds >= 0, item.colors, -1) for item in items]))
        + 1
    )
    return ((small - MEAN) / STD).unflatten(0, (count, 2 * STEPS)), kinds, colors


def train(kind: str, out: Path, seed: int, updates: int, batch: int = 12) -> dict[str, Any]:
    """Train one backbone and save it; return its accuracy on fresh clips."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classifier = PlaceClassifier(kind)
    size = VJEPA_SIZE if kind == "vjepa" else DINOV2_SIZE
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1.5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, updates, pct_start=0.1)
    start = time.time()
    for update in range(updates):
        loss, share_right = _loss(classifier, *clips(rng, batch, size))
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if update % 50 == 49:
            print(
                f"{kind} {update + 1}/{updates} {time.time() - start:.0f}s loss {loss.item():.3f}"
                f" places right {share_right:.3f}",
                flush=True,
            )
    with torch.inference_mode():
        accuracy = float(
            np.mean([_loss(classifier.eval(), *clips(rng, batch, size))[1] for _ in range(10)])
        )
    result = {
        "command": (
            f"python -m modulate_tabletop.small_host.train_backbones {kind} --seed {seed}"
            f" --updates {updates}"
        ),
        "seconds": round(time.time() - start),
        "place_accuracy": round(accuracy, 4),
    }
    _save(kind, classifier.backbone, out, result)
    return result


def _loss(
    classifier: PlaceClassifier, frames: Tensor, kinds: Tensor, colors: Tensor
) -> tuple[Tensor, float]:
    shape, tint = classifier(frames)
    loss = nn.functional.cross_entropy(
        shape.flatten(0, 2), kinds.flatten()
    ) + nn.functional.cross_entropy(tint.flatten(0, 2), colors.flatten())
    right = (shape.argmax(-1) == kinds) & (tint.argmax(-1) == colors)
    return loss, float(right.float().mean())


def _save(kind: str, backbone: nn.Module, out: Path, result: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    notes = (
        {"config": json.dumps(dataclasses.asdict(VJEPA))} if kind == "vjepa" else {"format": "pt"}
    )
    tensors = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    write_atomically(out / "model.safetensors", lambda path: save_file(tensors, path, notes))
    write_atomically(
        out / "training.json",
        lambda path: path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8"),
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["vjepa", "dinov2"])
    parser.add_argument(
        "--out", type=Path, default=None, help="folder; by default that of the shipped weights"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=400)
    options = parser.parse_args()
    out = options.out or Path(__file__).parents[1] / options.kind
    print(train(options.kind, out, options.seed, options.updates))


if __name__ == "__main__":
    main()
