"""Train the small host from scratch on in-memory tables: describe, light marks, letters. It never sees a gaze signal.

``python -m modulate_tabletop.train_host --out FOLDER`` (about half an hour on two cores).
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modulate_tabletop import host_files, lessons, packing, text
from modulate_tabletop.packing import Branch


@dataclass(frozen=True)
class Phase:
    """One part of the curriculum. ``branches`` gives each kind's chance of being asked about a clip."""

    name: str
    updates: int
    batch: int
    steps: tuple[int, ...]
    lr: float
    branches: dict[str, float]


READ = {"describe": 1.0, "told": 0.25}
NAME = {"describe": 0.5, "told": 0.7, "word": 1.0}
CHOOSE = {"describe": 0.35, "told": 0.5, "word": 0.7, "letter": 1.0}
CURRICULUM = (
    Phase("read", 700, 24, (1,), 2.0e-3, READ),
    Phase("name", 300, 32, (1,), 1.5e-3, NAME),
    Phase("choose", 500, 24, (1,), 1.5e-3, CHOOSE),
    Phase("clips", 500, 24, (4, 4, 4, 4, 3, 2, 1), 1.2e-3, CHOOSE),
)


def branches(rng: np.random.Generator, item: lessons.Lesson, wanted: dict[str, float]) -> list[Branch]:
    """The questions asked about one clip."""
    out = []
    if rng.random() < wanted.get("describe", 0):
        out.append(Branch("describe", text.without_options(text.DESCRIBE), lessons.describe(item)))
    if rng.random() < wanted.get("told", 0):
        out.append(Branch("told", *lessons.told(rng), sees_video=False))
    if item.marks[-1] < 0:
        return out
    asked = lessons.questions(rng, item, int(item.marks[-1]))
    for kind, render in (("word", _word), ("letter", _letter)):
        if kind not in wanted:
            continue
        for task in (text.EASY if rng.random() < 0.5 else text.HARD, text.ATTRIBUTE, text.ALERT):
            if rng.random() < wanted[kind]:
                out.append(render(kind, task, *asked[task]))
    return out


def _word(kind: str, task: str, question: str, options: list[str], answer: str) -> Branch:
    return Branch(f"{kind}:{task}", text.without_options(question), answer)


def _letter(kind: str, task: str, question: str, options: list[str], answer: str) -> Branch:
    return Branch(f"{kind}:{task}", text.with_options(question, options), text.LETTERS[options.index(answer)])


def batch_of(rng: np.random.Generator, packer: packing.Packer, phase: Phase, marked: float) -> tuple[dict[str, Any], torch.Tensor, int]:
    """One batch: packed questions, patches, steps."""
    steps = int(rng.choice(phase.steps))
    items = [lessons.lesson(rng, steps, rng.random() < marked) for _ in range(phase.batch)]
    rows = [branches(rng, item, phase.branches) for item in items]
    if not any(rows):
        rows[0] = [Branch("told", *lessons.told(rng), sees_video=False)]
    interval = float(rng.choice([2.0, 2.0, 1.98, 2.02, 1.9, 2.15]))
    packed = packer.pack(rows, steps, interval, int(rng.choice([0, 0, 0, 3])))
    return packed, packing.patches(packing.pixels(np.concatenate([i.frames for i in items])), steps), steps


class Tally:
    """Running accuracy of each kind of question."""

    def __init__(self) -> None:
        self.hits: dict[str, list[float]] = {}

    def add(self, kinds: list[str], right: torch.Tensor) -> None:
        """Count one batch."""
        for kind, hit in zip(kinds, right.tolist()):
            self.hits.setdefault(kind, []).append(hit)

    def mean(self, last: int) -> dict[str, float]:
        """Accuracy of the last answers of each kind."""
        return {k: round(float(np.mean(v[-last:])), 3) for k, v in sorted(self.hits.items())}


def optimizers(model: Any, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the matrices of the layers and AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if muon and p.ndim == 2 and ".layers." in n]
    ids = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in ids]
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        out.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return out


def train_phase(model: Any, packer: packing.Packer, phase: Phase, rng: np.random.Generator, *, muon: bool, seconds: float | None = None) -> dict[str, float]:
    """Run one phase and return its last accuracies."""
    opts = optimizers(model, phase.lr, muon)
    tally, start = Tally(), time.time()
    for update in range(phase.updates):
        share = update / phase.updates
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = phase.lr * min(1.0, (update + 1) / 30) * (1.0 if share < 0.6 else max(0.05, (1 - share) / 0.4))
        packed, values, steps = batch_of(rng, packer, phase, marked=0.6 if phase.branches is READ else 0.95)
        logits = packing.forward(model, packed, values, steps)
        kinds = [w[3] for w in packed["where"]]
        target = torch.tensor([w[2] for w in packed["where"]])
        weight = torch.tensor([{"describe": 1 / 16, "told": 0.5}.get(k, 1.0) for k in kinds])
        loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        tally.add(kinds, (logits.argmax(-1) == target).float())
        if update % 50 == 49:
            short = {k.split("_")[0].replace("present", "p") + "_" + k.split("_")[-1]: v for k, v in tally.mean(400).items()}
            print(f"{phase.name} {update + 1}/{phase.updates} {time.time() - start:.0f}s loss {loss.item():.3f} {short}", flush=True)
    return tally.mean(1000)


def train(out: Path, seed: int, muon: bool = True, curriculum: tuple[Phase, ...] = CURRICULUM) -> dict[str, Any]:
    """Train through the curriculum, saving after each phase; returns accuracies and times."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    random.seed(seed)
    rng = np.random.default_rng(seed)
    model = Qwen2_5_VLForConditionalGeneration(host_files.configuration())
    packer, record, start = packing.Packer(host_files.tokenizer()), {}, time.time()
    for phase in curriculum:
        record[phase.name] = train_phase(model, packer, phase, rng, muon=muon)
        record[phase.name]["seconds"] = round(time.time() - start)
        host_files.save(model, out)
    (out / "training.json").write_text(json.dumps({"seed": seed, "muon": muon, "phases": record}, indent=1) + "\n")
    return record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(json.dumps(train(args.out, args.seed), indent=1))


if __name__ == "__main__":
    main()
