"""One clip of the tabletop world: events on the table, the viewer's gaze, the hand, the video.

Times are seconds of the video, positions are fractions of the frame unless a name says pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from modulate_tabletop.render import CLASSES, COLORS, PLACES, SIZE, Layout, place_center, render
from modulate_tabletop.viewer import Dwell, Fixation, Viewer, dwell_times, trace

DURATION = 25.0  # s
RATE = 8  # frames per second
WINDOW = 8  # s of video before a gaze-only question
LAST_ASKED = 22  # s, latest gaze-only question; the reach follows it
REACH = (22.2, 24.0, 24.7)  # s: the hand starts, arrives, ends
OBJECTS = 13  # largest number of objects on the table; tables have up to two fewer
COPIES = 2  # largest number of objects of one class, and of one color
DRIFT = 4.0  # pixels, largest shift of the camera from its center
# Range of `objects`: enough different ones must remain that were not looked at lately, and an
# object that moves or appears needs an empty place.
OBJECTS_RANGE = (10, PLACES - 1)
MAX_DRIFT = 16.0  # pixels, an eighth of the frame
VARIABLE_EVERY = 5  # one file in so many has a variable frame rate


@dataclass(frozen=True)
class Event:
    """A change on the table.

    ``what`` is "appear", "move" or "vanish"; ``place`` is the object's place afterwards, or before
    it vanished.
    """

    time: float
    what: str
    place: int


@dataclass(frozen=True)
class Clip:
    """The content of one clip.

    ``states[i]`` = (class, color) rows of the 16 places from ``changes[i]`` seconds on.
    """

    stem: str
    viewer: Viewer
    layout: Layout
    times: np.ndarray  # (frame,) seconds
    camera: np.ndarray  # (frame, 2) pixels
    hand: np.ndarray  # (frame, 2) as seen on the frame, beyond 1 when below it
    dwells: list[Dwell]
    fixations: list[Fixation]
    samples: np.ndarray  # (sample, 3) seconds, x, y
    changes: list[float]
    states: list[np.ndarray]  # each (2, 16) int, −1 where empty
    events: list[Event]
    reached: int  # the place that the hand goes to at the end
    noise_seed: int

    def state(self, time: float) -> np.ndarray:
        """Return (class, color) of the places at ``time``, (2, 16)."""
        return self.states[int(np.searchsorted(self.changes, time, side="right")) - 1]

    def asked(self) -> list[Dwell]:
        """Return the dwells that gaze-only questions are about.

        Nothing changes during such a dwell, and its window contains no reach.
        """
        return [dwell for dwell in self.dwells if _askable(dwell) and not self._changes_in(dwell)]

    def _changes_in(self, dwell: Dwell) -> bool:
        return any(dwell.start <= event.time <= dwell.end for event in self.events)


def _askable(dwell: Dwell) -> bool:
    return dwell.asked is not None and WINDOW <= dwell.asked <= LAST_ASKED


class Camera:
    """A slow drift: the sum of two sines for each axis, at most ``drift`` pixels."""

    def __init__(self, rng: np.random.Generator, drift: float = DRIFT) -> None:
        """Draw amplitudes, periods and phases."""
        self.amplitude = rng.uniform(0.2, 0.5, (2, 2)) * drift
        self.pace = 2 * np.pi / rng.uniform(6, 20, (2, 2))
        self.phase = rng.uniform(0, 2 * np.pi, (2, 2))

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Return the shift in pixels, (time, 2)."""
        return (self.amplitude * np.sin(times[:, None, None] * self.pace + self.phase)).sum(-1)


def _first_state(rng: np.random.Generator, most: int) -> np.ndarray:
    """Fill one or two places fewer than ``most``.

    Each class and each color occurs at most twice, so that no kind of object is favored.
    """
    state = np.full((2, PLACES), -1)
    # Fewer than `most`, so that an object can still appear.
    places = rng.choice(PLACES, rng.integers(most - 2, most), replace=False)
    for row, words in enumerate((CLASSES, COLORS)):
        state[row, places] = rng.permutation(np.repeat(np.arange(len(words)), COPIES))[
            : len(places)
        ]
    return state


def _change(
    rng: np.random.Generator, state: np.ndarray, unchanged: int, what: str, most: int
) -> tuple[np.ndarray, int, str]:
    """Change an object that is not at the place ``unchanged``.

    ``what`` becomes "move" if the table holds too many or too few objects for it. Returns the new
    state, the place of the event, and what happened.
    """
    state = state.copy()
    full = np.flatnonzero(state[0] >= 0)
    if (what == "appear" and len(full) >= most) or (what == "vanish" and len(full) <= most - 2):
        what = "move"
    empty = int(rng.choice(np.flatnonzero(state[0] < 0)))
    chosen = int(rng.choice(full[full != unchanged]))
    if what == "appear":
        pairs = [
            (kind, color)
            for kind in range(len(CLASSES))
            for color in range(len(COLORS))
            if ((state == [[kind], [color]]).sum(1) < COPIES).all()
        ]
        new = [pair for pair in pairs if not np.equal(state.T, pair).all(1).any()]
        state[:, empty] = new[int(rng.integers(len(new)))]
        return state, empty, what
    if what == "move":
        state[:, empty] = state[:, chosen]
    state[:, chosen] = -1
    return state, (empty if what == "move" else chosen), what


