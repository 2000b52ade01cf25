"""`modulate data check`: figures computed by hand; problems are reported, never a crash."""

import json

import pytest

from modulate import cli
from modulate.config.recipe import recipe_paths
from modulate.config.sections import Sampling
from modulate.data.sampled_steps import SampledSteps
from modulate_streamgaze.data_check import check_tree
from modulate_streamgaze.questions import TASKS
from tests.plugins.streamgaze.streamgaze_tree import EGTEA, HEADER, VIDEOS, fixation

PRESENT = "present_object_identification_easy"
ALERT = "proactive_gaze_triggered_alert"
TWO = Sampling(fps=1.0, max_frames=2)  # one step in the middle of every window


@pytest.fixture
def run(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "check", *map(str, args)])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def check_data(data, sampling):
    steps = SampledSteps(sampling)
    return check_tree(data, steps, steps.training_differs)[0]


def texts(report, level):
    return [text for found, text in report.findings if found == level]


def is_ok(report):
    return texts(report, "error") == []


def test_the_figures_of_a_whole_tree(reader):
    report = check_data(reader(), TWO)
    assert is_ok(report) and tuple(report.tasks) == TASKS
    # questions at 10 and 6 s: fixations 4–7 and 9.5–10.4 s, or the first alone; the only step is at
    # 5 s, or at 3 s
    mcq = report.tasks[PRESENT]
    assert (mcq.questions, mcq.videos, mcq.missing, mcq.beyond, mcq.clips) == (16, 8, 0, 0, 16)
    assert mcq.seconds == (12.0, 12.0, 12.0)
    assert (mcq.fixations, mcq.without, mcq.active) == (1.5, 0.0, {"midpoint": 0.5, "overlap": 1.0})
    # test points at 10 s and over 1–3 s, where there is no fixation
    alert = report.tasks[ALERT]
    assert (alert.questions, alert.fixations, alert.without, alert.active) == (
        16,
        1.0,
        0.5,
        {"midpoint": 0.5, "overlap": 0.5},
    )
    assert report.splits == {"train": 5, "val": 1, "test": 2}


def test_conventions_and_unknown_keys_are_counted(reader):
    report = check_data(reader(), TWO)
    assert report.conventions == {
        "video under video_path": 40,
        "video under video": 40,
        "task_type given": 80,
        "task_type from the file's name": 48,
        "times by the clock": 96,
        "times in seconds": 64,
        "test points with input_video_clip": 16,
    }
    assert report.unknown == {"entry.generator": 80, "test point.note": 16}
    assert "Keys that are not used, but kept: entry.generator (80), test point.note (16)." in texts(
        report, "info"
    )


def test_coverage_follows_the_sampling(reader):
    fine = check_data(reader(), Sampling(fps=2.0, max_frames=64))
    rule = check_data(reader(fixation_rule="midpoint"), TWO)
    assert fine.tasks[PRESENT].active == {"midpoint": 1.0, "overlap": 1.0}
    assert rule.tasks[PRESENT].fixations == 1.5 and rule.tasks[ALERT].without == 0.5
    both = check_data(reader(), Sampling(fps=2.0, max_frames=64, train_max_frames=2))
    assert both.tasks[PRESENT].active["midpoint"] == 1.0 and both.tasks[
        PRESENT
    ].active_training == {"midpoint": 0.5, "overlap": 1.0}
    # of 160 questions half of the 128 multiple-choice ones and half of the 32 test points
    assert (
        "With `active: midpoint` gaze is active at no sampled step in training for 80 of 160"
        " questions (50.0 %)." in texts(both, "warning")
    )


def test_gaze_that_no_step_can_see_is_an_error(reader):
    report = check_data(
        reader(), Sampling(fps=1.0, max_frames=2, clock="requested")
    )  # the released code's clock: one step over the first 2 s
    assert report.tasks[PRESENT].active == {"midpoint": 0.0, "overlap": 0.0}
    assert (
        "With `active: overlap` gaze is active at no sampled step for 160 of 160 questions"
        " (100.0 %)." in texts(report, "error")
    )


