import json
import random
import subprocess
import sys

import pytest
from pydantic import ValidationError

from modulate.errors import DataError, MissingFileError
from modulate.plugins import get
from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams
from modulate_streamgaze.questions import TASKS
from modulate_streamgaze.splits import gazeqwen_split

PAST = "past_scene_recall"
PRESENT = "present_object_identification_easy"
ALERT = "proactive_gaze_triggered_alert"
VIDEOS = tuple(f"v{i:02}" for i in range(20))


def mcq(stem, time):
    return {
        "video_path": f"videos/{stem}.mp4",
        "questions": [
            {"question": "What?", "time_stamp": time, "answer": "A", "options": ["x", "y"]}
        ],
    }


def alert(stem):
    points = [
        {"realtime": "01:30", "type": 1},
        {"realtime": 40, "type": 0, "input_video_clip": [10, 40]},
    ]
    return {"video": f"{stem}.mp4", "questions": [{"question": "Alert me.", "test_info": points}]}


def write(path, data):
    path.write_text(json.dumps(data))


@pytest.fixture
def root(tmp_path):
    for folder in ("qa", "videos/original_video/egtea", "fixations"):
        (tmp_path / folder).mkdir(parents=True)
    for stem in VIDEOS:
        (tmp_path / "videos/original_video/egtea" / f"{stem}.mp4").write_bytes(b"video")
        (tmp_path / "fixations" / f"{stem}_fixation_filtered.csv").write_text("start_time\n")
    write(tmp_path / f"qa/{PAST}.json", [mcq(stem, "01:40") for stem in VIDEOS[:10]])
    write(tmp_path / f"qa/{PRESENT}.json", [mcq(stem, "01:40") for stem in VIDEOS])
    write(tmp_path / f"qa/{ALERT}.json", [alert(stem) for stem in VIDEOS])
    return tmp_path


def dataset(root, **changes):
    return StreamGaze(StreamGazeParams(root=root, **changes))


def split_file(root, **lists):
    write(root / "splits.json", {"train": [], "val": [], "test": list(VIDEOS)} | lists)
    return dataset(root, split="splits.json")


def everything(data):
    return [sample for split in ("train", "val", "test") for sample in data.samples(split)]


