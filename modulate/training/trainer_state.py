"""What a training needs to go on as if it had never ended: where it is, its weights and moments,
its random numbers.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import ConfigDict, Field, Strict, TypeAdapter
from torch import Tensor, nn

from modulate.errors import CheckpointError, DataError
from modulate.runs.checkpoints import Checkpoint
from modulate.utils.schema import Count, Real, Record, checked

Weights = dict[str, Tensor]


@dataclass
class TrainerState:
    """Where a training is.

    ``stage``: index of the running stage; of it ``step`` optimizer steps done, ``validated`` at
    which of them last, the ``best`` accuracy so far, and ``stale`` validations since. ``steps``: of
    all stages. ``lines``: of the log. ``skipped``: optimizer steps not taken, by reason;
    ``in_a_row``: the last ones, if not finite. ``split_steps``: those for which memory was short.
    ``apart``: batches of one clip whose questions could not be asked together. ``resumed``:
    ``steps`` at every resumption.
    """

    __pydantic_config__ = ConfigDict(
        extra="forbid"
        # a key that this version does not know says where the training is: guessing would train
        # otherwise
    )

    stage: Count = 0
    step: Count = 0
    validated: Count = 0
    best: Real = -1.0
    stale: Count = 0
    steps: Count = 0
    lines: Count = 0
    seconds: Real = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, Count] = field(default_factory=dict)
    in_a_row: Count = 0
    split_steps: Count = 0
    apart: Count = 0
    resumed: list[Count] = field(default_factory=list)


Word = Annotated[int, Strict(), Field(ge=0, lt=2**32)]


class Notes(Record):
    """What a checkpoint notes in JSON: what the run is made of, where its training is, and the
    states of the random numbers and of fp16's loss scale.
    """

    model_config = ConfigDict(strict=False)  # a dataclass, and tuples, are made of what JSON has

    made_of: dict[str, str]
    state: TrainerState
    random: tuple[Literal[3], tuple[Word, ...], Real | None]
    scaler: dict[str, Any] | None = None


_NOTES = TypeAdapter(Notes)


def notes_of(found: Checkpoint, folder: Path) -> Notes:
    """Return what a checkpoint in ``folder`` notes.

    Raises :class:`CheckpointError` for what no training of this version notes.
    """
    try:
        return checked(
            _NOTES, found.notes, f"The last checkpoint in {folder}", "notes of a training", ""
        )
    except DataError as error:
        raise _misfit(error) from error


@dataclass
class Snapshot:
    """A training at one moment: its state, the modulation's weights now and at their best, the
    optimizer's moments, and the augmentation's random numbers.
    """

    state: TrainerState
    model: Weights
    best: Weights
    moments: Weights
    rng: random.Random

    def pack(self, accelerator: Accelerator) -> tuple[dict[str, Any], Weights]:
        """Return notes and tensors for a checkpoint, with torch's random state and that of fp16's
        loss scale.
        """
        scaler = accelerator.scaler
        notes = {
            "state": asdict(self.state),
            "random": self.rng.getstate(),
            "scaler": scaler and scaler.state_dict(),
        }
        torch_random = {"cpu": torch.get_rng_state()}
        if accelerator.device.type == "cuda":
            torch_random["cuda"] = torch.cuda.get_rng_state(accelerator.device)
        parts = {
            "model": self.model,
            "best": self.best,
            "moments": self.moments,
            "random": torch_random,
        }
        return notes, {
            f"{part}/{key}": value
            for part, values in parts.items()
            for key, value in values.items()
        }

    @classmethod
    def unpack(cls, found: Checkpoint, notes: Notes, accelerator: Accelerator) -> "Snapshot":
        """Return what :meth:`pack` packed, and set torch's random state and the loss scale;
        ``notes``: those of ``found``. Raises :class:`CheckpointError`.
        """
        parts: dict[str, Weights] = {"model": {}, "best": {}, "moments": {}, "random": {}}
        try:
            for key, value in found.tensors.items():
                part, _, name = key.partition("/")
                parts[part][name] = value
            rng = random.Random()
            rng.setstate(notes.random)
            torch.set_rng_state(parts["random"]["cpu"])
            if "cuda" in parts["random"] and accelerator.device.type == "cuda":
                torch.cuda.set_rng_state(parts["random"]["cuda"], accelerator.device)
            if accelerator.scaler is not None and notes.scaler:
                accelerator.scaler.load_state_dict(notes.scaler)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise _misfit(error) from error
        return cls(notes.state, parts["model"], parts["best"], parts["moments"], rng)

    def load_into(self, modulation: nn.Module) -> None:
        """Give ``modulation`` the weights. Raises :class:`CheckpointError`."""
        try:
            modulation.load_state_dict(self.model)
        except RuntimeError as error:
            raise _misfit(error) from error


def _misfit(error: Exception) -> CheckpointError:
    return CheckpointError(
        "The run's checkpoints were written by another version of modulate or of a plugin"
        f" ({error}); start it anew with --no-resume."
    )


def refuse_other(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise :class:`DataError` when what a run is made of has changed since it began."""
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise DataError(
            f"{folder} was begun with other {' and '.join(changed)} than there is now. Bring that"
            " back, give this run another name with name=…, or start it anew with --no-resume (in"
            " Python: resume=False), which removes what it has."
        )
