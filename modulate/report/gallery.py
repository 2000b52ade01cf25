"""Samples to look at: what was seen, what was answered with and without the signal, and where the
residual landed and how strong.

Nothing is simulated: a finished run's modulation is attached to its host, and the states that each
injected layer returns are read on both sides of the hook that writes on them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import encode_jpeg

from modulate.errors import DataError, ModulateError
from modulate.evaluation.evaluate import score
from modulate.evaluation.metrics import Prediction
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.components import Sample
from modulate.interfaces.signal import Mark
from modulate.modulation.attachment import Attachment
from modulate.modulation.module import Modulation
from modulate.report.runs import Recorded

PICTURE_WIDTH = 320
"""Widest picture of a frame, pixels; wider frames are shrunk."""

SAME = 1e-2
"""Most that a logit may differ from the one in predictions.jsonl before the page says so: other
batch sizes round differently.
"""


@dataclass(frozen=True)
class Step:
    """One time step: its number, its stretch of time (s), its last frame as JPEG with width and
    height, and where the signal was meanwhile.
    """

    index: int
    span: tuple[float, float]
    jpeg: bytes
    size: tuple[int, int]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Shown:
    """One sample of the gallery.

    ``answers``: by condition. By injected layer, of every visual token (step, row, col):
    ``strength`` ‖Δh‖/‖h‖ and ``due`` ‖Δh − Δh(blank)‖/‖h‖, how far it is from the residual of an
    empty signal. ``elsewhere``: by layer how many other tokens got a residual, and the largest
    ‖Δh‖/‖h‖ of them. ``kind``: how the answer changed. ``agrees``: answered as in
    predictions.jsonl.
    """

    sample: Sample
    kind: str
    answers: dict[str, Prediction]
    steps: tuple[Step, ...]
    n_steps: int
    strength: dict[int, NDArray[np.float32]]
    due: dict[int, NDArray[np.float32]]
    elsewhere: dict[int, tuple[int, float]]
    agrees: bool


@dataclass(frozen=True)
class Gallery:
    """Chosen samples of one run. ``kinds``: how many samples of the run there are of each kind,
    chosen from in turn; ``without``: the condition compared with.
    """

    name: str
    without: str
    kinds: dict[str, int]
    samples: tuple[Shown, ...] = field(default_factory=tuple)


KINDS = (
    "right only with the signal",
    "right only without it",
    "wrong either way",
    "right either way",
)


def choose(
    records: dict[str, list[Prediction]], n: int
) -> tuple[str, dict[str, int], list[tuple[str, str]]]:
    """Choose ``n`` samples: in turn one of each kind that there is, going through the tasks and
    evenly along the file within each.

    Returns the condition that stands for "without", how many samples there are of each kind, and
    (sample id, kind) of those chosen.
    """
    without = next((c for c in ("none", "blank", "host") if c in records), None)
    if without is None:
        raise DataError(
            "The gallery compares answers with and without the signal, but the run was evaluated"
            " under none of `none`, `blank` and `host`."
        )
    other = {r.id: r.correct for r in records[without]}
    pools: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
    for record in records["signal"]:
        kind = KINDS[
            {(True, False): 0, (False, True): 1, (False, False): 2, (True, True): 3}[
                record.correct, other.get(record.id, False)
            ]
        ]
        pools[kind].setdefault(record.task, []).append(record.id)
    counts = {kind: sum(map(len, tasks.values())) for kind, tasks in pools.items()}
    queues = [
        (kind, _in_turn([_spread(ids) for ids in tasks.values()])) for kind, tasks in pools.items()
    ]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < n and any(queue for _, queue in queues):
        chosen += [(queue.pop(0), kind) for kind, queue in queues if queue]
    return without, counts, chosen[:n]


def _spread(ids: Sequence[str]) -> list[str]:
    """The same ids, the middle one first, then those of the quarters, and so on: the first few lie
    far apart.
    """
    order: dict[int, None] = {}
    parts = 2
    while len(order) < len(ids) and parts <= 4 * len(ids):
        order |= dict.fromkeys(len(ids) * k // parts for k in range(1, parts, 2))
        parts *= 2
    return [ids[i] for i in [*order, *(i for i in range(len(ids)) if i not in order)]]


def _in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]


def gallery(
    recorded: Recorded, pipeline: Pipeline, n: int, split: str = "test", most_steps: int = 8
) -> Gallery:
    """Answer ``n`` samples of a run again and look where its residuals land.

    Errors of single samples are raised.
    """
    without, kinds, chosen = choose(recorded.scored, n)
    modulation = Modulation.from_pretrained(recorded.run.weights)
    pipeline.make_data()
    samples = {s.id: s for s in pipeline.dataset.samples(split)}
    missing = [id_ for id_, _ in chosen if id_ not in samples]
    if missing:
        raise DataError(
            f"The data have no sample {missing[0]!r} any more, which {recorded.run.folder} was"
            " evaluated on; is it another data set?"
        )
    conditions = [
        "signal",
        without,
        *(["host"] if modulation.lora is not None and without != "host" else []),
    ]
    with modulation.eval().to(pipeline.device).attached(pipeline.model) as attachment:
        found = tuple(
            _show(recorded, pipeline, attachment, samples[id_], kind, conditions, most_steps)
            for id_, kind in chosen
        )
    return Gallery(recorded.name, without, kinds, found)


def _show(
    recorded: Recorded,
    pipeline: Pipeline,
    attachment: Attachment,
    sample: Sample,
    kind: str,
    conditions: Sequence[str],
    most_steps: int,
) -> Shown:
    answers: dict[str, Prediction] = {}
    changes: dict[str, dict[int, Tensor]] = {}
    for condition in dict.fromkeys([*conditions, "blank"]):
        with traced(attachment) as trace:
            (answer,) = score(pipeline, attachment, [sample], condition)
        if answer.error:
            raise ModulateError(answer.error)
        if condition in conditions:
            answers[condition] = answer
        if condition == "signal":
            sizes = {
                layer: before[0].float().norm(dim=-1).clamp_min(1e-12)
                for layer, (before, _) in trace.items()
            }
        changes[condition] = {
            layer: after[0].float() - before[0].float() for layer, (before, after) in trace.items()
        }
    prepared = pipeline.prepare(sample)
    ratios = {
        layer: (change.norm(dim=-1) / sizes[layer]).cpu()
        for layer, change in changes["signal"].items()
    }
    strength, elsewhere = _placed(pipeline, prepared, ratios)
    due, _ = _placed(
        pipeline,
        prepared,
        {
            k: ((change - changes["blank"][k]).norm(dim=-1) / sizes[k]).cpu()
            for k, change in changes["signal"].items()
        },
    )
    steps = _steps(pipeline, prepared, most_steps)
    assert prepared.grid is not None
    before = {
        (r.condition, r.id): r
        for records in recorded.records.values()
        for r in records
        if r.id == sample.id
    }
    agrees = all(
        _same(answers[c], before[c, sample.id]) for c in conditions if (c, sample.id) in before
    )
    return Shown(
        sample, kind, answers, steps, prepared.grid.steps, strength, due, elsewhere, agrees
    )


def _same(a: Prediction, b: Prediction) -> bool:
    return (
        a.prediction == b.prediction
        and len(a.logits) == len(b.logits)
        and all(abs(x - y) <= SAME for x, y in zip(a.logits, b.logits, strict=True))
    )


@contextmanager
def traced(attachment: Attachment) -> Iterator[dict[int, list[Tensor]]]:
    """Keep, of each injected layer, the states that it returns before and after the residual is
    written: layer → [before, after], (row, position, d_model).

    Hooks are first and last in line, so whatever stands between is what the attachment (or anybody
    else) wrote; they are taken out again.
    """
    kept: dict[int, list[Tensor]] = {}
    handles = []

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            kept.setdefault(layer, []).append(
                (output[0] if isinstance(output, tuple) else output).detach()
            )

        return hook

    try:
        for layer in attachment.modulation.config.injection.layers:
            module = attachment.host.layers[layer]
            handles += [
                module.register_forward_hook(keep(layer), prepend=True),
                module.register_forward_hook(keep(layer)),
            ]
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _placed(
    pipeline: Pipeline, prepared: PreparedSample, ratios: dict[int, Tensor]
) -> tuple[dict[int, NDArray[np.float32]], dict[int, tuple[int, float]]]:
    """Lay positions out on the visual grid; what is on other tokens is counted."""
    grid = prepared.grid
    assert grid is not None
    ids = prepared.inputs["input_ids"][0].cpu()
    visual = torch.isin(ids, torch.tensor(list(pipeline.host.visual_ids.values())))
    places = torch.tensor(list(pipeline.host.placeholders(grid)))
    if int(visual.sum()) != len(places):
        raise DataError(
            f"Sample {prepared.sample.id}: the prompt has {int(visual.sum())} visual placeholders,"
            f" its grid {len(places)}."
        )
    strength = {}
    elsewhere = {}
    for layer, ratio in ratios.items():
        flat = torch.zeros(grid.tokens)
        shown = places >= 0
        flat[places[shown]] = ratio[visual][shown]
        strength[layer] = flat.view(grid.steps, grid.rows, grid.cols).numpy()
        rest = ratio[~visual]
        elsewhere[layer] = (int((rest > 0).sum()), float(rest.max()) if len(rest) else 0.0)
    return strength, elsewhere


def _steps(pipeline: Pipeline, prepared: PreparedSample, most: int) -> tuple[Step, ...]:
    """Pictures of at most ``most`` steps, evenly spaced, first and last among them; each step by
    its last frame.
    """
    grid = prepared.grid
    sample = prepared.sample
    assert grid is not None
    frames = pipeline.clip_reader.read(sample.video, pipeline.times(sample))
    together = -(-len(frames.times) // grid.steps)
    n = min(most, grid.steps)
    indices = (
        sorted({round(k * (grid.steps - 1) / max(1, n - 1)) for k in range(n)})
        if n > 1
        else [grid.steps - 1]
    )
    steps = []
    for k in indices:
        jpeg, size = _jpeg(frames.images[min((k + 1) * together, len(frames.times)) - 1])
        steps.append(Step(k, grid.spans[k], jpeg, size, prepared.signal.marks(*grid.spans[k])))
    return tuple(steps)


def _jpeg(image: NDArray[np.uint8]) -> tuple[bytes, tuple[int, int]]:
    """Return a frame (height, width, 3) as JPEG, at most :data:`PICTURE_WIDTH` wide, with its width
    and height.
    """
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
    height, width = image.shape[:2]
    if width > PICTURE_WIDTH:
        size = (max(1, round(height * PICTURE_WIDTH / width)), PICTURE_WIDTH)
        small = torch.nn.functional.interpolate(
            pixels[None].float(), size=size, mode="bilinear", antialias=True
        )[0]
        pixels = small.round().clamp(0, 255).to(torch.uint8)
    return bytes(encode_jpeg(pixels.contiguous(), quality=82).numpy().tobytes()), (
        pixels.shape[2],
        pixels.shape[1],
    )
