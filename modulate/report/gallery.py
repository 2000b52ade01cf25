"""Sample gallery: what the host saw and answered, and where the residual landed.

Nothing is simulated: a finished run's modulation is attached to its host, and forward hooks record
the states of each injected layer before and after the residual is added.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import encode_jpeg

from modulate.errors import DataError, ModulateError
from modulate.evaluation.predictions import Prediction
from modulate.evaluation.scoring import score
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedClip, PreparedSample
from modulate.interfaces import signal_checks
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import Mark
from modulate.interfaces.visual_grid import VisualGrid
from modulate.modulation.attachment import Attachment
from modulate.modulation.module import Modulation
from modulate.report.runs import EvaluatedRun

PICTURE_WIDTH = 320
"""Largest width of a frame's picture in pixels; wider frames are scaled down."""

LOGIT_TOLERANCE = 1e-2
"""Largest difference from a logit in predictions.jsonl that still counts as the same answer.

Batches of another size round differently.
"""

CORRECT_WITH = "correct only with the signal"
CORRECT_WITHOUT = "correct only without it"
WRONG = "wrong either way"
CORRECT = "correct either way"


@dataclass(frozen=True)
class StepPicture:
    """One time step, shown by its last frame.

    ``span``: start and end in seconds. ``size``: width and height of the JPEG. ``marks``: where the
    signal was during the step.
    """

    index: int
    span: tuple[float, float]
    jpeg: bytes
    size: tuple[int, int]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class OtherTokens:
    """Residuals on tokens that are not visual: how many there are, and the largest ‖Δh‖/‖h‖."""

    count: int
    largest: float


@dataclass(frozen=True)
class GalleryClip:
    """One clip of a sample.

    ``steps``: those that are shown, of ``n_steps``. By injected layer, for every visual token
    (step, row, col): ``strength`` is ‖Δh‖/‖h‖, and ``signal_effect`` is ‖Δh − Δh(blank)‖/‖h‖, the
    distance from the residual of an empty signal.
    """

    steps: tuple[StepPicture, ...]
    n_steps: int
    strength: dict[int, NDArray[np.float32]]
    signal_effect: dict[int, NDArray[np.float32]]


@dataclass(frozen=True)
class GallerySample:
    """One sample of the gallery.

    ``kind``: how the signal changed the answer. ``answers``: by condition. ``clips``: in the
    sample's order. ``other_tokens``: by layer. ``reproduced``: whether the answers agree with
    predictions.jsonl.
    """

    sample: Sample
    kind: str
    answers: dict[str, Prediction]
    clips: tuple[GalleryClip, ...]
    other_tokens: dict[int, OtherTokens]
    reproduced: bool


@dataclass(frozen=True)
class Gallery:
    """Chosen samples of one run.

    ``without``: the condition that stands for answers without the signal. ``kinds``: number of the
    run's samples of each kind, from which the gallery's are drawn in turn.
    """

    run_name: str
    without: str
    kinds: dict[str, int]
    samples: tuple[GallerySample, ...] = ()


# --- choosing samples


def choose_samples(
    records: dict[str, list[Prediction]], n: int
) -> tuple[str, dict[str, int], list[tuple[str, str]]]:
    """Choose ``n`` samples, one of each kind in turn, spread over tasks and over the file.

    Returns the condition that stands for "without", the number of samples of each kind, and
    (sample id, kind) of those chosen. Raises :class:`DataError` when the run was evaluated under no
    condition without the signal.
    """
    without = next((name for name in ("none", "blank", "host") if name in records), None)
    if without is None:
        raise DataError(
            "The gallery compares answers with and without the signal, but the run was evaluated"
            " under none of `none`, `blank` and `host`."
        )
    correct_without = {record.id: record.correct for record in records[without]}
    pools: dict[str, dict[str, list[str]]] = {
        kind: {} for kind in (CORRECT_WITH, CORRECT_WITHOUT, WRONG, CORRECT)
    }
    for record in records["signal"]:
        kind = _kind(record.correct, correct_without.get(record.id, False))
        pools[kind].setdefault(record.task, []).append(record.id)
    counts = {kind: sum(map(len, tasks.values())) for kind, tasks in pools.items()}
    queues = {
        kind: _round_robin([_spread_out(ids) for ids in tasks.values()])
        for kind, tasks in pools.items()
    }
    chosen: list[tuple[str, str]] = []
    while len(chosen) < n and any(queues.values()):
        chosen += [(queue.pop(0), kind) for kind, queue in queues.items() if queue]
    return without, counts, chosen[:n]


def _kind(correct_with: bool, correct_without: bool) -> str:
    if correct_with:
        return CORRECT if correct_without else CORRECT_WITH
    return CORRECT_WITHOUT if correct_without else WRONG


