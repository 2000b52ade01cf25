"""Measure the small host's accuracy, by words and letters, for drawn marks and steered tokens.

``python -m modulate_tabletop.small_host.accuracy`` prints accuracies for stills and for clips of
four steps. Every token of the vocabulary may be the answer.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modulate_tabletop import text
from modulate_tabletop.small_host import lessons, packing
from modulate_tabletop.small_host.packing import Branch
from modulate_tabletop.small_host.train_host import pointing

BATCH = 32  # half of them with drawn marks


def accuracies(
    model: Any,
    packer: packing.Packer,
    *,
    steps: int,
    batches: int = 8,
    seed: int = 99,
    layer: int = 0,
) -> dict[str, float]:
    """Return {"<mark> <answer> <task>": accuracy} on fresh clips.

    <mark> is "drawn", or "pointed" if the mark's effect is added after ``layer``; <answer> is
    "word" or "letter".
    """
    rng = np.random.default_rng(seed)
    hits = dict[str, list[float]]()
    for _ in range(batches):
        items = [
            lessons.random_lesson(rng, steps, True, drawn=index < BATCH // 2)
            for index in range(BATCH)
        ]
        packed = packer.pack([_questions(rng, item) for item in items], steps, 2.0, 0)
        values = packing.patches(
            packing.pixels(np.concatenate([item.frames for item in items])), steps
        )
        with torch.no_grad(), pointing(model, len(packer.ids(packing.TURN_START)), items, layer):
            logits, *_ = packing.forward(model, packed, values, steps)
        answers = torch.tensor([token for _, _, token, _ in packed["targets"]])
        right = (logits.argmax(-1) == answers).float().tolist()
        for (row, _, _, kind), hit in zip(packed["targets"], right, strict=True):
            hits.setdefault(f"{'drawn' if items[row].drawn else 'pointed'} {kind}", []).append(hit)
    return {kind: round(float(np.mean(hit)), 3) for kind, hit in sorted(hits.items())}


def _questions(rng: np.random.Generator, item: lessons.Lesson) -> list[Branch]:
    branches = []
    for task, (question, options, answer) in lessons.questions(
        rng, item, int(item.marks[-1])
    ).items():
        branches.append(Branch(f"word {task}", text.without_options(question), answer))
        branches.append(
            Branch(
                f"letter {task}",
                text.with_options(question, options),
                text.LETTERS[options.index(answer)],
            )
        )
    return branches


def main() -> None:
    """Run the command line."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", type=Path, default=Path(__file__).parents[1] / "host")
    args = parser.parse_args()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.host).eval()
    packer = packing.Packer(AutoTokenizer.from_pretrained(args.host, trust_remote_code=False))
    for steps in (1, 4):
        print(json.dumps({"steps": steps} | accuracies(model, packer, steps=steps), indent=1))


if __name__ == "__main__":
    main()