def test_steps_follow_the_sampling(reader):
    sample = next(s for s in reader().samples("all") if s.clip.window == (0.0, 10.0))
    assert SampledSteps(TWO)(sample.clip.window).spans == ((0.0, 10.0),)
    times = SampledSteps(Sampling(fps=1.0, max_frames=99))(sample.clip.window).times
    assert times == (0.5, 2.5, 4.5, 6.5, 8.5, 10.0)


def break_things(tree):
    videos = tree / "videos/original_video"
    fixations = tree / "fixations/egtea"
    (videos / f"{VIDEOS[0]}.mp4").unlink()
    (videos / f"{VIDEOS[1]}.mp4").write_bytes(b"no video")
    (fixations / f"{EGTEA[2]}_fixation_filtered.csv").unlink()
    (fixations / f"{EGTEA[3]}_fixation_filtered.csv").write_text(
        HEADER + fixation(0, 1, 2) + "1,2,x,0.5,1,1,2,1,1\n"
    )
    path = tree / f"qa/{PRESENT}.json"
    entries = json.loads(path.read_text())
    entries[4]["questions"][0]["time_stamp"] = "00:20"
    entries[5]["questions"][0]["answer"] = "E"
    entries[6] = 7
    path.write_text(json.dumps(entries))
    (tree / "qa/past_scene_recall.json").write_text("{")
    (tree / "qa/results.json").write_text("[]")
    (tree / f"qa/{TASKS[2]}.json").unlink()


def test_everything_that_would_fail_is_found_at_once(tree, reader):
    break_things(tree)
    report = check_data(reader(), TWO)
    errors = "\n".join(texts(report, "error"))
    for text in (
        f"1 of 8 videos are missing: {VIDEOS[0]}.",
        f"1 of 8 videos cannot be read. First: {tree}/videos/original_video/{VIDEOS[1]}.mp4",
        f"1 of 8 fixation files are missing: {EGTEA[2]}.",
        (
            "1 of 8 fixation files cannot be read. First:"
            f" {tree}/fixations/egtea/{EGTEA[3]}_fixation_filtered.csv, line 3: center_x 'x' is no"
            " number"
        ),
        (
            f"{PRESENT}: 1 questions lie beyond their video's end. First: {PRESENT}/{VIDEOS[4]}/4/0"
            " at 20.00 s, end 12.00 s."
        ),
        (
            f"{PRESENT}: 2 entries cannot be read. First: {PRESENT}.json, entry 5"
            f" ({VIDEOS[5]}.mp4), question 0: Options ≠ letters: the answer is 'E'"
        ),
        (
            f"past_scene_recall: 1 entries cannot be read. First: {tree}/qa/past_scene_recall.json"
            " is not valid JSON"
        ),
        "results.json is no task of StreamGaze; move it, or name the tasks to use.",
    ):
        assert text in errors
    assert f"There is no question file for the task {TASKS[2]}." in texts(report, "warning")
    task = report.tasks[PRESENT]
    # of 12 questions that can be read, those of the two bad videos, of the two videos without gaze,
    # and the late one cannot be looked at
    assert (task.questions, task.videos, task.missing, task.beyond, task.clips) == (12, 6, 2, 1, 3)


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("qa", r"Question folder {root}/qa does not exist"),
        ("videos", r"Video folder {root}/videos/original_video does not exist"),
        ("fixations", r"Fixation folder {root}/fixations does not exist"),
        (".", r"Data set folder {root} does not exist"),
    ],
)
def test_missing_folders_are_findings(tree, reader, folder, text):
    (tree / folder).resolve().rename(tree.parent / "elsewhere")
    report = check_data(reader(), TWO)
    assert any(text.format(root=tree) in found for found in texts(report, "error"))


def test_splits_that_cannot_be_made_or_are_empty_are_findings(tree, reader):
    assert any(
        "The split 'participant' cannot be made: A split by participant needs" in t
        for t in texts(check_data(reader(split="participant"), TWO), "error")
    )
    (tree / "s.json").write_text(json.dumps({"train": VIDEOS[:7], "unused": VIDEOS[7:]}))
    (tree / f"videos/original_video/{VIDEOS[7]}.mp4").unlink()
    report = check_data(reader(split="s.json"), TWO)
    assert texts(report, "error") == [
        "The split 'val' has no question.",
        "The split 'test' has no question.",
    ]
    assert report.tasks[PRESENT].videos == 7


