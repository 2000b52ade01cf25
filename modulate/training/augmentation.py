"""The clips that condition training samples, with their signals perturbed at random."""

import random
from collections.abc import Sequence
from typing import Any

from modulate.config.sections import Training
from modulate.distributed.process_group import ProcessGroup
from modulate.hosts.host import Host
from modulate.inference.preparation import PreparedSample, ReadySample
from modulate.interfaces.signal import Signal
from modulate.interfaces.signal_checks import call
from modulate.modulation.clip_inputs import ClipInput
from modulate.training.loss import shared_length


class Augmentation:
    """Conditions samples as the recipe says: with their signal, a blank one, or nothing.

    ``rng`` perturbs the signals. All ``processes`` together draw the numbers that one would.
    """

    def __init__(
        self, settings: Training, host: Host, rng: random.Random, processes: ProcessGroup
    ) -> None:
        self.settings = settings
        self.host = host
        self.rng = rng
        self.processes = processes

    def condition(self, batches: Sequence[Sequence[PreparedSample]]) -> list[list[ReadySample]]:
        """Return a step's batches with the clips that condition each sample."""
        draws = self.settings.augment and self.settings.condition != "none"
        if self.processes.size == 1 or not draws:
            return [self._condition_batch(batch) for batch in batches]
        ready: list[list[ReadySample]] = []

        def continue_drawing(state: Any) -> Any:
            self._set_state(state)
            ready.extend(self._condition_batch(batch) for batch in batches)
            return self.rng.getstate()

        # In rank order, the processes' samples are those of a single process. So that every sample
        # gets the same numbers, each rank continues where the rank before it stopped.
        self._set_state(self.processes.chain(self.rng.getstate(), continue_drawing))
        return ready

    def _condition_batch(self, prepared: Sequence[PreparedSample]) -> list[ReadySample]:
        # Questions that share a forward are conditioned once, so they share one perturbation.
        if prepared and shared_length(prepared, self.host, self.settings):
            clips = self._clips(prepared[0])
            return [(sample, clips) for sample in prepared]
        return [(sample, self._clips(sample)) for sample in prepared]

    def _clips(self, prepared: PreparedSample) -> list[ClipInput]:
        if self.settings.condition == "none":
            return []
        return prepared.clip_inputs([self._changed(signal) for signal in prepared.signals])

    def _changed(self, signal: Signal | None) -> Signal | None:
        if signal is None:
            return None
        if self.settings.condition == "blank":
            signal = call(signal, "blank")
        return call(signal, "augmented", self.rng) if self.settings.augment else signal

    def _set_state(self, state: Any) -> None:
        """Set the random state. JSON turned its tuples into lists on the way between processes."""
        version, internal, gauss_next = state
        self.rng.setstate((version, tuple(internal), gauss_next))
