"""Train the small host from scratch: describe a table, name a marked object, choose its letter.

The tables are rendered in memory, and the host never sees a gaze signal.

``python -m modulate_tabletop.small_host.train_host --out FOLDER`` takes about 15 minutes on two
free cores. ``--part see``, then ``--part choose --start-from FOLDER`` and ``--part point
--start-from FOLDER`` do the same part by part.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modulate_tabletop import text
from modulate_tabletop.small_host import host_files, lessons, packing
from modulate_tabletop.small_host.packing import Branch


@dataclass(frozen=True)
class Phase:
    """One part of the curriculum.

    ``branches`` holds the probability of each kind of question about a clip. ``pointed`` is the
    share of marked clips whose mark is not drawn: instead, the mean effect of drawn marks is added
    to the visual token. Without such clips, a host may detect marks in its vision tower, where no
    residual in the decoder can replace them.
    """

    name: str
    updates: int
    batch: int
    steps: tuple[int, ...]
    lr: float
    branches: dict[str, float]
    pointed: float = 0.0


READ = {"describe": 1.0, "told": 0.3, "drill": 0.6}
NAME = {"describe": 0.6, "told": 0.1, "drill": 1.0, "word": 0.7}
CLIPS = {"describe": 0.3, "word": 1.0}
CHOOSE = {"describe": 0.1, "word": 0.5, "letter": 0.7}
STREAM = 1 / 16  # scale of the residual stream after training; powers of two keep logits exact
MIXED = (4, 4, 4, 4, 3, 2, 1)  # numbers of steps, of which each batch draws one
PARTS = {
    "see": (
        Phase("read", 400, 16, (1,), 2.0e-3, READ),
        Phase("name", 200, 20, (1,), 1.8e-3, NAME),
        Phase("clips", 450, 16, MIXED, 1.4e-3, CLIPS),
    ),
    "choose": (Phase("choose", 500, 16, MIXED, 1.4e-3, CHOOSE),),
    "point": (Phase("point", 240, 16, MIXED, 1.0e-3, CHOOSE, pointed=0.5),),
}
"""Each part has its own random generator: training the parts one by one gives the same host."""


def branches(
    rng: np.random.Generator, item: lessons.Lesson, wanted: dict[str, float]
) -> list[Branch]:
    """Draw the questions about one clip."""
    out = []
    if rng.random() < wanted.get("describe", 0):
        out.append(Branch("describe", text.without_options(text.DESCRIBE), lessons.describe(item)))
    if rng.random() < wanted.get("told", 0):
        out.append(Branch("told", *lessons.stated_answer(rng), sees_video=False))
    for _ in range(rng.poisson(wanted.get("drill", 0))):
        out.append(Branch("drill", *lessons.drill(rng), sees_video=False, every=2))
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
    return Branch(f"{kind}:{task}", text.without_options(question), answer, word=answer)


def _letter(kind: str, task: str, question: str, options: list[str], answer: str) -> Branch:
    return Branch(
        f"{kind}:{task}",
        text.with_options(question, options),
        text.LETTERS[options.index(answer)],
        word=answer,
    )


def batch_of(
    rng: np.random.Generator, packer: packing.Packer, phase: Phase, marked: float
) -> tuple[dict[str, Any], torch.Tensor, list[lessons.Lesson]]:
    """Draw one batch: packed questions, patches, clips."""
    steps = int(rng.choice(phase.steps))
    drawn = (lambda: rng.random() >= phase.pointed) if phase.pointed else lambda: True
    items = [
        lessons.random_lesson(rng, steps, rng.random() < marked, drawn())
        for _ in range(phase.batch)
    ]
    rows = [branches(rng, item, phase.branches) for item in items]
    if not any(rows):
        rows[0] = [Branch("told", *lessons.stated_answer(rng), sees_video=False)]
    interval = float(rng.choice([2.0, 2.0, 1.98, 2.02, 1.9, 2.15]))
    packed = packer.pack(rows, steps, interval, int(rng.choice([0, 0, 0, 3])))
    return (
        packed,
        packing.patches(packing.pixels(np.concatenate([item.frames for item in items])), steps),
        items,
    )


CLASS_IDS = [host_files.ID[word] for word in (text.EMPTY, *lessons.CLASSES)]
COLOR_IDS = [host_files.ID[word] for word in (text.EMPTY, *lessons.COLOR_WORDS)]


def pointed_at(items: list[lessons.Lesson], drawn: bool) -> torch.Tensor:
    """Return a mask (clip, step · place) of the marked places.

    Clips count only if their marks are ``drawn``, or only if they are not.
    """
    places = np.arange(items[0].kinds.shape[1])
    return (
        torch.from_numpy(
            np.stack([(item.marks[:, None] == places) & (item.drawn == drawn) for item in items])
        )
        .flatten(1)
        .float()
    )


@contextmanager
def pointing(model: Any, first: int, items: list[lessons.Lesson], layer: int) -> Iterator[None]:
    """Add the mean effect of drawn marks to tokens whose mark is not drawn, after ``layer``.

    ``first`` is the first visual position.
    """
    drawn = pointed_at(items, drawn=True)[..., None]
    missing = pointed_at(items, drawn=False)[..., None]
    full = (
        torch.from_numpy(np.stack([item.kinds >= 0 for item in items])).flatten(1)[..., None]
        * (1 - drawn)
        * (1 - missing)
    )
    end = first + drawn.shape[1]

    def hook(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden[:, first:end]
        return torch.cat(
            [
                hidden[:, :first],
                tokens + missing * packing.mark_effect(tokens, drawn, full),
                hidden[:, end:],
            ],
            1,
        )

    handle = (
        model.model.language_model.layers[layer].register_forward_hook(hook)
        if missing.any() and drawn.any()
        else None
    )
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def spell_loss(
    model: Any, seen: torch.Tensor, items: list[lessons.Lesson]
) -> tuple[torch.Tensor, float]:
    """Return a loss that aligns visual tokens with the embeddings of words, and its accuracy.

    The words name the class and the color at the token's place, and whether it is marked.
    """
    word_logits = seen @ model.get_input_embeddings().weight.T
    kinds = torch.from_numpy(np.stack([item.kinds for item in items])).flatten() + 1
    colors = (
        torch.from_numpy(
            np.stack([np.where(item.kinds >= 0, item.colors, -1) for item in items])
        ).flatten()
        + 1
    )
    marked = pointed_at(items, drawn=True).flatten()
    by_class = word_logits[:, CLASS_IDS]
    by_color = word_logits[:, COLOR_IDS]
    mark = F.binary_cross_entropy_with_logits(word_logits[:, host_files.ID["marked"]], marked)
    right = (by_class.argmax(-1) == kinds) & (by_color.argmax(-1) == colors)
    return (
        F.cross_entropy(by_class, kinds) + F.cross_entropy(by_color, colors) + mark,
        right.float().mean().item(),
    )


HINTS = {
    packing.LABEL_LAYER: "hint:label",
    packing.WORD_LAYER: "hint:word",
    packing.FLAG_LAYER: "hint:flag",
}


class RunningAccuracy:
    """Accuracy of each kind of question, over the latest answers."""

    def __init__(self) -> None:
        self.hits: dict[str, list[float]] = {}

    def add(self, kinds: list[str], right: torch.Tensor) -> None:
        """Count one batch."""
        for kind, hit in zip(kinds, right.tolist()):
            self.hits.setdefault(kind, []).append(hit)

    def mean(self, last: int) -> dict[str, float]:
        """Return the accuracy of each kind over its last answers."""
        return {
            name: round(float(np.mean(values[-last:])), 3)
            for name, values in sorted(self.hits.items())
        }


def optimizers(model: Any, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """Return AdamW for all weights, or Muon for the layers' matrices and AdamW for the others."""
    named = list(model.named_parameters())
    matrices = [
        parameter
        for name, parameter in named
        if muon and parameter.ndim == 2 and ".layers." in name
    ]
    ids = {id(parameter) for parameter in matrices}
    others = [parameter for _, parameter in named if id(parameter) not in ids]
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    ]
    if matrices:
        out.append(
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        )
    return out