def test_who_looked_is_told_and_contradictions_about_it_are_findings(tree, reader):
    report = check_data(reader(), TWO)
    assert "Of 8 videos the participant is known for 4, the data set for 8." in texts(
        report, "info"
    )
    (tree / "who.csv").write_text("video,participant\na,p1\na,p2\n")
    report = check_data(reader(groups="who.csv"), TWO)
    assert (
        len(texts(report, "error")) == 1
        and "video 'a' has two values of participant" in texts(report, "error")[0]
    )
    assert report.tasks[PRESENT].clips == 16


def test_a_tree_may_be_without_gaze_or_have_gaze_to_make_fixations_of(tree, reader):
    report = check_data(reader(fixations=()), TWO)
    assert is_ok(report) and report.tasks[PRESENT].active == {}
    (tree / f"fixations/egtea/{EGTEA[0]}_fixation_filtered.csv").unlink()
    (tree / "gaze").mkdir()
    (tree / f"gaze/{EGTEA[0]}.txt").write_text("")
    report = check_data(reader(gaze={"folders": {"egtea": "gaze"}}), TWO)
    assert is_ok(
        report
    ) and "1 fixation files are not there yet and will be made of gaze files." in texts(
        report, "info"
    )


def test_the_command_prints_a_table_and_ends_with_0_when_all_is_well(tree, run):
    code, out, _ = run(tree, "sampling.fps=1.0", "sampling.max_frames=2")
    assert code == 0 and "Nothing here would fail in training." in out
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == [PRESENT])
    assert row == [
        PRESENT,
        "16",
        "8",
        "0",
        "12",
        "/",
        "12",
        "/",
        "12",
        "0",
        "1.5",
        "0.0",
        "%",
        "50.0",
        "%",
        "100.0",
        "%",
    ]
    assert "1 frames a second, at most 2, 2 to a step, clock: true" in out
    assert "Videos by split: train 5, " in out and "video under video_path 40" in out


def test_the_command_prints_json_and_ends_with_1_when_something_would_fail(tree, run):
    break_things(tree)
    code, out, _ = run(tree, "--json", "--frames-per-step", 1)
    found = json.loads(out)
    assert code == 1 and found["ok"] is False and found["tasks"][PRESENT]["beyond"] == 1
    assert {"level", "text", "rows"} == found["findings"][0].keys()
    code, out, _ = run(tree)
    assert code == 1 and "error: 1 of 8 videos are missing" in out and "errors." in out


def test_of_a_recipe_on_other_data_only_the_sampling_is_taken(tree, run):
    code, out, _ = run(tree, "--recipe", "gazeqwen_tiny")
    assert (
        code == 0
        and "The recipe 'gazeqwen_tiny' is of the data set 'tabletop': its sampling is used"
        in " ".join(out.split())
    )
    code, _, err = run(tree, "--recipe", "gazeqwenn")
    assert code == 1 and "No recipe 'gazeqwenn'" in err


def test_without_the_recipe_the_options_stand_alone(tree, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modulate.config.recipe.recipe_paths", lambda: {})
    code, out, _ = run(tree, "sampling.max_frames=2", "data.params.present_seconds=5", "--json")
    found = json.loads(out)
    assert (
        code == 0
        and "There is no recipe 'gazeqwen' here" in found["findings"][-1]["text"]
        and "at most 2," in found["sampling"]
    )
    code, _, err = run(tree, "data.params.present=5")
    assert (
        code == 1
        and "data.params is not valid:" in err
        and "present: unknown key. Did you mean 'present_seconds'" in err
    )
    code, _, err = run(tree, "sampling.fps=0")
    assert code == 1 and "sampling is not valid:" in err


def test_overrides_reach_the_data_set(tree, run):
    assert "gazeqwen" in recipe_paths()
    code, out, _ = run(
        tree,
        "data.params.tasks=[past_scene_recall]",
        "data.params.fixation_rule=midpoint",
        "--json",
    )
    assert code == 0 and list(json.loads(out)["tasks"]) == ["past_scene_recall"]