def test_the_plugin_registers_the_data_set_without_torch():
    assert get("dataset", "streamgaze") is StreamGaze
    code = (
        "import sys, modulate_streamgaze, modulate_streamgaze.questions,"
        " modulate_streamgaze.splits; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_samples_have_stable_unique_ids_and_existing_files(root):
    samples = everything(dataset(root))
    assert len(samples) == 10 + 20 + 2 * 20
    assert len({sample.id for sample in samples}) == len(samples)
    assert [s.id for s in samples] == [s.id for s in everything(dataset(root))]
    for sample in samples:
        stem = sample.groups["video"]
        assert sample.clip.file == root / f"videos/original_video/egtea/{stem}.mp4"
        assert sample.clip.signals == {"gaze": root / f"fixations/{stem}_fixation_filtered.csv"}


def windows(samples):
    return {(sample.task, *sample.extra["place"][2:]): sample.clip.window for sample in samples}


def test_windows_are_those_of_the_benchmark(root):
    assert windows(split_file(root).samples("test")) == {
        (PAST,): (0.0, 100.0),
        (PRESENT,): (40.0, 100.0),
        (ALERT, 0): (0.0, 90.0),
        (ALERT, 1): (10.0, 40.0),
    }


def test_windows_can_be_set_in_seconds(root):
    split_file(root)
    data = dataset(
        root, split="splits.json", past_seconds=30, present_seconds=None, proactive_seconds=8
    )
    expected = {
        (PAST,): (70.0, 100.0),
        (PRESENT,): (0.0, 100.0),
        (ALERT, 0): (82.0, 90.0),
        (ALERT, 1): (32.0, 40.0),
    }
    assert windows(data.samples("test")) == expected


def test_prompts_offer_the_options(root):
    sample = next(s for s in split_file(root).samples("test") if s.task == ALERT)
    text = (
        "Question: Alert me. Based on the video so far, should the alert be"
        " triggered?\nOptions:\nA. Yes\nB. No\n\nThe best option is:"
    )
    assert dataset(root).prompt(sample) == text


def test_the_gazeqwen_rule_splits_285_videos_as_released():
    names = [f"video_{i}.mp4" for i in range(285)]
    split = gazeqwen_split([*names, names[0]])
    assert [list(split.values()).count(name) for name in ("train", "val", "test")] == [199, 42, 44]
    order = sorted(names)
    random.Random(42).shuffle(order)
    assert [
        split[name.removesuffix(".mp4")] for name in (order[0], order[199], order[240], order[241])
    ] == ["train", "val", "val", "test"]


def test_the_split_does_not_depend_on_the_tasks_in_use(root):
    data = dataset(root)
    part = dataset(root, tasks=[PAST])
    assert part.splits == data.splits
    assert part.tasks == (PAST,)
    assert [s.id for s in part.samples("train")] == [
        s.id for s in data.samples("train") if s.task == PAST
    ]


def test_a_split_file_may_use_stems_or_base_names_and_leave_videos_out(root):
    data = split_file(root, train=["v00.mp4", "v01"], test=["v02"], unused=list(VIDEOS[3:]))
    assert {s.groups["video"] for s in data.samples("train")} == {"v00", "v01"}
    assert {s.groups["video"] for s in data.samples("test")} == {"v02"}
    (root / "videos/original_video/egtea/v19.mp4").unlink()
    split_file(root, train=["v00"], test=["v01"], unused=list(VIDEOS[2:])).prepare()


@pytest.mark.parametrize(
    ("lists", "text"),
    [
        ({"train": ["v0"]}, "'train': 'v0' names no video of the questions. Did you mean"),
        ({"train": ["v00"]}, "'v00' is listed twice, in 'train' and 'test'"),
        ({"test": list(VIDEOS[2:])}, r"leaves out 2 of 20 videos: v00, v01; .*'unused'"),
        ({"tests": []}, "unknown split 'tests'. Did you mean 'test'"),
        ({"val": "v00"}, "must map train, val, test, unused to lists"),
    ],
)
def test_split_files_that_contradict_the_data_are_refused(root, lists, text):
    with pytest.raises(DataError, match=text):
        split_file(root, **lists).prepare()


def test_split_files_must_be_readable(root):
    with pytest.raises(MissingFileError, match=r"nowhere\.json does not exist; .* split: gazeqwen"):
        dataset(root, split="nowhere.json").prepare()
    (root / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json is not valid JSON"):
        dataset(root, split="bad.json").prepare()


def test_a_split_without_questions_or_of_another_name_is_an_error(root):
    with pytest.raises(DataError, match="Split 'val' has no question: 0 of 20 videos"):
        split_file(root).samples("val")
    with pytest.raises(DataError, match=r"Unknown split 'dev'\. Known: all, test, train, val"):
        dataset(root).samples("dev")


def test_limits_take_evenly_from_tasks_and_along_files(root):
    split_file(root)
    picked = dataset(root, split="splits.json", limits={"test": 9}).samples("test")
    assert [
        [s.groups["video"] for s in picked if s.task == task] for task in (PAST, PRESENT, ALERT)
    ] == [
        ["v00", "v03", "v06"],
        ["v00", "v06", "v13"],
        ["v00", "v06", "v13"],
    ]
    assert (
        len(dataset(root, split="splits.json", limits={"test": 28, "train": 1}).samples("test"))
        == 28
    )
    assert len(dataset(root, split="splits.json", limits={"test": 10_000}).samples("test")) == 70


@pytest.mark.parametrize(
    "changes",
    [{"limits": {"test": 0}}, {"limits": {"dev": 1}}, {"present_seconds": 0}, {"window": 3}],
)
def test_impossible_parameters_are_refused(changes):
    with pytest.raises(ValidationError):
        StreamGazeParams(root="x", **changes)


def test_every_parameter_is_described():
    assert all(field.description for field in StreamGazeParams.model_fields.values())


def test_missing_files_are_counted_and_named(root):
    for stem in VIDEOS[4:9]:
        (root / f"videos/original_video/egtea/{stem}.mp4").unlink()
    with pytest.raises(
        MissingFileError,
        match=r"5 of 20 videos are missing in .*original_video: v04, v05, v06 …\. .*unused",
    ):
        dataset(root).prepare()


def test_missing_fixations_are_counted_unless_none_are_wanted(root):
    (root / "fixations/v07_fixation_filtered.csv").unlink()
    with pytest.raises(
        MissingFileError, match=r"1 of 20 fixation files are missing in .*fixations: v07\."
    ):
        dataset(root).samples("train")
    with pytest.raises(MissingFileError, match=r"Fixation folder .*gaze does not exist"):
        dataset(root, fixations=["gaze"]).prepare()
    assert all(sample.clip.signals == {} for sample in everything(dataset(root, fixations=[])))


def test_fixations_are_searched_in_several_folders_and_must_be_unique(root):
    (root / "more/deep").mkdir(parents=True)
    name = "v07_fixation_filtered.csv"
    (root / "fixations" / name).rename(root / "more/deep" / name)
    dataset(root, fixations=["fixations", "more", "more/deep"]).prepare()
    (root / "fixations" / name).write_text("")
    with pytest.raises(DataError, match="Two fixation files for 'v07'"):
        dataset(root, fixations=["fixations", "more"]).prepare()


def test_missing_folders_are_named(root, tmp_path):
    with pytest.raises(MissingFileError, match=r"Data set folder .*nowhere does not exist"):
        dataset(tmp_path / "nowhere").prepare()
    with pytest.raises(MissingFileError, match=r"Question folder .*qa does not exist"):
        dataset(root / "videos").prepare()
    with pytest.raises(MissingFileError, match=r"Video folder .*films does not exist"):
        dataset(root, videos="films").prepare()
    with pytest.raises(
        MissingFileError, match=r"No videos found in .*fixations; expected files ending in .*mp4"
    ):
        dataset(root, videos="fixations").prepare()


def test_question_files_must_be_tasks(root):
    with pytest.raises(DataError, match="Unknown task 'past_scene'"):
        dataset(root, tasks=["past_scene"]).prepare()
    with pytest.raises(MissingFileError, match=f"No question file for task '{TASKS[2]}'"):
        dataset(root, tasks=[TASKS[2]]).prepare()
    write(root / "qa/results.json", [])
    with pytest.raises(DataError, match=r"holds results\.json, which is no task"):
        dataset(root).prepare()
    dataset(root, tasks=[PAST]).prepare()
    for path in (root / "qa").iterdir():
        path.unlink()
    with pytest.raises(MissingFileError, match="No question file of StreamGaze"):
        dataset(root).prepare()


def test_two_videos_of_one_stem_are_refused_but_a_missing_suffix_is_not(root):
    write(root / f"qa/{PAST}.json", [mcq("v00", 5) | {"video_path": "v00"}])
    dataset(root).prepare()
    (root / "videos/original_video/v00.mkv").write_bytes(b"")
    with pytest.raises(DataError, match="Two videos for 'v00'"):
        dataset(root).prepare()
    write(root / f"qa/{PAST}.json", [mcq("v00", 5) | {"video_path": "v00.mkv"}])
    with pytest.raises(DataError, match=r"Questions name both .*v00\.m"):
        dataset(root).prepare()


def test_the_fingerprint_follows_the_data_and_not_their_folder(root, tmp_path_factory):
    first = dataset(root).fingerprint()
    assert first == dataset(root).fingerprint()
    moved = tmp_path_factory.mktemp("moved") / "data"
    root.rename(moved)
    assert dataset(moved).fingerprint() == first
    assert dataset(moved, present_seconds=8).fingerprint() != first
    (moved / "fixations/v00_fixation_filtered.csv").write_text("longer than before\n")
    second = dataset(moved).fingerprint()
    write(moved / f"qa/{PAST}.json", [mcq("v00", "01:41")])
    assert len({first, second, dataset(moved).fingerprint()}) == 3


def test_a_subclass_can_make_the_files_first(root):
    class MadeParams(StreamGazeParams):
        seed: int = 0

    class Made(StreamGaze):
        Params = MadeParams

        def prepare(self):
            (root / "late").rename(root / "qa")
            super().prepare()

        def signals(self, item):
            return {**super().signals(item), "hand": self.root / f"{item.stem}.hand.csv"}

    (root / "qa").rename(root / "late")
    made = Made(MadeParams(root=root, seed=3))
    made.prepare()
    assert set(made.samples("test")[0].clip.signals) == {"gaze", "hand"}
