"""The questions about one clip, and the ten question files in StreamGaze's formats.

Gaze-only questions (``text.GAZE_ONLY``) must not be answerable without gaze. So all options stand
on the table, and each is equally likely to be right whatever the table shows: a set S of objects
has probability P(S) with P(object in S) equal for all objects, and each object of S is equally
likely to be the target (:func:`even_set`). "Easy" sets lie far apart on the table, "hard" sets
close together. The other tasks can be inferred from the frames, or need the gaze of the past.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modulate_tabletop import text
from modulate_tabletop.clips import REACH, WINDOW, Clip
from modulate_tabletop.render import CLASSES, COLORS, GRID
from modulate_tabletop.viewer import Dwell

COLOR_WORDS = tuple(COLORS)
RECALL = "past_scene_recall"
TRANSITION = "past_object_transition_prediction"
SEQUENCE = "past_gaze_sequence_matching"
NOT_FIXATED = "past_non_fixated_object_identification"
FUTURE = "present_future_action_prediction"
APPEARANCE = "proactive_object_appearance_alert"
TASKS = (
    RECALL,
    TRANSITION,
    SEQUENCE,
    NOT_FIXATED,
    text.EASY,
    text.HARD,
    text.ATTRIBUTE,
    FUTURE,
    text.ALERT,
    APPEARANCE,
)
MULTIPLE_CHOICE = tuple(task for task in TASKS if not task.startswith("proactive"))
# Mean distance, in cells, that makes a set of options e times less (hard) or more (easy) likely.
CLOSENESS = 0.5


@dataclass(frozen=True)
class MultipleChoice:
    """A multiple-choice question at ``time`` (whole seconds), with one right option."""

    task: str
    time: int
    question: str
    right: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Alert:
    """A proactive question with its test points (whole second, whether to raise the alert)."""

    task: str
    question: str
    target: str
    points: tuple[tuple[int, bool], ...]
    first: int | None  # second at which its condition is first true


def even_set(
    rng: np.random.Generator, target: int, values: np.ndarray, size: int, closeness: float = 0.0
) -> list[int]:
    """Draw ``size`` objects with different values, such that the set does not reveal ``target``.

    ``values`` (16,) holds the value that an option would name for each place, −1 where empty. P(S)
    is proportional to exp(−closeness · mean distance) times one factor for each member. The factors
    are fitted until all objects are equally often in S; then S is drawn among the sets with the
    target.
    """
    places = np.flatnonzero(values >= 0)
    sets = np.array(list(itertools.combinations(range(len(places)), size)))
    named = np.sort(values[places][sets], axis=1)
    sets = sets[(np.diff(named, axis=1) > 0).all(1)]
    points = np.stack([places % GRID, places // GRID], -1).astype(float)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    distance = np.mean(
        [distances[sets[:, i], sets[:, j]] for i, j in itertools.combinations(range(size), 2)],
        axis=0,
    )
    weight = np.exp(-closeness * (distance - distance.mean()))
    goal = size / len(places)
    # Iterative proportional fitting; the square root damps it, because sets overlap.
    for _ in range(100):
        weight /= weight.sum()
        share = np.bincount(sets.ravel(), np.repeat(weight, size), len(places))
        if np.abs(share / goal - 1).max() < 1e-3:
            break
        weight *= np.sqrt((goal / share)[sets].prod(1))
    holds = (places[sets] == target).any(1)
    chosen = rng.choice(np.flatnonzero(holds), p=weight[holds] / weight[holds].sum())
    return places[sets[chosen]].tolist()


def name(state: np.ndarray, place: int) -> str:
    """Return color and class of the object at ``place``, or "" if it is empty."""
    kind, color = state[:, place]
    return f"{COLOR_WORDS[color]} {CLASSES[kind]}" if kind >= 0 else ""


def names(state: np.ndarray) -> list[str]:
    """Return the names of all objects on the table, by place."""
    return [name(state, int(place)) for place in np.flatnonzero(state[0] >= 0)]


def _gaze_only(rng: np.random.Generator, clip: Clip) -> list[MultipleChoice | Alert]:
    """Return easy, hard and attribute questions and an alert point for each askable dwell."""
    result: list[MultipleChoice | Alert] = []
    kinds: tuple[tuple[str, Callable[[float], str], int, Sequence[str], float], ...] = (
        (text.EASY, text.question_easy, 0, CLASSES, -1 / CLOSENESS),
        (text.HARD, text.question_hard, 0, CLASSES, 1 / CLOSENESS),
        (text.ATTRIBUTE, text.question_attribute, 1, COLOR_WORDS, 0.0),
    )
    waiting: dict[str, list[tuple[int, bool]]] = {}
    raised = bool(rng.random() < 0.5)
    for dwell in clip.asked():
        assert dwell.asked is not None
        state = clip.state(dwell.start)
        time = dwell.asked
        for task, ask, row, words, closeness in kinds:
            others = [
                place
                for place in even_set(rng, dwell.place, state[row], 4, closeness)
                if place != dwell.place
            ]
            wrong = tuple(words[state[row, place]] for place in rng.permutation(others))
            result.append(
                MultipleChoice(task, time, ask(time), words[state[row, dwell.place]], wrong)
            )
        other = next(
            place for place in even_set(rng, dwell.place, state[0], 2) if place != dwell.place
        )
        waiting.setdefault(CLASSES[state[0, dwell.place if raised else other]], []).append(
            (time, raised)
        )
        raised = not raised
    for word, points in waiting.items():
        first = next(
            (
                dwell.start
                for dwell in clip.dwells
                if CLASSES[clip.state(dwell.start)[0, dwell.place]] == word
            ),
            None,
        )
        result.append(
            Alert(
                text.ALERT,
                text.question_alert(word),
                word,
                tuple(points),
                None if first is None else int(np.ceil(first)),
            )
        )
    return result


def _pick(rng: np.random.Generator, options: Sequence[str], count: int = 3) -> tuple[str, ...]:
    """Choose up to ``count`` different texts, in random order."""
    unique = sorted(set(options))
    return tuple(unique[index] for index in rng.permutation(len(unique))[:count])


def _seen(clip: Clip, time: float) -> list[np.ndarray]:
    """Return the states of the table up to ``time``."""
    return [
        state for change, state in zip(clip.changes, clip.states, strict=True) if change <= time
    ]


def _past(rng: np.random.Generator, clip: Clip, dwell: Dwell) -> list[MultipleChoice]:
    """Return up to four questions about the past, asked during ``dwell``.

    Each answer holds for the last 8 s as well as for the whole past.
    """
    time = int(dwell.asked or 0)
    clock = text.clock(dwell.asked or 0)
    state = clip.state(time)
    before = [dwell for dwell in clip.dwells if dwell.start <= time]
    path = [name(clip.state(dwell.start), dwell.place) for dwell in before]
    window = [index for index, dwell in enumerate(before) if dwell.start >= time - WINDOW]
    seen = {each for state in _seen(clip, time) for each in names(state)}
    everything = [f"{color} {kind}" for color in COLOR_WORDS for kind in CLASSES]
    right = str(rng.choice(names(state)))
    result = [
        MultipleChoice(
            RECALL,
            time,
            f"Which thing was on the table before {clock}?",
            right,
            _pick(rng, [each for each in everything if each not in seen]),
        )
    ]
    cue = path[window[0]]
    if path.count(cue) == 1:
        right = path[window[1]]
        wrong = _pick(rng, [each for each in names(state) if each not in (cue, right)])
        result.append(
            MultipleChoice(
                TRANSITION,
                time,
                f"Which object did the viewer look at after the {cue} and before {clock}?",
                right,
                wrong,
            )
        )
    last = [path[index] for index in window[-3:]]
    if len(set(last)) == 3:
        wrong = _pick(
            rng, [", ".join(order) for order in itertools.permutations(last) if list(order) != last]
        )
        result.append(
            MultipleChoice(
                SEQUENCE,
                time,
                f"In which order did the viewer last look at the things before {clock}?",
                ", ".join(last),
                wrong,
            )
        )
    looked = _pick(rng, [path[index] for index in window])
    stayed = [
        n for n in names(state) if all(n in names(s) for s in _seen(clip, time)) and n not in path
    ]
    if stayed and len(looked) == 3:
        result.append(_never_looked_at(time, clock, str(rng.choice(stayed)), looked))
    return result


def _never_looked_at(time: int, clock: str, right: str, looked: tuple[str, ...]) -> MultipleChoice:
    question = f"Which thing did the viewer never look at before {clock}?"
    return MultipleChoice(NOT_FIXATED, time, question, right, looked)


def _inferable(rng: np.random.Generator, clip: Clip) -> list[MultipleChoice | Alert]:
    """Return questions of the other six tasks: the past of two dwells, a reach, an appearance."""
    asked = clip.asked()
    result: list[MultipleChoice | Alert] = []
    for index in sorted(rng.choice(len(asked), 2, replace=False)):
        result += _past(rng, clip, asked[index])
    time = int(REACH[0]) + 1
    kinds = clip.state(time)[0]
    right = CLASSES[kinds[clip.reached]]
    others = [CLASSES[kind] for kind in kinds if kind >= 0 and kind != kinds[clip.reached]]
    result.append(
        MultipleChoice(
            FUTURE,
            time,
            f"At {text.clock(time)}, what will the viewer reach for next?",
            right,
            _pick(rng, others),
        )
    )
    for event in (event for event in clip.events if event.what == "appear"):
        new = name(clip.state(event.time), event.place)
        point = int(np.ceil(event.time))
        if new not in {n for s in _seen(clip, event.time - 0.001) for n in names(s)}:
            later = [
                change
                for change, state in zip(clip.changes, clip.states, strict=True)
                if change > event.time and new not in names(state)
            ]
            points = [(point - 2, False)] + (
                [(point + 1, True)] if not later or later[0] > point + 1 else []
            )
            result.append(
                Alert(
                    APPEARANCE,
                    f"Alert when the {new} appears on the table.",
                    new,
                    tuple(points),
                    point,
                )
            )
            break
    return result


def draft(rng: np.random.Generator, clip: Clip) -> list[MultipleChoice | Alert]:
    """Return all questions about ``clip``."""
    return [
        question
        for question in _gaze_only(rng, clip) + _inferable(rng, clip)
        if isinstance(question, Alert) or len(question.wrong) == 3
    ]


def answer_positions(rng: np.random.Generator, count: int) -> list[int]:
    """Return positions of the right answers; each block of four holds every position once."""
    return [int(place) for _ in range(-(-count // 4)) for place in rng.permutation(4)][:count]


def choice_entry(item: MultipleChoice, position: int, head: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a multiple-choice file, with the right answer at ``position``.

    ``head`` holds video_path and viewer.
    """
    options = list(item.wrong)
    options.insert(position, item.right)
    start = 0 if item.task.startswith("past") else item.time - WINDOW
    question = {
        "question": item.question,
        "time_stamp": text.clock(item.time),
        "answer": text.LETTERS[position],
        "options": options,
        "task_type": item.task,
    }
    gaze_only = item.task in text.GAZE_ONLY
    return {
        **head,
        "response_time": f"[{text.clock(start)} - {text.clock(item.time)}]",
        "gaze_only": gaze_only,
        "questions": [question],
    }


def alert_entry(items: Sequence[Alert], head: dict[str, Any]) -> dict[str, Any]:
    """Return one video's entry of a proactive file."""
    questions = [
        {
            "question": item.question,
            "time_stamp": text.clock(max(0, item.points[0][0] - WINDOW)),
            "first_appearance": None if item.first is None else text.clock(item.first),
            "target_object": item.target,
            "test_info": [
                {"realtime": text.clock(time), "type": int(raised)} for time, raised in item.points
            ],
        }
        for item in items
    ]
    last = max(time for item in items for time, _ in item.points)
    return {
        **head,
        "response_time": f"[00:00 - {text.clock(last)}]",
        "gaze_only": items[0].task in text.GAZE_ONLY,
        "questions": questions,
    }
