"""The generated world: files, windows, balance; frames alone do not reveal gaze-only answers."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from modulate.errors import DataError
from modulate_tabletop import text
from modulate_tabletop.clips import REACH, WINDOW, Clip, make_clip
from modulate_tabletop.dataset import Tabletop
from modulate_tabletop.make import FIXATION_HEADER, SPLITS, Job, jobs, make_world
from modulate_tabletop.questions import COLOR_WORDS, TASKS, Alert, MultipleChoice, draft, even_set
from modulate_tabletop.render import CLASSES, GRID
from modulate_tabletop.viewer import Dwell

JOBS = jobs(3, 2, 2, seed=5)
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tabletop") / "world"
    make_world(root, train=3, val=2, test=2, seed=5, workers=1)
    return root


@pytest.fixture(scope="module")
def stories() -> list[tuple[Clip, list[MultipleChoice | Alert]]]:
    clips = [j.clip() for j in jobs(0, 0, 120, seed=11)]
    return [(clip, draft(np.random.default_rng((1, i)), clip)) for i, clip in enumerate(clips)]


def entries(world: Path, task: str) -> list[Entry]:
    return list(json.loads((world / "qa" / f"{task}.json").read_text()))


def rows(path: Path) -> np.ndarray:
    with path.open() as file:
        return np.array([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])


def seconds(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def frame_times_of(world: Path, task: str) -> list[tuple[str, int]]:
    """(stem, second) of every question or test point."""
    result = []
    for entry in entries(world, task):
        for question in entry["questions"]:
            clocks = (
                [p["realtime"] for p in question["test_info"]]
                if "test_info" in question
                else [question["time_stamp"]]
            )
            result += [(Path(entry["video_path"]).stem, seconds(c)) for c in clocks]
    return result


def dwell_at(clip: Clip, time: float) -> Dwell:
    return next(d for d in clip.dwells if d.start <= time <= d.end)


def test_same_numbers_give_the_same_bytes_whatever_the_workers(world: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "again", train=3, val=2, test=2, seed=5, workers=2)
    files = sorted(p.relative_to(world) for p in world.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    for file in files:
        assert (world / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    assert [p.name for p in tmp_path.iterdir()] == ["again"], "no temporary folder is left"


def test_a_world_is_reused_or_refused(world: Path, tmp_path: Path) -> None:
    assert make_world(world, train=3, val=2, test=2, seed=5)["reused"]
    with pytest.raises(
        DataError, match=r"holds another tabletop world: seed is 5, wanted 6\. Name another folder"
    ):
        make_world(world, train=3, val=2, test=2, seed=6)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty and holds no tabletop world"):
        make_world(tmp_path, train=3, val=2, test=2)
    with pytest.raises(DataError, match=r"at least one video"):
        make_world(tmp_path / "none", train=0, val=0, test=0)


def test_the_data_set_makes_and_reads_its_world(world: Path, tmp_path: Path) -> None:
    data = Tabletop(Tabletop.Params(root=tmp_path / "made", train=1, val=1, test=0, tasks=None))
    data.prepare()
    train = data.samples("train")
    assert {s.task for s in train} == set(TASKS) and all(
        s.clip.window[1] - s.clip.window[0] <= 8 and s.clip.window[1] < 25 for s in train
    )
    few = Tabletop(Tabletop.Params(root=world, train=3, val=2, test=2, seed=5, max_per_split=8))
    few.prepare()
    samples = few.samples("test")
    assert [s.task for s in samples] == [task for task in text.GAZE_ONLY for _ in range(2)]
    assert all(s.clip.file.is_file() and s.clip.signals["gaze"].is_file() for s in samples)
    assert (
        few.prompt(samples[0]).endswith("The best option is:")
        and few.fingerprint() != data.fingerprint()
    )


def test_importing_the_plugin_is_light() -> None:
    code = (
        "import sys, typer, modulate_tabletop as t; t.register_commands(typer.Typer());"
        " print({'torch', 'numpy', 'av'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "world", train=1, val=0, test=0, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("job", JOBS[:4], ids=lambda j: j.stem)
def test_videos_decode_at_their_true_times(world: Path, job: Job) -> None:
    with av.open(str(world / "videos/original_video" / f"{job.stem}.mp4")) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        times = np.array([float(frame.time or 0) for frame in file.decode(video=0)])
    assert np.abs(times - job.clip().times).max() < 1e-3
    assert job.variable == (np.ptp(np.diff(times)) > 0.05)
    assert any(j.variable for j in JOBS) and not all(j.variable for j in JOBS)


def test_files_have_the_expected_form(world: Path) -> None:
    for job in JOBS:
        path = world / "fixations" / f"{job.stem}_fixation_filtered.csv"
        assert path.read_text().splitlines()[0] == FIXATION_HEADER
        table = rows(path)
        assert (
            (table[1:, 0] > table[:-1, 1]).all()
            and (table[:, 2:4] > 0).all()
            and (table[:, 2:4] < 1).all()
        )
        assert (table[:, 4] > 0.19).all() and (table[:, 4] < 0.61).all()
        samples = rows(world / "gaze" / f"{job.stem}_gaze.csv")
        assert (
            np.allclose(np.diff(samples[:, 0]), 1 / 60, atol=1e-3)
            and (samples[:, 1:] > 0).all()
            and (samples[:, 1:] < 1).all()
        )
    for task in TASKS:
        for entry in entries(world, task):
            assert {"video_path", "viewer", "response_time", "gaze_only", "questions"} <= set(entry)
            assert entry["gaze_only"] == (task in text.GAZE_ONLY)
            for question in entry["questions"]:
                if task.startswith("proactive"):
                    assert {p["type"] for p in question["test_info"]} <= {0, 1}
                else:
                    assert len(set(question["options"])) == 4 and question["answer"] in text.LETTERS


def test_every_video_has_enough_gaze_only_questions_at_different_times(world: Path) -> None:
    for task in text.GAZE_ONLY:
        times = frame_times_of(world, task)
        assert len(set(times)) == len(times)
        for job in JOBS:
            assert sum(stem == job.stem for stem, _ in times) >= 4


@pytest.mark.parametrize("task", text.GAZE_ONLY)
def test_gaze_decides_gaze_only_questions(world: Path, task: str) -> None:
    clips = {j.stem: j.clip() for j in JOBS}
    for stem, time in frame_times_of(world, task):
        clip = clips[stem]
        table = rows(world / "fixations" / f"{stem}_fixation_filtered.csv")
        dwell = dwell_at(clip, time)
        assert dwell.start <= time - 1.6 and time >= WINDOW
        for moment in (time - 0.5, time):
            active = table[(table[:, 0] <= moment) & (moment <= table[:, 1])]
            assert len(active) == 1
            frame = int(np.searchsorted(clip.times, moment, side="right")) - 1
            x, y = active[0, 2:4] * 128 - clip.camera[frame] - clip.layout.jitter[dwell.place]
            assert (
                max(
                    abs(x - (dwell.place % GRID + 0.5) * 32),
                    abs(y - (dwell.place // GRID + 0.5) * 32),
                )
                < 14
            )
        targets = [d.place for d in clip.dwells if d.end > time - WINDOW and d.start < time]
        assert len(targets) >= 3 and len(set(targets)) == len(targets)
        hand = rows(world / "hand" / f"{stem}_hand.csv")
        before = hand[hand[:, 0] <= time]
        assert time < REACH[0] and (before[:, 2] > 0.93).all(), "the hand stays at the lower edge"
        assert all(
            (clip.state(m) == clip.state(time)).all() for m in np.arange(dwell.start, time, 0.05)
        )


def test_answers_are_what_the_viewer_looks_at(world: Path) -> None:
    clips = {j.stem: j.clip() for j in JOBS}
    for task, row, words in (
        (text.EASY, 0, CLASSES),
        (text.HARD, 0, CLASSES),
        (text.ATTRIBUTE, 1, COLOR_WORDS),
    ):
        for entry in entries(world, task):
            clip = clips[Path(entry["video_path"]).stem]
            question = entry["questions"][0]
            state = clip.state(seconds(question["time_stamp"]))
            time = seconds(question["time_stamp"])
            assert (
                question["options"][text.LETTERS.index(question["answer"])]
                == words[state[row, dwell_at(clip, time).place]]
            )
            assert set(question["options"]) <= {words[i] for i in state[row] if i >= 0}, (
                "every option stands on the table"
            )
    for entry in entries(world, text.ALERT):
        clip = clips[Path(entry["video_path"]).stem]
        for question in entry["questions"]:
            for point in question["test_info"]:
                time = seconds(point["realtime"])
                looked = CLASSES[clip.state(time)[0, dwell_at(clip, time).place]]
                assert (looked == question["target_object"]) == bool(point["type"])
                assert CLASSES.index(question["target_object"]) in clip.state(time)[0]


def test_answers_are_balanced(world: Path) -> None:
    for task in (text.EASY, text.HARD, text.ATTRIBUTE):
        letters = [
            e["questions"][0]["answer"]
            for e in entries(world, task)
            if e["video_path"].startswith(tuple(j.stem for j in JOBS[:3]))
        ]
        counts = [letters.count(letter) for letter in text.LETTERS]
        assert max(counts) - min(counts) <= 1
    types = [
        p["type"]
        for e in entries(world, text.ALERT)
        for q in e["questions"]
        for p in q["test_info"]
    ]
    assert abs(np.mean(types) - 0.5) <= 0.15


def test_splits_share_no_viewer_and_no_table(world: Path) -> None:
    splits, by_viewer = (
        json.loads((world / f"{n}.json").read_text()) for n in ("splits", "splits_by_viewer")
    )
    viewer = {Path(e["video_path"]).stem: e["viewer"] for e in entries(world, text.EASY)}
    for parts in (splits, by_viewer):
        assert sorted(s for part in parts.values() for s in part) == [j.stem for j in JOBS]
        people = [{viewer[s] for s in parts[split]} for split in SPLITS]
        assert sum(map(len, people)) == len(set.union(*people)) and all(people)
    clips = [j.clip() for j in JOBS]
    assert (
        len({c.layout.texture for c in clips})
        == len({c.states[0].tobytes() for c in clips})
        == len(clips)
    )


def test_a_set_of_options_does_not_tell_its_target() -> None:
    rng = np.random.default_rng(0)
    values = np.array([0, 0, 1, 2, -1, 3, 3, 4, -1, 5, 6, -1, 6, 7, -1, 1])
    targets = rng.choice(np.flatnonzero(values >= 0), 1200)
    sets = [even_set(rng, int(t), values, 4, closeness=2.0) for t in targets]
    assert all(
        t in s and len({values[p] for p in s}) == 4 for t, s in zip(targets, sets, strict=True)
    )
    # of the places in a set each is the target in one of four cases, also those whose class stands
    # on the table twice
    twice = [
        (p == t)
        for t, s in zip(targets, sets, strict=True)
        for p in s
        if (values == values[p]).sum() == 2
    ]
    assert abs(np.mean(twice) - 0.25) < 4 * 0.433 / len(twice) ** 0.5


def most_frequent(clip: Clip, time: int, values: np.ndarray) -> Callable[[int], float]:
    return lambda value: float((values == value).sum())


def newest(clip: Clip, time: int, values: np.ndarray) -> Callable[[int], float]:
    places = [e.place for e in clip.events if e.time < time and e.what != "vanish"]
    return lambda value: max(
        [i + 1.0 for i, p in enumerate(places) if values[p] == value], default=0.0
    )


def central(clip: Clip, time: int, values: np.ndarray) -> Callable[[int], float]:
    far = np.hypot(np.arange(16) % GRID - 1.5, np.arange(16) // GRID - 1.5)
    return lambda value: -float(far[values == value].min(initial=9))


def lowest(clip: Clip, time: int, values: np.ndarray) -> Callable[[int], float]:
    return lambda value: float(np.flatnonzero(values == value).max(initial=-1))


@pytest.mark.parametrize("guess", [most_frequent, newest, central, lowest])
def test_the_frames_alone_stay_at_chance(
    stories: list[tuple[Clip, list[MultipleChoice | Alert]]],
    guess: Callable[..., Callable[[int], float]],
) -> None:
    hits: dict[str, list[float]] = {task: [] for task in text.GAZE_ONLY}
    for clip, questions in stories:
        for q in (q for q in questions if q.task in text.GAZE_ONLY):
            if isinstance(q, MultipleChoice):
                row, words = (1, COLOR_WORDS) if q.task == text.ATTRIBUTE else (0, CLASSES)
                score = guess(clip, q.time, clip.state(q.time)[row])
                scores = [score(words.index(option)) for option in (q.right, *q.wrong)]
                hits[q.task].append((scores[0] == max(scores)) / scores.count(max(scores)))
            else:
                for time, raised in q.points:
                    kinds = clip.state(time)[0]
                    score = guess(clip, time, kinds)
                    scores = [score(k) for k in {int(k) for k in kinds if k >= 0}]
                    hits[q.task].append(
                        float((score(CLASSES.index(q.target)) >= np.median(scores)) == raised)
                    )
    for task, values in hits.items():
        chance = 0.5 if task == text.ALERT else 0.25
        assert len(values) > 450
        assert abs(np.mean(values) - chance) < 3.5 * (chance * (1 - chance) / len(values)) ** 0.5, (
            task,
            np.mean(values),
        )


def test_targets_are_spread_over_all_places(
    stories: list[tuple[Clip, list[MultipleChoice | Alert]]],
) -> None:
    places = [d.place for clip, _ in stories for d in clip.asked()]
    counts = np.bincount(places, minlength=16)
    assert (
        (counts - len(places) / 16) ** 2 / (len(places) / 16)
    ).sum() < 37.7  # chi-squared, 15 degrees of freedom, p = 0.001


def test_any_eight_seconds_hold_different_places(
    stories: list[tuple[Clip, list[MultipleChoice | Alert]]],
) -> None:
    for clip, _ in stories:
        for i, a in enumerate(clip.dwells):
            assert 2.0 <= a.end - a.start <= 2.6 + 1e-6
            assert all(a.place != b.place for b in clip.dwells[i + 1 :] if b.start - a.end < WINDOW)
            assert clip.state(a.start)[0, a.place] >= 0 and clip.state(a.end)[0, a.place] >= 0
        assert np.abs(clip.camera).max() <= 4 and all(
            0.03 - 1e-6 <= b.start - a.end <= 0.06 + 1e-2 for a, b in pairwise(clip.dwells)
        )


def test_a_clip_is_a_function_of_its_seed() -> None:
    job = JOBS[0]
    assert (
        make_clip(job.stem, job.seed, job.viewer, job.variable).samples == job.clip().samples
    ).all()


@pytest.mark.parametrize("most", [10, 13, 14, 15])
def test_as_many_objects_stand_on_the_table_as_are_asked_for(most):
    counts = [
        int((state[0] >= 0).sum())
        for job in jobs(0, 0, 12, seed=3, objects=most)
        for state in job.clip().states
    ]
    assert most - 2 <= min(counts) and max(counts) <= most and len(set(counts)) > 1
    clip = jobs(0, 0, 1, seed=3, objects=most)[0].clip()
    assert draft(np.random.default_rng(0), clip)


@pytest.mark.parametrize("drift", [0.0, 4.0, 16.0])
def test_the_camera_goes_as_far_as_it_may(drift):
    farthest = max(
        float(np.abs(job.clip().camera).max()) for job in jobs(0, 0, 12, seed=3, drift=drift)
    )
    assert 0.5 * drift <= farthest <= drift


def test_what_a_manifest_of_before_does_not_say_is_as_it_was(tmp_path):
    root = tmp_path / "w"
    manifest = make_world(root, train=1, val=0, test=0, seed=5, workers=1)
    assert (manifest["objects"], manifest["drift"]) == (13, 4.0)
    path = root / "manifest.json"
    older = {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if key not in ("objects", "drift")
    }
    path.write_text(json.dumps(older))
    assert make_world(root, train=1, val=0, test=0, seed=5)["reused"]
    with pytest.raises(
        DataError,
        match=r"holds another tabletop world: objects is 13, wanted 14; drift is 4\.0, wanted 8\.0",
    ):
        make_world(root, train=1, val=0, test=0, seed=5, objects=14, drift=8)
    for numbers in ({"objects": 16}, {"objects": 9}, {"drift": 20.0}, {"drift": float("nan")}):
        with pytest.raises(DataError, match="has 10 to 15 objects and a drift of 0 to 16 pixels"):
            make_world(tmp_path / "v", train=1, val=0, test=0, **numbers)


def test_workers_make_the_same_world_of_other_numbers(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        make_world(
            tmp_path / name, train=7, val=0, test=0, seed=1, objects=14, drift=8.0, workers=workers
        )
    files = sorted(
        p.relative_to(tmp_path / "one")
        for p in (tmp_path / "one").rglob("*")
        if p.suffix in (".csv", ".json")
    )
    assert files and all(
        (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files
    )
