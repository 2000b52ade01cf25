"""What a checkpoint holds: progress, weights, moments and random states of a training."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import AliasChoices, ConfigDict, Field, Strict, TypeAdapter
from torch import Tensor, nn

from modulate.errors import CheckpointError, DataError
from modulate.runs.checkpoints import Checkpoint
from modulate.utils.schema import Count, Real, Record, checked

Weights = dict[str, Tensor]


@dataclass
class TrainerState:
    """Progress and counts of a training.

    Of the running stage: ``stage``: its index. ``step``: optimizer steps done. ``validated``: the
    step of the last validation. ``best``: highest validation accuracy. ``stale``: validations since
    then.

    Of the whole training: ``steps``: optimizer steps done. ``lines``: lines of the log. ``failed``:
    errors of samples, by id. ``skipped``: optimizer steps not taken, by reason.
    ``consecutive_skips``: the latest of them in a row that were not finite. ``split_steps``: steps
    split because memory was short. ``unshared_batches``: batches of one clip whose questions could
    not share a forward. ``resumed``: ``steps`` at each resumption.
    """

    # A key unknown to this version is refused: to ignore it could change the rest of the training.
    __pydantic_config__ = ConfigDict(extra="forbid")

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
    # The second names are those of version 0.1, whose checkpoints still load.
    consecutive_skips: Annotated[
        Count, Field(validation_alias=AliasChoices("consecutive_skips", "in_a_row"))
    ] = 0
    split_steps: Count = 0
    unshared_batches: Annotated[
        Count, Field(validation_alias=AliasChoices("unshared_batches", "apart"))
    ] = 0
    resumed: list[Count] = field(default_factory=list)

    def count_step(self, skipped: str) -> None:
        """Count an optimizer step; ``skipped``: why it was not taken, or ""."""
        self.step += 1
        self.steps += 1
        if skipped:
            self.skipped[skipped] = self.skipped.get(skipped, 0) + 1
        self.consecutive_skips = self.consecutive_skips + 1 if skipped == "not_finite" else 0


Word = Annotated[int, Strict(), Field(ge=0, lt=2**32)]


class Notes(Record):
    """The JSON part of a checkpoint.

    ``made_of``: fingerprints of the training's inputs. ``random``: the state of the augmentation's
    random numbers. ``scaler``: that of fp16's loss scale.
    """

    model_config = ConfigDict(strict=False)  # JSON has lists and objects for tuples and dataclasses

    made_of: dict[str, str]
    state: TrainerState
    random: tuple[Literal[3], tuple[Word, ...], Real | None]
    scaler: dict[str, Any] | None = None


_NOTES = TypeAdapter(Notes)


def parse_notes(found: Checkpoint, folder: Path) -> Notes:
    """Return the notes of a checkpoint in ``folder``.

    Raises :class:`CheckpointError` if this version of modulate would not have written them.
    """
    try:
        return checked(
            _NOTES, found.notes, f"The last checkpoint in {folder}", "notes of a training", ""
        )
    except DataError as error:
        raise _misfit(error) from error


@dataclass
class Snapshot:
    """Everything that a training needs to continue as if it had never stopped.

    ``model``: the modulation's weights. ``best``: those of the stage's best validation; empty
    before the first. ``moments``: the optimizer's. ``rng``: the augmentation's random numbers.
    """

    state: TrainerState
    model: Weights
    best: Weights
    moments: Weights
    rng: random.Random

    @classmethod
    def initial(cls, seed: int) -> "Snapshot":
        """Return the snapshot of a training that has not begun."""
        return cls(TrainerState(), {}, {}, {}, random.Random(seed))

    # --- progress

    def record_validation(self, accuracy: float, modulation: nn.Module) -> None:
        """Note a validation, and keep the weights if none was better."""
        state = self.state
        state.validated = state.step
        if accuracy >= state.best:
            state.best = accuracy
            state.stale = 0
            weights = modulation.state_dict()
            self.best = {name: value.detach().clone() for name, value in weights.items()}
        else:
            state.stale += 1

    def finish_stage(self, modulation: nn.Module) -> None:
        """Give ``modulation`` the stage's best weights, if it was validated; begin the next."""
        if self.best:
            modulation.load_state_dict(self.best)
        state = self.state
        state.stage += 1
        state.step = 0
        state.validated = 0
        state.best = -1.0
        state.stale = 0
        self.best = {}
        self.moments = {}

    # --- checkpoints

    def pack(self, accelerator: Accelerator) -> tuple[dict[str, Any], Weights]:
        """Return notes and tensors for a checkpoint.

        They include torch's random state and the state of fp16's loss scale.
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
        tensors = {
            f"{part}/{name}": value
            for part, values in parts.items()
            for name, value in values.items()
        }
        return notes, tensors

    @classmethod
    def unpack(cls, found: Checkpoint, notes: Notes, accelerator: Accelerator) -> "Snapshot":
        """Return what :meth:`pack` packed; set torch's random state and the loss scale.

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
        """Give ``modulation`` the snapshot's weights. Raises :class:`CheckpointError`."""
        try:
            modulation.load_state_dict(self.model)
        except RuntimeError as error:
            raise _misfit(error) from error


def _misfit(error: Exception) -> CheckpointError:
    return CheckpointError(
        "The run's checkpoints were written by another version of modulate or of a plugin"
        f" ({error}); start it anew with --no-resume."
    )


def require_same_inputs(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise :class:`DataError` if the fingerprints of a run's inputs changed since it began."""
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise DataError(
            f"{folder} was begun with other {' and '.join(changed)} than there is now. Bring that"
            " back, give this run another name with name=…, or start it anew with --no-resume (in"
            " Python: resume=False), which removes what it has."
        )
