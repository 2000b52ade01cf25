"""Train the two small backbones on what is at each place of unmarked tables: supervised, not self-distilled as the published encoders are.

``python -m modulate_tabletop.train_backbones --which vjepa|dinov2`` (a few minutes on two cores) writes into ``vjepa/`` and ``dinov2/``.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from modulate_tabletop import lessons
from modulate_tabletop.render import GRID

HERE = Path(__file__).parent
VJEPA = {"dim": 96, "depth": 4, "heads": 4, "patch": 16, "tubelet": 2}
DINOV2 = {"dim": 96, "depth": 4, "heads": 4, "patch": 14}
IMAGE = {"vjepa": 128, "dinov2": 112}  # pixels
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


def images(frames: np.ndarray, size: int) -> torch.Tensor:
    """(n, SIZE, SIZE, 3) uint8 to normalised (n, 3, size, size); the chroma is halved as a 4:2:0 codec does."""
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    x = (luma + F.interpolate(F.avg_pool2d(x - luma, 2), scale_factor=2, mode="bilinear", align_corners=False)).clamp(0, 1)
    if size != x.shape[-1]:
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return (x - MEAN) / STD


def build(which: str) -> tuple[nn.Module, Callable[[nn.Module, np.ndarray, int], torch.Tensor]]:
    """The encoder, and a function from frames of ``clips`` clips to (clip * step * place, dim) features."""
    if which == "vjepa":
        from modulate_vjepa.encoder import VJepaConfig, VJepaEncoder

        return VJepaEncoder(VJepaConfig(**VJEPA)), _vjepa_features
    from modulate_dinov2.backbone import DinoV2Dims, build_vit

    return build_vit(DinoV2Dims(**DINOV2), IMAGE["dinov2"]), _dinov2_features


def _vjepa_features(model: nn.Module, frames: np.ndarray, clips: int) -> torch.Tensor:
    x = images(frames, IMAGE["vjepa"])
    x = x.view(clips, -1, *x.shape[1:]).transpose(1, 2)
    return _pool(model(x), 2 * GRID)


def _dinov2_features(model: Any, frames: np.ndarray, clips: int) -> torch.Tensor:
    tokens = model.forward_features(images(frames[1::2], IMAGE["dinov2"]))[:, model.num_prefix_tokens :]
    return _pool(tokens, 2 * GRID)


def _pool(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """Mean over the two by two patches of each place."""
    x = tokens.reshape(-1, GRID, side // GRID, GRID, side // GRID, tokens.shape[-1])
    return x.mean((2, 4)).reshape(-1, tokens.shape[-1])


def train(which: str, updates: int, clips: int, seed: int, lr: float = 2e-3) -> tuple[nn.Module, dict[str, Any]]:
    """Train one encoder; returns it and what to record."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, features = build(which)
    head = nn.Linear(96, 18)
    parameters = [*model.parameters(), *head.parameters()]
    opt = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, updates, pct_start=0.1)
    hits, start = [], time.time()
    for update in range(updates + 20):
        steps = int(rng.choice([4, 4, 2, 1]))
        items = [lessons.lesson(rng, steps, False) for _ in range(clips * 4 // steps if which == "dinov2" else clips)]
        kinds = torch.from_numpy(np.stack([i.kinds for i in items])).flatten() + 1
        colours = torch.from_numpy(np.stack([np.where(i.kinds >= 0, i.colours, -1) for i in items])).flatten() + 1
        with torch.set_grad_enabled(update < updates):
            by_class, by_colour = head(features(model, np.concatenate([i.frames for i in items]), len(items))).split(9, -1)
            if update < updates:
                (F.cross_entropy(by_class, kinds) + F.cross_entropy(by_colour, colours)).backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                opt.step()
                schedule.step()
                opt.zero_grad()
        hits.append([(by_class.argmax(-1) == kinds).float().mean().item(), (by_colour.argmax(-1) == colours).float().mean().item()])
        if update % 50 == 49:
            print(f"{which} {update + 1}/{updates} {time.time() - start:.0f}s class, colour {np.mean(hits[-20:], 0).round(3)}", flush=True)
    accuracy = np.mean(hits[-20:], 0).round(4).tolist()
    record = {"seed": seed, "updates": updates, "clips_per_update": clips, "seconds": round(time.time() - start)}
    return model, record | {"class_accuracy_per_place": accuracy[0], "colour_accuracy_per_place": accuracy[1]}


def save(which: str, model: nn.Module, record: dict[str, Any], folder: Path) -> None:
    """Weights (V-JEPA: the encoder under ``ema_encoder``, as published) and what was reached."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    config = VJEPA if which == "vjepa" else DINOV2
    if which == "vjepa":
        state = {f"ema_encoder.module.backbone.{k}": v for k, v in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", "config": json.dumps(config)})
    (folder / "config.json").write_text(json.dumps(config | {"image_size": IMAGE[which]}, indent=1) + "\n")
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--which", choices=("vjepa", "dinov2"), required=True)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, record = train(args.which, args.updates, args.clips, args.seed)
    save(args.which, model, record, args.out or HERE / args.which)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
