"""What the small host is taught: random tables, light marks that move over the steps, and questions
about them. No gaze anywhere.
"""

from dataclasses import dataclass

import numpy as np

from modulate_tabletop import text
from modulate_tabletop.render import CLASSES, COLOURS, PLACES, SIZE, Layout, render

COLOUR_WORDS = tuple(COLOURS)
SHAPES = len(CLASSES)
TINTS = len(COLOUR_WORDS)


@dataclass(frozen=True)
class Lesson:
    """One clip of two frames a step and what is on it.

    ``kinds`` and ``colours`` are (steps, PLACES), −1 where a place is empty.
    """

    frames: np.ndarray  # (2 * steps, SIZE, SIZE, 3) uint8
    kinds: np.ndarray
    colours: np.ndarray
    marks: np.ndarray  # (steps,) the place that is pointed at, −1 for none
    drawn: bool = True  # whether the pictures show it


def table(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Eleven to thirteen of the places filled at random."""
    kinds = rng.integers(0, SHAPES, PLACES)
    colours = rng.integers(0, TINTS, PLACES)
    kinds[rng.choice(PLACES, PLACES - rng.integers(11, 14), replace=False)] = -1
    return kinds, colours


def change(rng: np.random.Generator, kinds: np.ndarray, colours: np.ndarray) -> None:
    """One object appears, vanishes or moves (in place)."""
    full = np.flatnonzero(kinds >= 0)
    empty = np.flatnonzero(kinds < 0)
    event = rng.choice(["appear", "vanish", "move"])
    if event == "appear" and len(empty) > 2:
        place = rng.choice(empty)
        kinds[place], colours[place] = rng.integers(SHAPES), rng.integers(TINTS)
    elif event == "vanish" and len(full) > 10:
        kinds[rng.choice(full)] = -1
    elif event == "move":
        a = rng.choice(full)
        b = rng.choice(empty)
        kinds[b], colours[b], kinds[a] = kinds[a], colours[a], -1


def lesson(rng: np.random.Generator, steps: int, marked: bool, drawn: bool = True) -> Lesson:
    """A clip of ``steps`` steps; if ``marked``, a different object carries the mark in each step,
    which is in the pictures only if ``drawn``.
    """
    layout, (kinds, colours) = Layout.random(rng), table(rng)
    camera = rng.uniform(-3.5, 3.5, 2)
    drift = rng.uniform(-0.6, 0.6, 2)
    hand = np.array([rng.uniform(20, 108), rng.uniform(124, 138)]) / SIZE
    frames = []
    all_kinds = []
    all_colours = []
    marks = []
    for step in range(steps):
        if step and rng.random() < 0.4:
            change(rng, kinds, colours)
        choices = [p for p in np.flatnonzero(kinds >= 0) if p not in marks]
        mark = int(rng.choice(choices)) if marked else -1
        for _ in range(2):
            camera = np.clip(camera + drift + rng.normal(0, 0.3, 2), -4, 4)
            hand = hand + rng.normal(0, 1 / SIZE, 2)
            frames.append(
                render(
                    layout,
                    kinds,
                    colours,
                    tuple(camera),
                    tuple(hand),
                    [mark] if marked and drawn else (),
                    rng,
                )
            )
        all_kinds.append(kinds.copy())
        all_colours.append(colours.copy())
        marks.append(mark)
    return Lesson(
        np.stack(frames), np.stack(all_kinds), np.stack(all_colours), np.array(marks), drawn
    )


def describe(item: Lesson, step: int = -1) -> str:
    """Colour and class of every place of one step, row by row."""
    pairs = zip(item.kinds[step], item.colours[step])
    return " ".join(
        f"{COLOUR_WORDS[c]} {CLASSES[k]}" if k >= 0 else f"{text.EMPTY} {text.EMPTY}"
        for k, c in pairs
    )


def _options(rng: np.random.Generator, answer: int, present: np.ndarray, count: int) -> list[int]:
    """The answer and three others, preferably of those on the table, in random order."""
    on_table = [i for i in np.unique(present[present >= 0]) if i != answer]
    others = [i for i in range(count) if i != answer and i not in on_table]
    pick = (
        [*rng.permutation(on_table), *rng.permutation(others)][:3]
        if rng.random() < 0.9
        else list(rng.permutation([i for i in range(count) if i != answer])[:3])
    )
    return [int(i) for i in rng.permutation([answer, *pick])]


def questions(
    rng: np.random.Generator, item: Lesson, target: int
) -> dict[str, tuple[str, list[str], str]]:
    """Task -> (question, options, answer word) about the object at place ``target`` of the last
    step.
    """
    kinds = item.kinds[-1]
    colours = item.colours[-1]
    t = float(rng.integers(1, 100))
    kind = int(kinds[target])
    colour = int(colours[target])
    by_class = [CLASSES[i] for i in _options(rng, kind, kinds, SHAPES)]
    by_colour = [
        COLOUR_WORDS[i] for i in _options(rng, colour, np.where(kinds >= 0, colours, -1), TINTS)
    ]
    yes = rng.random() < 0.5
    others = [k for k in np.unique(kinds[kinds >= 0]) if k != kind]
    asked = CLASSES[kind if yes else int(rng.choice(others))]
    alert = text.question_alert(asked) + (" " if rng.random() < 0.7 else "\n") + text.ALERT_SUFFIX
    return {
        text.EASY: (text.question_easy(t), by_class, CLASSES[kind]),
        text.HARD: (text.question_hard(t), by_class, CLASSES[kind]),
        text.ATTRIBUTE: (text.question_attribute(t), by_colour, COLOUR_WORDS[colour]),
        text.ALERT: (alert, ["Yes", "No"], "Yes" if yes else "No"),
    }


DRILL_WORDS = tuple(w for w in (*text.WORDS, *text.NUMBERS) if w not in "ABCDE")


def drill(rng: np.random.Generator) -> tuple[str, str]:
    """Options, then some options' words, each followed by its letter: (prompt, answer); only the
    letters can be known.
    """
    words = (CLASSES, COLOUR_WORDS, DRILL_WORDS, DRILL_WORDS)[rng.integers(4)]
    options = (
        ["Yes", "No"]
        if rng.random() < 0.1
        else [words[i] for i in rng.choice(len(words), 4, replace=False)]
    )
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(text.LETTERS, options))
    asked = rng.integers(0, len(options), 6)
    return f"Options:\n{listed}\n\nThe best option is:", " ".join(
        f"{options[i]} {text.LETTERS[i]}" for i in asked
    )


def told(rng: np.random.Generator) -> tuple[str, str]:
    """A multiple-choice question whose answer is told in words: (prompt, letter)."""
    kind = int(rng.integers(SHAPES))
    colour = int(rng.integers(TINTS))
    t = float(rng.integers(1, 100))
    fact = f"The viewer is looking at the {COLOUR_WORDS[colour]} {CLASSES[kind]}. "
    which = rng.integers(4)
    if which == 3:
        yes = rng.random() < 0.5
        asked = kind if yes else int(rng.choice([k for k in range(SHAPES) if k != kind]))
        return text.with_options(
            f"{fact}{text.question_alert(CLASSES[asked])} {text.ALERT_SUFFIX}", ["Yes", "No"]
        ), ("A" if yes else "B")
    words, answer, ask = (
        (COLOUR_WORDS, colour, text.question_attribute(t))
        if which == 2
        else (CLASSES, kind, (text.question_easy, text.question_hard)[which](t))
    )
    order = [
        int(i)
        for i in rng.permutation(
            [answer, *rng.permutation([i for i in range(len(words)) if i != answer])[:3]]
        )
    ]
    return (
        text.with_options(fact + ask, [words[i] for i in order]),
        text.LETTERS[order.index(answer)],
    )


__all__ = ["Lesson", "change", "describe", "drill", "lesson", "questions", "table", "told"]
