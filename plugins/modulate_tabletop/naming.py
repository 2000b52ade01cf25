"""What the viewer looks at and its color: one question for each easy one, answered in two words.

The questions need no file of their own. They are asked at the moments of the question file
``present_object_identification_easy``, and the objects on the table are drawn anew from the world's
numbers, so that worlds made before have them too. As in all gaze-only tasks, options stand on the
table, and the set of options does not reveal the answer.
"""

from dataclasses import replace

import numpy as np

from modulate.errors import DataError
from modulate.interfaces.sample import Sample
from modulate_tabletop import text
from modulate_tabletop.clips import Clip
from modulate_tabletop.make import Job
from modulate_tabletop.questions import even_set, name
from modulate_tabletop.render import COLORS

OPTIONS = 4

_STREAM = 5
"""Tells the random numbers of these questions from those of a clip and of its other questions."""


class Naming:
    """Makes naming questions of easy ones.

    ``jobs``: the videos of the world.
    """

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = {job.stem: job for job in jobs}
        self._clips: dict[str, Clip] = {}

    def ask(self, easy: Sample) -> Sample:
        """Return the naming question at the moment of an easy question.

        Raises :class:`~modulate.errors.DataError` if the world was not made with these numbers.
        """
        stem = easy.clip.file.stem
        time = int(easy.extra["time"])
        if stem not in self._jobs:
            raise DataError(f"{stem} is no video of a tabletop world with these numbers.")
        job = self._jobs[stem]
        if stem not in self._clips:
            self._clips[stem] = job.clip()
        clip = self._clips[stem]
        dwell = next(
            (d for d in clip.asked() if d.asked is not None and int(d.asked) == time), None
        )
        if dwell is None:
            raise DataError(
                f"{easy.id} is no question of a tabletop world with these numbers, so what is on"
                " the table is not known."
            )
        state = clip.state(dwell.start)
        rng = np.random.default_rng((*job.seed, _STREAM, time))
        # Objects of the same class and color have one name.
        values = np.where(state[0] >= 0, state[0] * len(COLORS) + state[1], -1)
        places = rng.permutation(even_set(rng, dwell.place, values, OPTIONS))
        options = tuple(name(state, int(place)) for place in places)
        return replace(
            easy,
            id=easy.id.replace(text.EASY, text.NAMING, 1),
            task=text.NAMING,
            question=text.question_naming(time),
            options=options,
            answer=options.index(name(state, dwell.place)),
        )
