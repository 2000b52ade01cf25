"""Reports on a running training: log.jsonl, the recipe's trackers, and the caller's listener."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator

from modulate.distributed.launch import current
from modulate.runs.run import Run
from modulate.utils.atomic_files import LineWriter


@dataclass
class Progress:
    """What a listener receives after every optimizer step.

    ``loss``: NaN if no sample took part. ``active``: share of samples whose signal reached a token.
    ``skipped``: why the step was skipped, or "".
    """

    stage: str
    step: int
    steps: int
    loss: float
    accuracy: float
    active: float
    lr: float
    skipped: str = ""


Listener = Callable[[Progress], None]


class TrainingLog:
    """Writes a training's steps and validations. Only rank 0 writes; every rank has a listener.

    ``lines``: the run's log.jsonl.
    """

    def __init__(self, run: Run, accelerator: Accelerator, listener: Listener) -> None:
        self.lines = LineWriter(run.folder / "log.jsonl")
        self.accelerator = accelerator
        self.listener = listener
        self.has_trackers = bool(run.recipe.training.trackers)
        if self.has_trackers:
            accelerator.init_trackers(run.recipe.name)

    def step(self, progress: Progress, steps: int) -> None:
        """Report an optimizer step; ``steps``: number of steps in all stages so far."""
        record = asdict(progress)
        if not progress.skipped:
            del record["skipped"]
        self._write(record, steps)
        self.listener(progress)

    def validation(self, stage: str, step: int, accuracy: float, steps: int) -> None:
        """Report the accuracy of a validation after ``step`` steps of a stage."""
        self._write({"stage": stage, "step": step, "validation_accuracy": accuracy}, steps)

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _write(self, record: dict[str, Any], steps: int) -> None:
        if not current().is_main_process:
            return
        plain = {key: None if _is_not_finite(value) else value for key, value in record.items()}
        self.lines.append(json.dumps(plain, allow_nan=False))
        if self.has_trackers:
            numbers = {key: v for key, v in plain.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=steps)


def _is_not_finite(value: Any) -> bool:
    """Return whether JSON has no such number."""
    return isinstance(value, float) and not math.isfinite(value)