def train_phase(
    model: Any,
    packer: packing.Packer,
    phase: Phase,
    rng: np.random.Generator,
    *,
    muon: bool,
    out: Path | None = None,
) -> dict[str, float]:
    """Run one phase; return its final accuracies."""
    chosen = optimizers(model, phase.lr, muon)
    accuracy = RunningAccuracy()
    start = time.time()
    first = len(packer.ids(packing.TURN_START))
    for update in range(phase.updates):
        share = update / phase.updates
        for optimizer in chosen:
            for group in optimizer.param_groups:
                group["lr"] = (
                    phase.lr
                    * min(1.0, (update + 1) / 30)
                    * (1.0 if share < 0.6 else max(0.05, (1 - share) / 0.4))
                )
        packed, values, items = batch_of(
            rng, packer, phase, marked=0.6 if phase.branches is READ else 0.95
        )
        with pointing(model, first, items, update % 3):
            logits, seen, early = packing.forward(
                model, packed, values, len(items[0].marks), hints=True
            )
        kinds = [w[3] for w in packed["targets"]]
        target = torch.tensor([w[2] for w in packed["targets"]])
        weight = torch.tensor(
            [{"describe": 1 / 16, "told": 0.5, "drill": 0.3}.get(kind, 1.0) for kind in kinds]
        )
        loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        spelled, right = spell_loss(model, seen, items)
        total = loss + 0.5 * spelled
        if early is not None:
            hints = torch.tensor([w[2] for w in packed["hints"]])
            layer = torch.tensor([w[3] for w in packed["hints"]])
            total = total + 0.5 * sum(
                F.cross_entropy(early[layer == each], hints[layer == each])
                for each in layer.unique()
            )
            accuracy.add(
                [HINTS[each] for each in layer.tolist()], (early.argmax(-1) == hints).float()
            )
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad()
        accuracy.add(["spell"], torch.tensor([right]))
        accuracy.add(kinds, (logits.argmax(-1) == target).float())
        if out is not None and update % 100 == 99:
            host_files.save(model, out)
        if update % 50 == 49:
            short = {
                name.split("_")[0].replace("present", "p") + "_" + name.split("_")[-1]: share
                for name, share in accuracy.mean(200).items()
            }
            print(
                f"{phase.name} {update + 1}/{phase.updates} {time.time() - start:.0f}s loss"
                f" {loss.item():.3f} {short}",
                flush=True,
            )
    return accuracy.mean(1000)