def _spread_out(ids: Sequence[str]) -> list[str]:
    """Reorder ids so that the first few lie far apart: the middle, the quarters, the eighths, …"""
    order: dict[int, None] = {}
    parts = 2
    # Beyond 4 × len(ids) parts, rounding down finds no new index.
    while len(order) < len(ids) and parts <= 4 * len(ids):
        order |= dict.fromkeys(len(ids) * k // parts for k in range(1, parts, 2))
        parts *= 2
    left = [i for i in range(len(ids)) if i not in order]
    return [ids[i] for i in [*order, *left]]


def _round_robin(lists: Sequence[Sequence[str]]) -> list[str]:
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]


# --- answering again


def build_gallery(
    evaluated: EvaluatedRun,
    pipeline: Pipeline,
    n: int,
    split: str = "test",
    most_steps: int = 8,
) -> Gallery:
    """Answer ``n`` samples of a run again and record where its residuals land.

    ``most_steps``: time steps to show of each clip. Raises the errors of single samples, and
    :class:`DataError` when the data no longer hold a sample.
    """
    without, kinds, chosen = choose_samples(evaluated.scored, n)
    modulation = Modulation.from_pretrained(evaluated.run.weights)
    pipeline.make_data()
    samples = {sample.id: sample for sample in pipeline.dataset.samples(split)}
    missing = [sample_id for sample_id, _ in chosen if sample_id not in samples]
    if missing:
        raise DataError(
            f"The data no longer hold the sample {missing[0]!r}, on which {evaluated.run.folder}"
            " was evaluated; is it another data set?"
        )
    conditions = ["signal", without]
    if modulation.lora is not None and without != "host":
        conditions.append("host")
    with modulation.eval().to(pipeline.device).attached(pipeline.model) as attachment:
        found = tuple(
            _answer_again(
                evaluated, pipeline, attachment, samples[sample_id], kind, conditions, most_steps
            )
            for sample_id, kind in chosen
        )
    return Gallery(evaluated.name, without, kinds, found)


def _answer_again(
    evaluated: EvaluatedRun,
    pipeline: Pipeline,
    attachment: Attachment,
    sample: Sample,
    kind: str,
    conditions: Sequence[str],
    most_steps: int,
) -> GallerySample:
    answers: dict[str, Prediction] = {}
    traces: dict[str, dict[int, list[Tensor]]] = {}
    # The blank run gives the residual to subtract; it is shown only if it is a condition itself.
    for condition in dict.fromkeys([*conditions, "blank"]):
        with trace_layers(attachment) as trace:
            (answer,) = score(pipeline, attachment, [sample], condition)
        if answer.error:
            raise ModulateError(answer.error)
        if condition in ("signal", "blank"):
            traces[condition] = trace
        if condition in conditions:
            answers[condition] = answer
    strength, signal_effect = _relative_residuals(traces["signal"], traces["blank"])
    prepared = pipeline.prepare(sample)
    on_clips = (_on_clips(pipeline, prepared, ratios) for ratios in (strength, signal_effect))
    clips = tuple(
        GalleryClip(_step_pictures(pipeline, shown, clip, most_steps), clip.grid.steps, *ratios)
        for shown, clip, *ratios in zip(sample.clips, prepared.clips, *on_clips, strict=True)
    )
    return GallerySample(
        sample,
        kind,
        answers,
        clips,
        _other_tokens(_is_visual(pipeline, prepared), strength),
        _reproduced(answers, evaluated),
    )


