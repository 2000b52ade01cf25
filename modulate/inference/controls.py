"""Control signals of an evaluation: the sample's own signal blanked, shifted, or shuffled."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from modulate import plugins
from modulate.config.recipe import Recipe
from modulate.errors import DataError, RecipeError
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.components import Sample
from modulate.interfaces.multi_signal import controls_of
from modulate.interfaces.signal import ControlContext, Signal


class ShufflePool:
    """The samples from which shuffling draws another video's signal."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = tuple(samples)
        # Listed once per video: a draw would otherwise scan all samples for each of them.
        self._by_excluded_video: dict[Path, list[Sample]] = {}

    def draw(self, own: Sample, seed: int) -> Sample:
        """Return a sample of another video, determined by ``own``, ``seed`` and the samples' order.

        Raises :class:`DataError` if all samples show one video.
        """
        if own.video not in self._by_excluded_video:
            self._by_excluded_video[own.video] = [
                sample for sample in self._samples if sample.video != own.video
            ]
        candidates = self._by_excluded_video[own.video]
        if not candidates:
            raise DataError("Shuffling needs samples of at least two videos.")
        # Seeded by sample, so that the draw does not depend on the order of evaluation.
        return random.Random(f"{seed}:{own.id}").choice(candidates)


def control_signal(
    name: str,
    prepared: PreparedSample,
    pool: ShufflePool,
    recipe: Recipe,
    read_signal: Callable[[Sample], Signal],
) -> Signal:
    """Return the signal of ``prepared`` under the control ``name``, which its kind declares.

    Raises :class:`RecipeError` if the recipe's signal has no such control.
    """
    controls = controls_of(recipe.signal)
    if name not in controls:
        raise RecipeError(
            f"The signal {recipe.signal!r} has no control {name!r}; it has"
            f" {', '.join(sorted(controls))}."
        )
    own = prepared.sample

    # Called by shuffling only. A control that does not draw must not read another sample's file.
    def draw() -> tuple[Signal, tuple[float, float]]:
        other = pool.draw(own, recipe.seed)
        return read_signal(other), other.window

    with plugins.registry().blame("signal", recipe.signal, f"the control {name!r}"):
        return controls[name](prepared.signal, ControlContext(own.window, draw))
