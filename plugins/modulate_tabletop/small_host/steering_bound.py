"""Upper bound of steering without training: one fixed vector, added at the token looked at.

The vector is the mean difference between marked and unmarked visual tokens at one layer. ``python
-m modulate_tabletop.small_host.steering_bound`` prints how often the host then names the object
looked at on clips without marks. It shows that a steering vector at the right token suffices;
whether an encoder and a resampler learn to produce it is up to a recipe.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modulate_tabletop import text
from modulate_tabletop.render import PLACES
from modulate_tabletop.small_host import lessons, packing
from modulate_tabletop.small_host.packing import Branch

ASKED = (text.EASY, text.ATTRIBUTE)


def clips(
    rng: np.random.Generator, count: int, steps: int, marked: bool
) -> tuple[list[lessons.Lesson], np.ndarray]:
    """Return clips and their target places (clip, step): the marked ones, or random ones."""
    items = [lessons.random_lesson(rng, steps, marked) for _ in range(count)]
    targets = []
    for item in items:
        target: list[int] = [] if not marked else item.marks.tolist()
        for step in range(len(target), steps):
            target.append(
                int(
                    rng.choice(
                        [
                            place
                            for place in np.flatnonzero(item.kinds[step] >= 0)
                            if place not in target
                        ]
                    )
                )
            )
        targets.append(target)
    return items, np.array(targets)


def measure(
    model: Any,
    packer: packing.Packer,
    items: list[lessons.Lesson],
    targets: np.ndarray,
    layer: int,
    vector: torch.Tensor | None = None,
) -> tuple[dict[str, float], torch.Tensor]:
    """Return the accuracy per task, and the visual tokens (clip, token, width) after ``layer``.

    ``vector`` is added to the tokens at the targets.
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
    saved = {}
    at = target_mask(targets)

    def hook(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        end = first + at.shape[1]
        saved["tokens"] = hidden[:, first:end]
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
        values = packing.patches(
            packing.pixels(np.concatenate([item.frames for item in items])), steps
        )
        logits, *_ = packing.forward(model, packed, values, steps)
    handle.remove()
    right = (
        (logits.argmax(-1) == torch.tensor([w[2] for w in packed["targets"]]))
        .float()
        .view(len(items), len(ASKED))
        .mean(0)
    )
    return {task: round(float(share), 3) for task, share in zip(ASKED, right)}, saved["tokens"]


def target_mask(targets: np.ndarray) -> torch.Tensor:
    """Return places (clip, step) as a mask (clip, step * PLACES) of ones and zeros."""
    return torch.nn.functional.one_hot(torch.from_numpy(targets), PLACES).flatten(1).float()


def steering_vector(
    model: Any,
    packer: packing.Packer,
    rng: np.random.Generator,
    *,
    steps: int,
    layer: int = 0,
    count: int = 64,
) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
    """Return the steering vector (width,) of ``layer``, measured on ``count`` marked clips.

    Also returns the accuracies on these clips, and their visual tokens (clip, token, width).
    """
    items, targets = clips(rng, count, steps, marked=True)
    marked, tokens = measure(model, packer, items, targets, layer)
    at = target_mask(targets)[..., None]
    full = torch.from_numpy(np.stack([item.kinds >= 0 for item in items])).flatten(1)[..., None] * (
        1 - at
    )
    return packing.mark_effect(tokens, at, full), marked, tokens


def report(
    model: Any,
    packer: packing.Packer,
    *,
    steps: int,
    layer: int = 0,
    count: int = 64,
    seed: int = 5,
) -> dict[str, Any]:
    """Return accuracies on marked, unmarked and steered unmarked clips, and the norms."""
    rng = np.random.default_rng(seed)
    vector, marked, tokens = steering_vector(
        model, packer, rng, steps=steps, layer=layer, count=count
    )
    items, targets = clips(rng, count, steps, marked=False)
    norms = {
        "pointer": round(float(vector.norm()), 2),
        "tokens": round(float(tokens.norm(dim=-1).mean()), 2),
    }
    plain = measure(model, packer, items, targets, layer)[0]
    added = measure(model, packer, items, targets, layer, vector)[0]
    return {
        "steps": steps,
        "layer": layer,
        "norms": norms,
        "marked": marked,
        "unmarked": plain,
        "pointer": added,
    }


def main() -> None:
    """Run the command line."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", type=Path, default=Path(__file__).parents[1] / "host")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.host).eval()
    packer = packing.Packer(AutoTokenizer.from_pretrained(args.host, trust_remote_code=False))
    for steps in (1, 4):
        for layer in args.layers:
            print(json.dumps(report(model, packer, steps=steps, layer=layer)))


if __name__ == "__main__":
    main()