def _relative_residuals(
    signal: dict[int, list[Tensor]], blank: dict[int, list[Tensor]]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return ‖Δh‖/‖h‖ and ‖Δh − Δh(blank)‖/‖h‖ by layer, (position,)."""
    strength = {}
    signal_effect = {}
    # Of the first forward, which is the prompt's; generated tokens and options follow.
    for layer, (before, after, *_) in signal.items():
        norm = before[0].float().norm(dim=-1).clamp_min(1e-12)
        residual = after[0].float() - before[0].float()
        blank_before, blank_after = blank[layer][:2]
        blank_residual = blank_after[0].float() - blank_before[0].float()
        strength[layer] = (residual.norm(dim=-1) / norm).cpu()
        signal_effect[layer] = ((residual - blank_residual).norm(dim=-1) / norm).cpu()
    return strength, signal_effect


def _reproduced(answers: dict[str, Prediction], evaluated: EvaluatedRun) -> bool:
    """Return whether the answers are those in predictions.jsonl, where it has them."""
    for condition, answer in answers.items():
        for record in evaluated.records.get(condition, []):
            if record.id == answer.id and not _same_answer(record, answer):
                return False
    return True


def _same_answer(first: Prediction, second: Prediction) -> bool:
    if (first.prediction, first.text) != (second.prediction, second.text):
        return False
    if len(first.logits) != len(second.logits):
        return False
    pairs = zip(first.logits, second.logits, strict=True)
    return all(abs(x - y) <= LOGIT_TOLERANCE for x, y in pairs)


@contextmanager
def trace_layers(attachment: Attachment) -> Iterator[dict[int, list[Tensor]]]:
    """Record the states that each injected layer returns, before and after the residual is added.

    Yields layer → [before, after, …], each (row, position, d_model), filled by the next forwards.
    """
    trace: dict[int, list[Tensor]] = {}
    handles = []

    def record(layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            trace.setdefault(layer, []).append(states.detach())

        return hook

    try:
        for layer in attachment.modulation.config.injection.layers:
            module = attachment.host.layers[layer]
            # First and last in line: whatever runs in between, ours or not, counts as residual.
            handles.append(module.register_forward_hook(record(layer), prepend=True))
            handles.append(module.register_forward_hook(record(layer)))
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _is_visual(pipeline: Pipeline, prepared: PreparedSample) -> Tensor:
    """Return (position,) bool, whether it holds a visual placeholder."""
    ids = prepared.inputs["input_ids"][0].cpu()
    return torch.isin(ids, torch.tensor(list(pipeline.host.visual_ids.values())))


def _on_clips(
    pipeline: Pipeline, prepared: PreparedSample, ratios: dict[int, Tensor]
) -> list[dict[int, NDArray[np.float32]]]:
    """Lay values of prompt positions out on each clip's visual grid."""
    visual = _is_visual(pipeline, prepared)
    # Options of several tokens continue from the part of the prompt that holds its clips.
    ratios = {layer: _padded(ratio, len(visual)) for layer, ratio in ratios.items()}
    tokens = [torch.tensor(list(pipeline.host.placeholders(c.grid))) for c in prepared.clips]
    if int(visual.sum()) != sum(map(len, tokens)):
        raise DataError(
            f"Sample {prepared.sample.id}: the prompt has {int(visual.sum())} visual placeholders,"
            f" its grids {sum(map(len, tokens))}."
        )
    sizes = list(map(len, tokens))
    by_layer = {layer: ratio[visual].split(sizes) for layer, ratio in ratios.items()}
    return [
        {layer: _on_grid(parts[i], tokens[i], clip.grid) for layer, parts in by_layer.items()}
        for i, clip in enumerate(prepared.clips)
    ]


def _padded(ratio: Tensor, length: int) -> Tensor:
    """Return (position,) of a whole prompt: 0 where a ratio ends before it."""
    return torch.nn.functional.pad(ratio, (0, length - len(ratio)))


def _on_grid(values: Tensor, tokens: Tensor, grid: VisualGrid) -> NDArray[np.float32]:
    """Return (step, row, col) of ``values`` of a clip's placeholders."""
    # Some hosts have placeholders that show no place (ends of lines, separators): −1.
    on_grid = tokens >= 0
    flat = torch.zeros(grid.tokens)
    flat[tokens[on_grid]] = values[on_grid]
    laid_out: NDArray[np.float32] = flat.view(grid.steps, grid.rows, grid.cols).numpy()
    return laid_out


def _other_tokens(visual: Tensor, ratios: dict[int, Tensor]) -> dict[int, OtherTokens]:
    found = {}
    for layer, ratio in ratios.items():
        others = _padded(ratio, len(visual))[~visual]
        largest = float(others.max()) if len(others) else 0.0
        found[layer] = OtherTokens(int((others > 0).sum()), largest)
    return found


# --- pictures


def _step_pictures(
    pipeline: Pipeline, shown: SampleClip, clip: PreparedClip, most: int
) -> tuple[StepPicture, ...]:
    """Return pictures of at most ``most`` steps, evenly spaced from the first to the last."""
    frames = pipeline.extractor.frames(shown)
    grid = clip.grid
    frames_per_step = -(-len(frames.times) // grid.steps)
    pictures = []
    for index in _spaced_indices(grid.steps, most):
        # The last step may have fewer frames than the others.
        last_frame = min((index + 1) * frames_per_step, len(frames.times)) - 1
        jpeg, size = _jpeg(frames.images[last_frame])
        span = grid.spans[index]
        marks = () if clip.signal is None else signal_checks.marks(clip.signal, *span)
        pictures.append(StepPicture(index, span, jpeg, size, marks))
    return tuple(pictures)


def _spaced_indices(n: int, most: int) -> list[int]:
    """Return at most ``most`` of ``n`` indices, evenly spaced with both ends; of one, the last."""
    count = min(most, n)
    if count <= 1:
        return [n - 1]
    return sorted({round(i * (n - 1) / (count - 1)) for i in range(count)})


def _jpeg(image: NDArray[np.uint8]) -> tuple[bytes, tuple[int, int]]:
    """Return a frame (height, width, 3) as JPEG, with its width and height as shown."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
    height, width = image.shape[:2]
    if width > PICTURE_WIDTH:
        size = (max(1, round(height * PICTURE_WIDTH / width)), PICTURE_WIDTH)
        resized = torch.nn.functional.interpolate(
            pixels[None].float(), size=size, mode="bilinear", antialias=True
        )
        pixels = resized[0].round().clamp(0, 255).to(torch.uint8)
    jpeg = encode_jpeg(pixels.contiguous(), quality=82).numpy().tobytes()
    return bytes(jpeg), (pixels.shape[2], pixels.shape[1])
