"""Can a host be steered at all? An upper bound without training: one fixed vector, added at the
token that the viewer looks at.

The vector is the mean difference between marked and unmarked visual tokens at one layer. ``python
-m modulate_tabletop.steer`` prints how often the host then names the looked-at object on clips
without any mark. It says that a pointer at the right token is enough; whether an encoder and a
resampler learn to make that pointer is for a recipe to show.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modulate_tabletop import lessons, packing, text
from modulate_tabletop.packing import Branch
from modulate_tabletop.render import PLACES

ASKED = (text.EASY, text.ATTRIBUTE)


def clips(
    rng: np.random.Generator, count: int, steps: int, marked: bool
) -> tuple[list[lessons.Lesson], np.ndarray]:
    """Clips and the place (clip, step) that is marked or, without marks, looked at: another one in
    each step.
    """
    items = [lessons.lesson(rng, steps, marked) for _ in range(count)]
    targets = []
    for item in items:
        target: list[int] = [] if not marked else item.marks.tolist()
        for step in range(len(target), steps):
            target.append(
                int(
                    rng.choice(
                        [p for p in np.flatnonzero(item.kinds[step] >= 0) if p not in target]
                    )
                )
            )
        targets.append(target)
    return items, np.array(targets)


def ask(
    model: Any,
    packer: packing.Packer,
    items: list[lessons.Lesson],
    targets: np.ndarray,
    layer: int,
    vector: torch.Tensor | None = None,
) -> tuple[dict[str, float], torch.Tensor]:
    """Accuracy per task, with ``vector`` added at the targets after ``layer``, and that layer's
    visual tokens (clip, token, width).
    """
    rng = np.random.default_rng(0)
    steps = targets.shape[1]
    asked = [lessons.questions(rng, item, int(target[-1])) for item, target in zip(items, targets)]
    rows = [
        [Branch(task, text.without_options(a[task][0]), a[task][2]) for task in ASKED]
        for a in asked
    ]
    packed = packer.pack(rows, steps, 2.0, 0)
    first = len(packer.ids(packing.TURN_START))
    kept = {}
    at = pointed(targets)

    def hook(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        end = first + at.shape[1]
        kept["tokens"] = hidden[:, first:end]
        return (
            hidden
            if vector is None
            else torch.cat(
                [hidden[:, :first], hidden[:, first:end] + at[..., None] * vector, hidden[:, end:]],
                1,
            )
        )

    handle = model.model.language_model.layers[layer].register_forward_hook(hook)
    with torch.no_grad():
        values = packing.patches(packing.pixels(np.concatenate([i.frames for i in items])), steps)
        logits, *_ = packing.forward(model, packed, values, steps)
    handle.remove()
    right = (
        (logits.argmax(-1) == torch.tensor([w[2] for w in packed["where"]]))
        .float()
        .view(len(items), len(ASKED))
        .mean(0)
    )
    return {task: round(float(r), 3) for task, r in zip(ASKED, right)}, kept["tokens"]


def pointed(targets: np.ndarray) -> torch.Tensor:
    """(clip, step) places to (clip, step * PLACES) ones and zeros."""
    return torch.nn.functional.one_hot(torch.from_numpy(targets), PLACES).flatten(1).float()


def pointer(
    model: Any,
    packer: packing.Packer,
    rng: np.random.Generator,
    *,
    steps: int,
    layer: int = 0,
    count: int = 64,
) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
    """Return the pointer (width,) of ``layer`` from ``count`` marked clips, the accuracies on
    these, and their visual tokens (clip, token, width).
    """
    items, targets = clips(rng, count, steps, marked=True)
    marked, tokens = ask(model, packer, items, targets, layer)
    at = pointed(targets)[..., None]
    full = torch.from_numpy(np.stack([i.kinds >= 0 for i in items])).flatten(1)[..., None] * (
        1 - at
    )
    return packing.trace(tokens, at, full), marked, tokens


def report(
    model: Any,
    packer: packing.Packer,
    *,
    steps: int,
    layer: int = 0,
    count: int = 64,
    seed: int = 5,
) -> dict[str, Any]:
    """Accuracies on marked clips, on unmarked ones, and on unmarked ones with the pointer; norms of
    the pointer and of the tokens.
    """
    rng = np.random.default_rng(seed)
    vector, marked, tokens = pointer(model, packer, rng, steps=steps, layer=layer, count=count)
    items, targets = clips(rng, count, steps, marked=False)
    norms = {
        "pointer": round(float(vector.norm()), 2),
        "tokens": round(float(tokens.norm(dim=-1).mean()), 2),
    }
    plain = ask(model, packer, items, targets, layer)[0]
    added = ask(model, packer, items, targets, layer, vector)[0]
    return {
        "steps": steps,
        "layer": layer,
        "norms": norms,
        "marked": marked,
        "unmarked": plain,
        "pointer": added,
    }


def main() -> None:
    """Command line."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", type=Path, default=Path(__file__).parent / "host")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.host).eval()
    packer = packing.Packer(AutoTokenizer.from_pretrained(args.host, trust_remote_code=False))
    for steps in (1, 4):
        for layer in args.layers:
            print(json.dumps(report(model, packer, steps=steps, layer=layer)))


if __name__ == "__main__":
    main()
