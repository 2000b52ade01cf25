"""Can a host be steered? Stage 1 only: a small resampler with a gaze heatmap learns to tell a frozen host where the viewer looks.

``python -m modulate_tabletop.steer --host FOLDER --steps 1`` prints accuracies on fresh, unmarked clips. It stands on its own on purpose: it judges a
host before anything else is built on it.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modulate_tabletop import lessons, packing, text
from modulate_tabletop.host_files import WIDTH
from modulate_tabletop.render import GRID, PLACES
from modulate_tabletop.train_host import Tally, branches

DIM, LATENTS, BLOCKS, SIGMA = 64, 8, 2, 0.125


class Probe(nn.Module):
    """One layer's resampler (GazeQwen, equations 2-5), with the signal in the keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        many = lambda: nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(BLOCKS))  # noqa: E731
        self.inp, self.latents = nn.Linear(width, DIM, bias=False), nn.Parameter(torch.randn(LATENTS, DIM) * 0.02)
        self.q, self.k, self.g, self.v = many(), many(), many(), many()
        self.ff = nn.ModuleList(nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM)) for _ in range(BLOCKS))
        self.norm, self.out = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(BLOCKS)), nn.Linear(DIM, WIDTH, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
        """(n, places, width) and (n, places, DIM) to (n, places, WIDTH)."""
        x = self.inp(features)
        latents = self.latents.expand(len(x), -1, -1)
        for q, k, g, v, ff, norm in zip(self.q, self.k, self.g, self.v, self.ff, self.norm):
            both = torch.cat([x, latents], 1)
            keys = k(both) + g(torch.cat([signal, torch.zeros_like(latents)], 1))
            latents = latents + F.softmax(q(latents) @ keys.mT / math.sqrt(DIM), -1) @ v(both)
            latents = norm(latents + ff(latents))
        return self.out(F.softmax(x @ latents.mT / math.sqrt(DIM), -1) @ latents)


def place_code(width: int = 96) -> torch.Tensor:
    """(PLACES, width) sines and cosines of the places' centres."""
    index = torch.arange(PLACES)
    xy = torch.stack([(index % GRID + 0.5) / GRID, (index // GRID + 0.5) / GRID], -1)
    angle = xy[..., None] * 8 * math.pi / 10000.0 ** (torch.arange(width // 4) / (width // 4))
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)


class Steering(nn.Module):
    """Features of the raw cells, a heatmap of the gaze, one probe per layer."""

    project: torch.Tensor
    code: torch.Tensor

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("project", torch.randn(768, 96, generator=torch.Generator().manual_seed(1)) / 28)
        self.register_buffer("code", place_code())
        self.heat, self.probes, self.layers = nn.Linear(1, DIM), nn.ModuleList(Probe(192) for _ in layers), layers

    def forward(self, images: torch.Tensor, gaze: torch.Tensor) -> list[torch.Tensor]:
        """``images`` (batch, steps, 3, 64, 64), ``gaze`` (batch, steps, 2) -> per layer (batch, steps * PLACES, WIDTH)."""
        batch, steps = gaze.shape[:2]
        cells = images.view(batch * steps, 3, GRID, 16, GRID, 16).permute(0, 2, 4, 3, 5, 1).reshape(batch * steps, PLACES, 768)
        features = torch.cat([cells @ self.project, self.code.expand(batch * steps, -1, -1)], -1)
        index = torch.arange(PLACES)
        centre = torch.stack([(index % GRID + 0.5) / GRID, (index // GRID + 0.5) / GRID], -1)
        distance = ((gaze.view(-1, 1, 2) - centre) ** 2).sum(-1, keepdim=True)
        signal = self.heat(torch.exp(-distance / (2 * SIGMA**2)))
        return [p(features, signal).view(batch, steps * PLACES, WIDTH) for p in self.probes]


def batch_of(rng: np.random.Generator, packer: packing.Packer, batch: int, steps: int, wanted: dict[str, float]) -> tuple[Any, ...]:
    """Unmarked clips with one gaze target a step; the questions are about the last."""
    items, targets, rows = [], [], []
    for _ in range(batch):
        item = lessons.lesson(rng, steps, False)
        target: list[int] = []
        for step in range(steps):
            target.append(int(rng.choice([p for p in np.flatnonzero(item.kinds[step] >= 0) if p not in target])))
        seen = lessons.Lesson(item.frames, item.kinds, item.colours, np.array(target))
        rows.append([b for b in branches(rng, seen, wanted) if not b.kind.endswith(text.ALERT)] or branches(rng, seen, {"word": 1.0})[:1])
        items.append(item)
        targets.append(target)
    place = torch.tensor(targets)
    gaze = torch.stack([(place % GRID + 0.5) / GRID, (place // GRID + 0.5) / GRID], -1) + (torch.rand(batch, steps, 2) - 0.5) * 0.16
    images = packing.pixels(np.concatenate([i.frames for i in items]))
    return packer.pack(rows, steps, 2.0, 0), packing.patches(images, steps), images.view(batch, steps, 2, 3, 64, 64)[:, :, 1], gaze


def steer(
    model: Any,
    packer: packing.Packer,
    *,
    steps: int,
    wanted: dict[str, float],
    updates: int = 400,
    batch: int = 32,
    lr: float = 3e-3,
    layers: tuple[int, ...] = (0, 1, 2),
    seed: int = 1,
) -> dict[str, float]:
    """Train the probe on a frozen host; accuracies per kind of question on 20 fresh batches."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    module = Steering(layers)
    state: dict[str, list[torch.Tensor]] = {}
    opt = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, updates, pct_start=0.05)
    first = len(packer.ids(packing.TURN_START))

    def hook(index: int) -> Any:
        def add(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
            r = state["r"][index]
            return torch.cat([hidden[:, :first], hidden[:, first : first + r.shape[1]] + r, hidden[:, first + r.shape[1] :]], 1)

        return add

    handles = [model.model.language_model.layers[layer].register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    seen, test, start = Tally(), Tally(), time.time()
    for update in range(updates + 20):
        packed, values, images, gaze = batch_of(rng, packer, batch, steps, wanted)
        with torch.set_grad_enabled(update < updates):
            state["r"] = module(images, gaze)
            logits, *_ = packing.forward(model, packed, values, steps)
            target, kinds = torch.tensor([w[2] for w in packed["where"]]), [w[3] for w in packed["where"]]
            if update < updates:
                F.cross_entropy(logits, target).backward()
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                opt.step()
                schedule.step()
                opt.zero_grad()
        (seen if update < updates else test).add(kinds, (logits.argmax(-1) == target).float())
        if update % 50 == 49:
            print(f"steer {update + 1} {time.time() - start:.0f}s {seen.mean(400)}", flush=True)
    for handle in handles:
        handle.remove()
    return test.mean(10**6)


def main() -> None:
    """Command line."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", type=Path, default=Path(__file__).parent / "host")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--answers", choices=("letter", "word"), default="letter")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.host).requires_grad_(False).eval()
    packer = packing.Packer(AutoTokenizer.from_pretrained(args.host))
    print(
        json.dumps(
            steer(model, packer, steps=args.steps, wanted={args.answers: 1.0}, updates=args.updates, batch=args.batch, layers=tuple(args.layers)), indent=1
        )
    )


if __name__ == "__main__":
    main()