def _event_times(rng: np.random.Generator, dwells: list[Dwell]) -> dict[int, float]:
    """Choose dwells with an event, but without a question; return the event's time by index."""
    asked = [index for index, dwell in enumerate(dwells) if _askable(dwell)]
    early = [index for index in range(asked[0]) if index and rng.random() < 0.7] or [1]
    late = (
        [int(rng.choice(asked[1:-1]))]
        if len(asked) >= 6 or (len(asked) == 5 and rng.random() < 0.5)
        else []
    )
    return {
        index: round(float(rng.uniform(dwells[index].start + 0.4, dwells[index].end - 0.4)), 3)
        for index in early + late
    }


def _story(
    rng: np.random.Generator, dwells: list[Dwell], most: int
) -> tuple[list[Dwell], list[float], list[np.ndarray], list[Event]]:
    """Choose targets and events in the order of time.

    A target is drawn uniformly among the places with an object that were not looked at within 8 s.
    New objects are held back as often as old ones, so that novelty does not reveal the target.
    """
    when = _event_times(rng, dwells)
    state = _first_state(rng, most)
    changes = [0.0]
    states = [state]
    events = list[Event]()
    done: list[Dwell] = []
    held: dict[int, float] = {}  # place → time until which it is held back
    for index, dwell in enumerate(dwells):
        recent = {each.place for each in done if dwell.start - each.end < WINDOW}
        full = set(np.flatnonzero(state[0] >= 0).tolist())
        held_back = {place for place, until in held.items() if until > dwell.start}
        # Sorted: the order of a set must not decide what the generator draws.
        free = sorted(full - recent - held_back) or sorted(full - recent)
        place = int(rng.choice(free))
        done.append(replace(dwell, place=place))
        if index in when:
            what = "appear" if index == min(when) else str(rng.choice(["appear", "move", "vanish"]))
            state, changed, what = _change(rng, state, place, what, most)
            # Old objects are unavailable with this probability: hold the new one back as often.
            if what != "vanish" and rng.random() < len(full & (recent | {place})) / len(full):
                held[changed] = when[index] + rng.uniform(1, WINDOW)
            changes.append(when[index])
            states.append(state)
            events.append(Event(when[index], what, changed))
    return done, changes, states, events


def _frame_times(rng: np.random.Generator, variable: bool) -> np.ndarray:
    """Return whole milliseconds as seconds; irregular (40 to 250 ms apart) if ``variable``."""
    if not variable:
        return np.arange(int(DURATION * RATE)) / RATE
    steps = rng.integers(40, 211, int(DURATION * RATE * 1.2))
    milliseconds = np.concatenate([[0], np.cumsum(steps)])
    return milliseconds[milliseconds < DURATION * 1000 - 30] / 1000


def _hand_path(rng: np.random.Generator, times: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return an idle hand at the lower edge, then one reach to ``target`` (time, 2).

    Positions are fractions of the frame, as seen after the camera's shift.
    """
    phase = rng.uniform(0, 2 * np.pi, 2)
    home = rng.uniform(0.15, 0.85)
    idle = np.stack(
        [
            home + 0.05 * np.sin(times * 0.7 + phase[0]),
            1.0 + 0.025 * np.sin(times * 0.9 + phase[1]),
        ],
        -1,
    )
    share = np.clip((times - REACH[0]) / (REACH[1] - REACH[0]), 0, 1)
    share = (share * share * (3 - 2 * share))[:, None]
    return idle * (1 - share) + (target + np.array([0.0, 0.05])) * share


def make_clip(
    stem: str,
    seed: tuple[int, ...],
    viewer: Viewer,
    variable: bool,
    objects: int = OBJECTS,
    drift: float = DRIFT,
) -> Clip:
    """Draw one clip; the same arguments give the same clip. ``objects``: most on the table;
    ``drift``: of the camera, pixels.
    """
    rng = np.random.default_rng(seed)
    layout = Layout.random(rng)
    camera = Camera(rng, drift)
    dwells = dwell_times(rng, DURATION)
    while sum(map(_askable, dwells)) < 4:
        dwells = dwell_times(rng, DURATION)
    dwells, changes, states, events = _story(rng, dwells, objects)
    centers = np.array([place_center(layout, place) for place in range(PLACES)])
    fixations, samples = trace(
        rng, viewer, dwells, lambda place, at: centers[place] + camera(at) / SIZE, DURATION
    )
    times = _frame_times(rng, variable)
    reached = dwells[-1].place
    hand = _hand_path(rng, times, centers[reached] + camera(times) / SIZE)
    noise_seed = int(rng.integers(2**31))
    return Clip(
        stem,
        viewer,
        layout,
        times,
        camera(times),
        hand,
        dwells,
        fixations,
        samples,
        changes,
        states,
        events,
        reached,
        noise_seed,
    )


def frames(clip: Clip) -> Iterator[np.ndarray]:
    """Draw the clip's frames in order, each (128, 128, 3) uint8 RGB."""
    rng = np.random.default_rng(clip.noise_seed)
    for time, camera, hand in zip(clip.times, clip.camera, clip.hand, strict=True):
        kinds, colors = clip.state(float(time))
        shift = np.rint(camera)
        on_table = hand - shift / SIZE  # the renderer moves the hand with the camera
        yield render(
            clip.layout,
            kinds,
            colors,
            (float(shift[0]), float(shift[1])),
            (float(on_table[0]), float(on_table[1])),
            noise_rng=rng,
        )


def write_video(path: Path, clip: Clip) -> None:
    """Encode the clip as H.264 (yuv420p) with its true times in milliseconds."""
    with av.open(str(path), "w", options={"video_track_timescale": "16000"}) as file:
        stream = file.add_stream(
            "libx264",
            rate=RATE,
            options={"crf": "18", "preset": "superfast", "g": "24", "bf": "0", "threads": "1"},
        )
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, image in zip(clip.times, frames(clip), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = round(float(time) * 1000)
            frame.time_base = Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