def train(
    out: Path,
    seed: int,
    muon: bool = True,
    parts: Sequence[str] = tuple(PARTS),
    start_from: Path | None = None,
) -> dict[str, Any]:
    """Train the parts in order, saving after each phase; return accuracies and times.

    ``start_from`` is the folder that an earlier part wrote.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(start_from)
        if start_from
        else Qwen2_5_VLForConditionalGeneration(host_files.configuration())
    )
    record: dict[str, Any] = (
        json.loads((start_from / "training.json").read_text(encoding="utf-8"))["phases"]
        if start_from
        else {}
    )
    if start_from:
        host_files.rescale(model, 1 / STREAM)
    packer = packing.Packer(host_files.tokenizer())
    for part in parts:
        rng = np.random.default_rng(seed + list(PARTS).index(part))
        start = time.time()
        for phase in PARTS[part]:
            record[phase.name] = train_phase(model, packer, phase, rng, muon=muon, out=out)
            record[phase.name]["seconds"] = round(time.time() - start)
            host_files.save(model, out)
    host_files.rescale(model, STREAM)
    host_files.save(model, out)
    (out / "training.json").write_text(
        json.dumps({"seed": seed, "muon": muon, "phases": record}, indent=1) + "\n",
        encoding="utf-8",
    )
    return record


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="train this part only; all by default"
    )
    parser.add_argument(
        "--start-from", type=Path, help="continue from the folder that an earlier part wrote"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(
        json.dumps(
            train(args.out, args.seed, parts=args.part or tuple(PARTS), start_from=args.start_from),
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
