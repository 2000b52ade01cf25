"""The fixations of a clip, by the paper's rules and by the released code's."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modulate_gaze.scanpath import Scanpath
from modulate_hand.path import HandPath
from modulate_streamgaze.dataset import StreamGazeParams, by_midpoint
from modulate_streamgaze.questions import family, parse_time
from modulate_tabletop.dataset import Tabletop, TabletopParams

PRESENT = "present_object_identification_easy"
ALERT = "proactive_gaze_triggered_alert"
# around a window that ends at 10 s: before it, across its start, inside, across its end with the
# midpoint inside and outside, after it
GAZE = Scanpath(
    [
        [0.1, 0.2, 1.0, 1.0],
        [0.3, 0.4, 4.0, 3.0],
        [0.5, 0.5, 7.0, 1.0],
        [0.6, 0.6, 9.5, 3.0],
        [0.7, 0.7, 10.5, 3.0],
        [0.8, 0.8, 14.0, 1.0],
    ]
)


def sample(data, task, seconds=10.0):
    return next(s for s in data.samples("all") if s.task == task and s.clip.window[1] == seconds)


def clip_signal(data, of, signal):
    return data.clip_signal(of, of.clip, signal)


def clip_fixations(data, task=PRESENT):
    return clip_signal(data, sample(data, task), GAZE).fixations[:, 2].tolist()


def test_a_fixation_belongs_to_a_clip_when_it_overlaps_it(reader):
    assert clip_fixations(reader(present_seconds=5)) == [4.0, 7.0, 9.5, 10.5]


def test_by_the_released_rule_its_midpoint_must_lie_in_the_clip(reader):
    assert clip_fixations(reader(present_seconds=5, fixation_rule="midpoint")) == [7.0, 9.5]
    assert clip_fixations(reader(present_seconds=6, fixation_rule="midpoint")) == [4.0, 7.0, 9.5]


def test_the_fixation_that_begins_when_the_question_is_asked_is_dropped_by_the_released_rule(
    reader,
):
    asked = Scanpath([[0.5, 0.5, 11.0, 2.0]])  # stamped at its start, 10 s
    own = reader()
    released = reader(fixation_rule="midpoint")
    assert len(clip_signal(own, sample(own, PRESENT), asked)) == 1
    assert len(clip_signal(released, sample(released, PRESENT), asked)) == 0


def released_choice(rows, start, end):
    """Apply the released code's comparison of a float32 tensor with Python's numbers."""
    middle = torch.tensor(rows, dtype=torch.float32)[:, 2]
    return ((middle >= start) & (middle <= end)).tolist()


# midpoints within a rounding of an edge, as sums, thirds and clocks make them; windows end, or
# begin, there
EDGES = [
    0.1 + 0.2,
    0.3,
    1 / 3,
    2 / 3,
    0.1 * 3,
    138.0,
    137.99999999999997,
    parse_time("02:18"),
    parse_time("1:02:03"),
    parse_time("01:02.1"),
    62.1,
]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("ulps", [-2, -1, 0, 1, 2])
def test_at_an_edge_the_released_rule_decides_as_the_released_code_does(edge, ulps):
    nearby = []
    for step in (np.spacing(edge), float(np.spacing(np.float32(edge)))):
        middle = edge + ulps * step
        nearby += [[0.5, 0.5, middle, 2.0], [0.5, 0.5, middle + 0.51 * step, 2.0]]
    for window in ((0.0, edge), (edge, edge + 60.0)):
        assert len(by_midpoint(np.array(nearby), *window)) == sum(
            released_choice(nearby, *window)
        ), window


def test_a_midpoint_that_is_the_question_s_time_only_in_float32_is_kept_as_released(reader):
    start, end = (
        8.0 + 1 / 3,
        11.666666666666668,
    )  # as a file states them: the midpoint is 10 s and 2e-15
    data = reader(fixation_rule="midpoint")
    late = (start + end) / 2 + 1e-9
    assert late > 10.0 and np.float32(late) == 10.0
    assert (
        len(clip_signal(data, sample(data, PRESENT), Scanpath([[0.5, 0.5, late, end - start]])))
        == 1
    )
    assert (
        len(clip_signal(data, sample(data, PRESENT), Scanpath([[0.5, 0.5, 10.000001, 3.0]]))) == 0
    )  # a whole float32 later


@given(
    st.lists(st.tuples(st.floats(0, 4000), st.floats(0.04, 5)), min_size=1, max_size=20),
    st.integers(0, 4000),
    st.sampled_from([60, 4000]),
)
def test_the_released_rule_is_the_released_comparison_everywhere(spans, asked, seconds):
    rows = [[0.5, 0.5, (start + (start + lasts)) / 2, lasts] for start, lasts in spans]
    window = max(0.0, asked - seconds), asked
    assert len(by_midpoint(np.array(rows), *window)) == sum(released_choice(rows, *window))


@pytest.mark.parametrize("rule", ["overlap", "midpoint"])
def test_only_in_proactive_tasks_fixations_go_to_the_origin_and_only_if_asked_for(reader, rule):
    own = reader(fixation_rule=rule)
    moved = reader(fixation_rule=rule, proactive_fixations="origin")
    for task in (PRESENT, ALERT):
        a, b = (clip_signal(data, sample(data, task), GAZE).fixations for data in (own, moved))
        assert (a[:, 2:] == b[:, 2:]).all() and len(a) > 2
        assert (b[:, :2] == 0).all() if task == ALERT else (a == b).all()


def test_other_signals_are_cut_to_the_window(reader, tmp_path):
    (tmp_path / "hand.csv").write_text(
        "time_seconds,x,y\n" + "".join(f"{t},0.5,0.5\n" for t in range(13))
    )
    hand = HandPath.read(tmp_path / "hand.csv")
    data = reader(fixation_rule="midpoint", proactive_fixations="origin", proactive_seconds=3)
    one = sample(data, ALERT)
    assert clip_signal(data, one, hand) == hand.within(*one.clip.window) and 0 < len(
        hand.within(*one.clip.window)
    ) < len(hand)


def test_the_tabletop_world_passes_the_rules_on(tmp_path):
    names = ("fixation_rule", "proactive_fixations")
    plain, released = (
        Tabletop(TabletopParams(root=tmp_path, **rules)).reader.params
        for rules in ({}, dict(zip(names, ("midpoint", "origin"))))
    )
    assert [getattr(plain, name) for name in names] == ["overlap", "own"]
    assert [getattr(released, name) for name in names] == ["midpoint", "origin"]


def test_the_rules_change_the_fingerprint_and_their_defaults_do_not(reader, tree):
    data = reader()
    digest = hashlib.sha256()
    for path in sorted((tree / "qa").glob("*.json")):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    sizes = [
        [[stem, p.name, p.stat().st_size] for stem, p in sorted(files.items())]
        for files in (data.fixation_files, data.video_files)
    ]
    settings = {
        "tasks": None,
        "past_seconds": None,
        "present_seconds": 60.0,
        "proactive_seconds": None,
        "limits": {},
    }
    digest.update(
        json.dumps(
            [sizes, settings, [list(pair) for pair in sorted(data.splits.items())]], sort_keys=True
        ).encode()
    )
    assert data.fingerprint() == f"streamgaze-{digest.hexdigest()[:16]}"
    others = [reader(fixation_rule="midpoint"), reader(proactive_fixations="origin")]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"fixation_rule": "midpoint"},
        {"proactive_fixations": "origin"},
        {"gaze": {"folders": {"egtea": "gaze"}}},
    ],
)
def test_rules_without_fixations_are_refused(changes):
    with pytest.raises(ValidationError, match="have no effect without `fixations`"):
        StreamGazeParams(root="x", fixations=(), **changes)


def test_families_cover_the_tasks(reader):
    assert {family(task) for task in reader().tasks} == {"past", "present", "proactive"}
