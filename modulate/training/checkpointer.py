"""Checkpoints of a running training: saved by rank 0, restored by every process."""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict

from accelerate import Accelerator

from modulate.data.feature_cache import weights_digest
from modulate.distributed.launch import current
from modulate.modulation.module import Modulation
from modulate.runs.run import Run
from modulate.training.trainer_state import Snapshot, parse_notes, require_same_inputs
from modulate.utils.atomic_files import LineWriter


class Checkpointer:
    """Saves snapshots of a run's training and restores the last one.

    Args:
        run: the run.
        made_of: fingerprints of the training's inputs.
        accelerator: has the state of fp16's loss scale.
        log: the run's log, which is cut to the lines of the snapshot that is restored.
    """

    def __init__(
        self, run: Run, made_of: dict[str, str], accelerator: Accelerator, log: LineWriter
    ) -> None:
        self.checkpoints = run.checkpoints
        self.made_of = made_of
        self.accelerator = accelerator
        self.log = log
        self._saved_at = time.monotonic()

    def save(self, snapshot: Snapshot, modulation: Modulation) -> None:
        """Write a checkpoint. Raises :class:`StorageError`.

        Raises :class:`DataError` if the processes' weights have come to differ.
        """
        processes = current()
        if processes.size > 1:
            digest = weights_digest(modulation)
            processes.require_equal("modulation at a checkpoint", digest)
        if not processes.is_main_process:
            return
        now = time.monotonic()
        snapshot.state.seconds += now - self._saved_at
        self._saved_at = now
        snapshot.state.lines = self.log.count
        snapshot.model = modulation.state_dict()
        notes, tensors = snapshot.pack(self.accelerator)
        # Flushed first, so that a log on disk has all the lines that a checkpoint counts.
        self.log.flush()
        self.checkpoints.save({"made_of": self.made_of, **notes}, tensors)

    def restore(self, modulation: Modulation, notify: Callable[[str], None]) -> Snapshot | None:
        """Return the last intact snapshot, its weights loaded into ``modulation``, or None.

        ``notify`` receives a line that says where the training continues. Raises
        :class:`CheckpointError`; :class:`DataError` if the training's inputs have changed.
        """
        processes = current()
        # Rank 0 removes damaged checkpoints before the other processes read.
        found = self.checkpoints.latest() if processes.is_main_process else None
        processes.barrier()
        if not processes.is_main_process:
            found = self.checkpoints.latest()
        notes = parse_notes(found, self.checkpoints.folder) if found else None
        processes.require_equal("checkpoint, or none", notes and asdict(notes.state))
        if found is None or notes is None:
            self._cut_log(0)
            return None
        require_same_inputs(self.log.path.parent, notes.made_of, self.made_of)
        snapshot = Snapshot.unpack(found, notes, self.accelerator)
        snapshot.load_into(modulation)
        state = snapshot.state
        self._cut_log(state.lines)
        state.resumed.append(state.steps)
        if processes.is_main_process:
            notify(
                f"Continuing after optimizer step {state.steps}, from {self.checkpoints.folder}."
            )
        return snapshot

    def _cut_log(self, lines: int) -> None:
        """Remove the lines of steps that are about to be repeated, and warn of missing lines."""
        if not current().is_main_process:
            return
        missing = self.log.cut(lines)
        if missing:
            warnings.warn(
                f"{self.log.path} lacks {missing} lines that were written before the checkpoint;"
                " the training itself lacks nothing.",
                stacklevel=3,
            )
