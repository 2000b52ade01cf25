"""Control signals of an evaluation: the sample's own signal blanked, shifted, or shuffled."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from modulate.config.recipe import Recipe
from modulate.data.signal_reader import SignalReader
from modulate.errors import DataError, RecipeError
from modulate.inference.preparation import PreparedSample
from modulate.interfaces.multi_signal import controls_of
from modulate.interfaces.sample import Sample, SampleClip
from modulate.interfaces.signal import ControlContext, Signal


class ShufflePool:
    """The samples from which shuffling draws another video's, or another picture's, signal."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        # By whether a picture or a video is needed.
        self._drawable = {
            is_image: [sample for sample in samples if _drawable(sample, is_image)]
            for is_image in (False, True)
        }
        # Listed once per file: a draw would otherwise scan all samples for each of them.
        self._candidates: dict[tuple[frozenset[Path], bool], list[Sample]] = {}

    def candidates(self, own: Sample, index: int = 0) -> list[Sample]:
        """Return the samples from which a signal for a clip of ``own`` can be drawn."""
        is_image = own.clips[index].is_image
        key = (own.files, is_image)
        if key not in self._candidates:
            self._candidates[key] = [
                sample for sample in self._drawable[is_image] if sample.files.isdisjoint(own.files)
            ]
        return self._candidates[key]

    def draw(self, own: Sample, seed: int, index: int = 0) -> tuple[Sample, SampleClip]:
        """Return a sample that shares no file with ``own``, and one of its clips.

        A video is paired with a video, a picture with a picture. The draw is determined by ``own``,
        ``seed``, ``index`` and the samples' order.

        Args:
            own: the sample whose signals are shuffled.
            seed: the recipe's.
            index: of the clip of ``own`` for which a signal is drawn.

        Raises :class:`DataError` if there is no such sample.
        """
        is_image = own.clips[index].is_image
        candidates = self.candidates(own, index)
        if not candidates:
            what = needed_for_draw(is_image)
            raise DataError(f"Shuffling needs samples of at least two {what}.")
        # Seeded by sample and clip, so that the draw does not depend on the order of evaluation.
        rng = random.Random(f"{seed}:{own.id}" + (f":{index}" if index else ""))
        drawn = rng.choice(candidates)
        clips = _drawable(drawn, is_image)
        return drawn, clips[0] if len(clips) == 1 else rng.choice(clips)


def needed_for_draw(is_image: bool) -> str:
    """Return of what there must be two, to draw a signal for a picture or for a video."""
    return ("pictures" if is_image else "videos") + " that share no file"


def _drawable(sample: Sample, is_image: bool) -> list[SampleClip]:
    """Return the clips whose signals can be drawn for a picture, or for a video."""
    return [clip for clip in sample.clips if clip.is_image == is_image and sample.has_signals(clip)]


def control_signals(
    name: str,
    prepared: PreparedSample,
    pool: ShufflePool,
    recipe: Recipe,
    signals: SignalReader,
) -> list[Signal | None]:
    """Return the signals of a sample's clips under the control ``name``, which their kind declares.

    A clip without a signal stays without. Raises :class:`RecipeError` if the recipe's signal has no
    such control.
    """
    controls = controls_of(recipe.signal)
    if name not in controls:
        raise RecipeError(
            f"The signal {recipe.signal!r} has no control {name!r}; it has"
            f" {', '.join(sorted(controls))}."
        )

    # Called by shuffling only. A control that does not draw must not read another sample's file.
    def draw(index: int) -> tuple[Signal, tuple[float, float]]:
        sample, clip = pool.draw(prepared.sample, recipe.seed, index)
        signal = signals.read(sample, clip)
        assert signal is not None  # only clips with signals are drawn
        return signal, signals.window(clip)

    changed: list[Signal | None] = []
    for index, clip in enumerate(prepared.clips):
        context = ControlContext(clip.window, partial(draw, index))
        given = clip.signal
        changed.append(None if given is None else controls[name](given, context))
    return changed
