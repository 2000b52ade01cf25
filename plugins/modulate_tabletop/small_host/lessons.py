"""Training data of the small host: random tables with moving marks, and questions about them.

None of it contains gaze.
"""

from dataclasses import dataclass

import numpy as np

from modulate_tabletop import text
from modulate_tabletop.render import CLASSES, COLORS, PLACES, SIZE, Layout, render

COLOR_WORDS = tuple(COLORS)
SHAPES = len(CLASSES)
TINTS = len(COLOR_WORDS)


@dataclass(frozen=True)
class Lesson:
    """One clip with two frames for each step, and its content.

    ``kinds`` and ``colors`` are (steps, PLACES), −1 where a place is empty.
    """

    frames: np.ndarray  # (2 * steps, SIZE, SIZE, 3) uint8
    kinds: np.ndarray
    colors: np.ndarray
    marks: np.ndarray  # (steps,) the marked place, −1 for none
    drawn: bool = True  # whether the frames show the marks


def random_table(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fill eleven to thirteen places at random; return kinds and colors."""
    kinds = rng.integers(0, SHAPES, PLACES)
    colors = rng.integers(0, TINTS, PLACES)
    kinds[rng.choice(PLACES, PLACES - rng.integers(11, 14), replace=False)] = -1
    return kinds, colors


def random_change(rng: np.random.Generator, kinds: np.ndarray, colors: np.ndarray) -> None:
    """Let one object appear, vanish or move; changes both arrays in place."""
    full = np.flatnonzero(kinds >= 0)
    empty = np.flatnonzero(kinds < 0)
    event = rng.choice(["appear", "vanish", "move"])
    if event == "appear" and len(empty) > 2:
        place = rng.choice(empty)
        kinds[place] = rng.integers(SHAPES)
        colors[place] = rng.integers(TINTS)
    elif event == "vanish" and len(full) > 10:
        kinds[rng.choice(full)] = -1
    elif event == "move":
        source = rng.choice(full)
        target = rng.choice(empty)
        kinds[target] = kinds[source]
        colors[target] = colors[source]
        kinds[source] = -1


def random_lesson(rng: np.random.Generator, steps: int, marked: bool, drawn: bool = True) -> Lesson:
    """Draw a clip; if ``marked``, another object carries the mark in each step.

    The frames show the marks only if ``drawn``.
    """
    layout = Layout.random(rng)
    kinds, colors = random_table(rng)
    camera = rng.uniform(-3.5, 3.5, 2)
    drift = rng.uniform(-0.6, 0.6, 2)
    hand = np.array([rng.uniform(20, 108), rng.uniform(124, 138)]) / SIZE
    frames = []
    all_kinds = []
    all_colors = []
    marks = []
    for step in range(steps):
        if step and rng.random() < 0.4:
            random_change(rng, kinds, colors)
        choices = [place for place in np.flatnonzero(kinds >= 0) if place not in marks]
        mark = int(rng.choice(choices)) if marked else -1
        for _ in range(2):
            camera = np.clip(camera + drift + rng.normal(0, 0.3, 2), -4, 4)
            hand = hand + rng.normal(0, 1 / SIZE, 2)
            frames.append(
                render(
                    layout,
                    kinds,
                    colors,
                    tuple(camera),
                    tuple(hand),
                    [mark] if marked and drawn else (),
                    rng,
                )
            )
        all_kinds.append(kinds.copy())
        all_colors.append(colors.copy())
        marks.append(mark)
    return Lesson(
        np.stack(frames), np.stack(all_kinds), np.stack(all_colors), np.array(marks), drawn
    )


def describe(item: Lesson, step: int = -1) -> str:
    """Return color and class of every place of one step, row by row."""
    pairs = zip(item.kinds[step], item.colors[step])
    return " ".join(
        f"{COLOR_WORDS[c]} {CLASSES[k]}" if k >= 0 else f"{text.EMPTY} {text.EMPTY}"
        for k, c in pairs
    )


def _options(rng: np.random.Generator, answer: int, present: np.ndarray, count: int) -> list[int]:
    """Return the answer and three others, mostly from the table, in random order."""
    on_table = [index for index in np.unique(present[present >= 0]) if index != answer]
    others = [index for index in range(count) if index != answer and index not in on_table]
    pick = (
        [*rng.permutation(on_table), *rng.permutation(others)][:3]
        if rng.random() < 0.9
        else list(rng.permutation([index for index in range(count) if index != answer])[:3])
    )
    return [int(index) for index in rng.permutation([answer, *pick])]


def questions(
    rng: np.random.Generator, item: Lesson, target: int
) -> dict[str, tuple[str, list[str], str]]:
    """Return {task: (question, options, answer word)} about the object at ``target``.

    All questions are about the last step.
    """
    kinds = item.kinds[-1]
    colors = item.colors[-1]
    seconds = float(rng.integers(1, 100))
    kind = int(kinds[target])
    color = int(colors[target])
    by_class = [CLASSES[index] for index in _options(rng, kind, kinds, SHAPES)]
    by_color = [
        COLOR_WORDS[index]
        for index in _options(rng, color, np.where(kinds >= 0, colors, -1), TINTS)
    ]
    yes = rng.random() < 0.5
    others = [each for each in np.unique(kinds[kinds >= 0]) if each != kind]
    asked = CLASSES[kind if yes else int(rng.choice(others))]
    alert = text.question_alert(asked) + (" " if rng.random() < 0.7 else "\n") + text.ALERT_SUFFIX
    return {
        text.EASY: (text.question_easy(seconds), by_class, CLASSES[kind]),
        text.HARD: (text.question_hard(seconds), by_class, CLASSES[kind]),
        text.ATTRIBUTE: (text.question_attribute(seconds), by_color, COLOR_WORDS[color]),
        text.ALERT: (alert, ["Yes", "No"], "Yes" if yes else "No"),
    }


DRILL_WORDS = tuple(word for word in (*text.WORDS, *text.NUMBERS) if word not in "ABCDE")


def drill(rng: np.random.Generator) -> tuple[str, str]:
    """Return a prompt with options, and an answer that names some of them with their letters.

    Only the letters can be predicted.
    """
    words = (CLASSES, COLOR_WORDS, DRILL_WORDS, DRILL_WORDS)[rng.integers(4)]
    options = (
        ["Yes", "No"]
        if rng.random() < 0.1
        else [words[index] for index in rng.choice(len(words), 4, replace=False)]
    )
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(text.LETTERS, options))
    asked = rng.integers(0, len(options), 6)
    return f"Options:\n{listed}\n\nThe best option is:", " ".join(
        f"{options[index]} {text.LETTERS[index]}" for index in asked
    )


def stated_answer(rng: np.random.Generator) -> tuple[str, str]:
    """A multiple-choice question whose answer is stated_answer in words: (prompt, letter)."""
    kind = int(rng.integers(SHAPES))
    color = int(rng.integers(TINTS))
    seconds = float(rng.integers(1, 100))
    fact = f"The viewer is looking at the {COLOR_WORDS[color]} {CLASSES[kind]}. "
    which = rng.integers(4)
    if which == 3:
        yes = rng.random() < 0.5
        asked = kind if yes else int(rng.choice([each for each in range(SHAPES) if each != kind]))
        return text.with_options(
            f"{fact}{text.question_alert(CLASSES[asked])} {text.ALERT_SUFFIX}", ["Yes", "No"]
        ), ("A" if yes else "B")
    words, answer, ask = (
        (COLOR_WORDS, color, text.question_attribute(seconds))
        if which == 2
        else (CLASSES, kind, (text.question_easy, text.question_hard)[which](seconds))
    )
    order = [
        int(i)
        for i in rng.permutation(
            [
                answer,
                *rng.permutation([index for index in range(len(words)) if index != answer])[:3],
            ]
        )
    ]
    return (
        text.with_options(fact + ask, [words[index] for index in order]),
        text.LETTERS[order.index(answer)],
    )
